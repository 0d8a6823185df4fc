"""What programs see of a host, or of a vsock device, that is there no more.

They say it on the console, as there is no other way out then.
"""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi import service
from tests.support.limits import GUEST_LIMIT_S, wait_until
from tests.vm.world import ECHO, HOST4, LATE, open_world

pytestmark = pytest.mark.vm

PRELUDE = f"""
import errno, os, pathlib, select, socket, sys, threading, time

ECHO, LATE = ("{HOST4}", {ECHO}), ("{HOST4}", {LATE})
console = open("/dev/console", "w")

def result(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else "timeout"

def say(*words):
    print("lost:", *words, file=console, flush=True)

def attempt(to):
    sock = socket.socket()
    sock.setblocking(False)
    assert result(sock.connect, to) == "EINPROGRESS"
    return sock

def end_of(sock):
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    poll.poll()
    return errno.errorcode[sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]

def one():
    sock = socket.socket()
    return result(sock.connect, ECHO)

live = socket.create_connection(ECHO)
assert live.send(b"x") == 1 and live.recv(1) == b"x"
late = attempt(LATE)
"""
HOST_GONE = """
live.settimeout(1)
say("ready")
say("late", end_of(late))
say("new", one())
say("live", result(live.send, b"x"), result(live.recv, 1))
live.close()
say("done")
"""
UNPLUGGED = """
init = pathlib.Path("/cg/init")
init.parent.mkdir()
assert os.system("mount -t cgroup2 cgroup /cg") == 0
init.mkdir()
(init / "cgroup.procs").write_text("1")
(init / "cgroup.freeze").write_text("1") # it ends the guest when its stream ends

driver = pathlib.Path("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport")
(device,) = [path.name for path in driver.iterdir() if path.name.startswith("virtio")]
server = socket.create_server(("0.0.0.0", 7293))
got = []
waits = threading.Thread(target=lambda: got.append(result(live.recv, 1)))
waits.start()
time.sleep(0.2)
(driver / "unbind").write_text(device)
waits.join()
say("live", *got, result(live.send, b"x"))
say("new", one())
say("late", end_of(late))
inside = socket.create_connection(("127.0.0.1", 7293))
say("inside", inside.send(b"x"), server.accept()[0].recv(1).decode())
(driver / "bind").write_text(device)
while (found := one()) == "ENETUNREACH":
    time.sleep(0.1)
say("again", found)
for sock in (live, late, server, inside):
    sock.close()
say("done")
pathlib.Path("/proc/sysrq-trigger").write_text("b")
"""


@pytest.fixture
def world(apps_image, accelerator, namespace, monkeypatch):
    monkeypatch.setattr(service, "CONNECT_TIMEOUT_S", 10.0)
    with open_world(apps_image, accelerator, {}, namespace) as there:
        yield there


def said(world):
    """What the program has said, by its first word."""
    lines = world.console().splitlines()
    words = [line.split("lost: ", 1)[1].split() for line in lines if "lost: " in line]
    return {word: rest for word, *rest in words}


def test_a_host_that_goes_away_keeps_nobody_waiting(world):
    _, guest = world.vm()
    command = ["python3", "-c", PRELUDE + HOST_GONE]
    run = world.begin(guest.run(command, tsi=True))
    try:
        wait_until(lambda: "ready" in said(world) or run.done(), limit_s=GUEST_LIMIT_S)
        world.call(world.backend.close())
        wait_until(lambda: "done" in said(world), limit_s=GUEST_LIMIT_S)
    finally:
        run.cancel()
    found = said(world)
    assert found["late"] == ["ETIMEDOUT"]
    assert found["new"] == ["ETIMEDOUT"]
    assert found["live"] == ["1", "timeout"]


def test_a_device_that_is_unplugged_keeps_nobody_waiting(world):
    """And serves again when it is there again."""
    with pytest.raises(FastpathError):
        world.run("python3", "-c", PRELUDE + UNPLUGGED)
    found = said(world)
    assert found["live"] == ["ECONNRESET", "EPIPE"]
    assert found["new"] == ["ENETUNREACH"]
    assert found["late"] == ["ETIMEDOUT"]
    assert found["inside"] == ["1", "x"]
    assert found["again"] == ["None"]
    assert "done" in found
