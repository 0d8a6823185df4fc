"""Figures of load: what is asked for, the programs that measure them, what is shown."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from fastpath.commands.compare import cpu, sandboxes, sections
from fastpath.data import GUEST
from fastpath.errors import FastpathError
from fastpath.report.figures import BY_KEY, FLIGHTS, METRICS, Group
from tests.support.limits import LIMIT_S, wait_until
from tests.support.ports import free_port


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guest")
    argv = ["make", "-s", "-C", str(GUEST), f"OUT={folder}", "probe"]
    subprocess.run(argv, check=True, timeout=LIMIT_S)
    return str(folder / "probe")


def run(probe, port, *args):
    return subprocess.run(
        [probe, "127.0.0.1", str(port), *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def measured(probe, port, *args):
    done = run(probe, port, *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def server(serve):
    """A thread a connection; yields the port."""

    def accept():
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listener.accept()
                threading.Thread(target=one, args=(conn,), daemon=True).start()

    def one(conn):
        with conn, contextlib.suppress(OSError):
            serve(conn)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def echo(conn):
    while data := conn.recv(65536):
        conn.sendall(data)


@pytest.mark.parametrize("flight", [1, 7, 64])
def test_as_many_connections_are_made_as_were_asked_for(probe, flight):
    taken = []

    def serve(conn):
        taken.append(conn)
        echo(conn)

    with server(serve) as port:
        result = measured(probe, port, "rate", 50, flight)
        assert len(result["ns"]) == 50
        assert result["elapsed_ns"] >= max(result["ns"])
        result = measured(probe, port, "crr", 50, 64, flight)
        assert len(result["ns"]) == 50
    assert len(taken) == 100


def test_an_open_loop_counts_what_was_late_because_the_path_stood_still(probe):
    """For 300 ms of a second: a closed loop would have one late sample."""
    still = threading.Event()

    def serve(conn):
        started = time.monotonic()
        while data := conn.recv(65536):
            if time.monotonic() - started > 0.3 and not still.is_set():
                still.set()
                time.sleep(0.3)
            conn.sendall(data)

    with server(serve) as port:
        ns = measured(probe, port, "open", 200, 64, 200)["ns"]
    assert len(ns) == 200
    assert max(ns) > 250e6
    assert sum(each > 50e6 for each in ns) >= 40


@contextlib.contextmanager
def steady(probe, port):
    """Connections at a fixed rate; yields its process, once it has begun."""
    argv = [probe, "127.0.0.1", str(port), "steady", "64", "200", "500000"]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        assert process.stderr.readline() == "steady\n"
        yield process


def ended(process):
    said, _ = process.communicate(timeout=LIMIT_S)
    return json.loads(said)


def test_a_path_that_stands_still_is_a_gap_and_breaks_nothing(probe):
    works, still, taken = threading.Event(), threading.Event(), []

    def serve(conn):
        taken.append(conn)
        while data := conn.recv(65536):
            if still.is_set():
                works.wait(LIMIT_S)
            conn.sendall(data)

    with server(serve) as port, steady(probe, port) as process:
        wait_until(lambda: len(taken) > 20)
        still.set()
        time.sleep(1)  # far more than is asked for: what is under way may end late
        works.set()
        wait_until(lambda: len(taken) > 40)
        result = ended(process)
    assert result["gap_ns"] > 100e6
    assert result["tried"] > 20
    assert (result["failed"], result["broken"], result["kept"]) == (0, 0, 16)


def test_connections_that_end_are_counted_and_those_that_were_open(probe):
    over, refused, taken = threading.Event(), [], []

    def serve(conn):
        taken.append(conn)
        if over.is_set():
            refused.append(conn)
            return
        echo(conn)

    with server(serve) as port, steady(probe, port) as process:
        over.set()
        for conn in taken[:16]:
            conn.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: len(refused) > 5)
        result = ended(process)
    assert result["failed"] > 5
    assert result["broken"] == 16
    assert result["gap_ns"] > 0


def test_a_path_that_does_not_work_before_is_an_error(probe):
    with server(lambda conn: None) as port:
        done = run(probe, port, "steady", 64, 200, 1000)
    assert done.returncode == 1
    assert "the path does not work, before anything is done" in done.stderr


def test_a_connection_that_is_refused_or_closed_early_is_an_error(probe):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = run(probe, unused.getsockname()[1], "rate", 3, 2)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    with server(lambda conn: conn.recv(1)) as port:
        done = run(probe, port, "crr", 3, 64, 2)
    assert done.returncode == 1
    assert "closed" in done.stderr or "reset" in done.stderr


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\n", "is no 9 bytes of HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", "is no 9 bytes of HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n", "is no 9 bytes of HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length:9\r\n\r\n0123456789", "too long"),
        (b"x" * 5000, "has no end"),
        (b"HTTP/1.1 200 OK\r\n", "closed the connection too early"),
    ],
)
def test_an_answer_that_is_not_http_as_asked_for_is_an_error(probe, said, why):
    def serve(conn):
        conn.recv(4096)
        conn.sendall(said)

    with server(serve) as port:
        done = run(probe, port, "http", 1, 9, 1)
    assert done.returncode == 1
    assert why in done.stderr


def test_a_head_that_comes_in_pieces_is_heard(probe):
    def serve(conn):
        for _ in range(2):
            conn.recv(4096)
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab":
                conn.sendall(bytes([byte]))
            time.sleep(0.01)
            conn.sendall(b"c")

    with server(serve) as port:
        assert len(measured(probe, port, "http", 2, 3, 1)["ns"]) == 2


@pytest.fixture(scope="module")
def http():
    """The HTTP server; yields its port."""
    port = free_port()
    reader, writer = os.pipe()
    argv = [str(sandboxes.http_program()), str(writer), "127.0.0.1", str(port)]
    with subprocess.Popen(argv, pass_fds=(writer,)) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"\n"
        os.close(reader)
        yield port
        process.terminate()


def asked(port, request):
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nxx"


def test_the_server_answers_requests_one_behind_the_other(http):
    request = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    assert asked(http, request) == ANSWER
    assert asked(http, request * 3) == ANSWER * 3


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /2 HTTP/1.1\r\n\r\n",
        b"GET /99999999999999999999 HTTP/1.1\r\n\r\n",
        b"GET /2x HTTP/1.1\r\n\r\n",
        b"\0" * 4096,
        b"GET /2 " + b"x" * 5000,
        b"",
    ],
    ids=["method", "size", "no number", "zeros", "long", "nothing"],
)
def test_the_server_ends_what_it_does_not_understand_and_lives(http, request_):
    with contextlib.suppress(OSError):  # it was quicker than we
        assert asked(http, request_) == b""
    assert asked(http, b"GET /2 HTTP/1.1\r\n\r\n") == ANSWER


def test_the_program_and_the_server_fit_each_other(http, probe):
    result = measured(probe, http, "http", 100, 1024, 16)
    assert len(result["ns"]) == 100
    assert len(measured(probe, http, "http", 3, 1 << 20, 2)["ns"]) == 3


def test_figures_are_chosen_by_name_and_several_by_one():
    assert sections.parse("latency,bulk") == (Group.LATENCY, Group.BULK)
    assert not {Group.BULK, Group.RESTART} & set(sections.parse("load"))
    assert sections.parse("load,latency,rates")[0] is Group.LATENCY
    assert sections.parse("all") == tuple(Group)
    assert {group for group, _ in sections.SECTIONS} == set(Group)
    with pytest.raises(
        FastpathError, match="no figures 'lode'; there are latency, bulk,"
    ):
        sections.parse("latency,lode")


def test_each_figure_has_a_key_of_its_own_and_load_has_no_targets():
    assert len(BY_KEY) == len(METRICS)
    load = [m for m in METRICS if m.group not in {Group.LATENCY, Group.BULK}]
    assert all(metric.bound is None for metric in load)
    assert {f"crr_{n}" for n in FLIGHTS} <= {metric.key for metric in load}


def test_memory_of_a_process_is_what_it_has_at_least():
    resident, proportional = cpu.memory_mb(os.getpid())
    assert 5 < proportional <= resident < 2000


def test_kernel_threads_time_does_not_run_back_when_one_ends(monkeypatch, tmp_path):
    def thread(pid, parent, ns):
        (tmp_path / pid).mkdir(exist_ok=True)
        fields = ["S", str(parent), *["0"] * 17, f"{pid}00"]  # to the 22nd, its start
        (tmp_path / pid / "stat").write_text(f"{pid} (k) w) {' '.join(fields)}\n")
        (tmp_path / pid / "schedstat").write_text(f"{ns} 0 1\n")

    monkeypatch.setattr(cpu, "Path", lambda _: tmp_path)
    for pid, parent, ns in (("2", 0, 5), ("30", 2, 1000), ("31", 2, 50), ("9", 1, 7)):
        thread(pid, parent, ns)
    kernel = cpu.KernelTime()
    assert kernel.ns() == 1055
    shutil.rmtree(tmp_path / "30")
    thread("31", 2, 80)
    assert kernel.ns() == 1085
