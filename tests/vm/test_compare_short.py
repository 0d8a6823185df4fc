"""`fastpath compare`, the short form: it measures, reports and cleans up."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fastpath.datapath import netns
from fastpath.image import images
from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S

pytestmark = [pytest.mark.vm, pytest.mark.netns]

COMPARE = (sys.executable, "-m", "fastpath", "compare", "--quick")


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def require_namespaces():
    if not netns.may_configure() and (problem := netns.user_namespace_problem()):
        pytest.skip(problem)


def compare(*options):
    return subprocess.run(
        [*COMPARE, *options],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )


def children(tmp_path):
    """Command lines of this test's comparison: those processes have its TMPDIR."""
    ours = f"TMPDIR={tmp_path}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if ours in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found


def test_both_paths_are_measured_and_reported(tmp_path):
    require_namespaces()
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html")}
    done = compare("--json", str(files["json"]), "--html", str(files["html"]))
    assert done.returncode == 0, done.stderr
    report = json.loads(files["json"].read_text())
    assert report["rounds"] == 3
    assert report["geneve"] is None
    for path in report["paths"].values():
        assert path["connect_us"]["n"] == 3 * 40
        assert path["rtt_64_us"]["p50"] > 0
        assert path["up_mb_per_s"] > 0
        assert path["host_cpu_us_per_rtt"] > 0
        assert path["through"]["rtt_64_us"]["p50"] > path["rtt_64_us"]["min"]
    assert set(report["ratios"]["tsi/inpod-l3forwarding"]) >= {
        "connect",
        "rtt_64",
        "up",
    }
    assert "tsi/inpod-l3forwarding" in done.stdout
    assert files["html"].read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


def test_the_fast_path_alone_needs_no_namespaces(tmp_path):
    file = tmp_path / "report.json"
    done = compare("--paths", "tsi", "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert set(report["paths"]) == {"tsi"}
    assert report["geneve"] is None
    assert report["ratios"] == {}


@pytest.mark.parametrize("name", ["plain", "macvtap", "passt", "ambient-geneve"])
def test_another_standard_path_is_measured(name, tmp_path):
    require_namespaces()
    file = tmp_path / "report.json"
    done = compare("--rounds", "2", "--paths", name, "--json", str(file))
    assert done.returncode == 0, done.stderr
    path = json.loads(file.read_text())["paths"][name]
    assert path["up_mb_per_s"] > 0
    assert path["through"]["rtt_64_us"]["p50"] > 0
    assert children(tmp_path) == []


def test_a_sidecar_is_measured_where_the_guest_has_iptables(tmp_path):
    require_namespaces()
    file = tmp_path / "report.json"
    variants = ("--variant", "own", "--variant", "bare:image=base")
    paths = ("--rounds", "2", "--paths", "tsi,sidecar", *variants)
    done = compare(*paths, "--json", str(file))
    assert done.returncode == 2, done.stderr
    report = json.loads(file.read_text())
    assert list(report["paths"]) == ["tsi@own", "sidecar@own"]
    for path in report["paths"].values():
        assert path["up_mb_per_s"] > 0
        assert path["through"]["rtt_64_us"]["p50"] > 0
    own, bare = report["variants"]
    assert own["failure"] == ""
    assert "its image has to have iptables" in bare["failure"]
    assert (
        "own, sidecar: 2 connections, both led to the sidecar in the guest"
        in (report["setting"]["checks"])
    )
    assert children(tmp_path) == []


def test_several_standard_paths_are_measured_one_after_the_other(tmp_path):
    require_namespaces()
    file = tmp_path / "report.json"
    names = ("tsi", "plain", "macvtap", "tsi+unix")  # as the parts come
    more = ("--rounds", "2", "--json", str(file))
    done = compare("--paths", ",".join(names), *more)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert list(report["paths"]) == list(names)
    assert report["left_out"] == []
    assert set(report["ratios"]) == {"tsi/plain", "tsi/macvtap", "tsi+unix/tsi"}
    fast = {name for name in report["samples"] if name.startswith("tsi beside ")}
    assert fast == {f"tsi beside {name}" for name in names[1:]}
    assert "part 2 of 3: macvtap" in done.stderr
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


def test_a_programs_own_vsock_is_measured_over_both_devices(tmp_path):
    file = tmp_path / "report.json"
    names = ("tsi", "vsock", "vsock-rust-vmm")
    more = ("--rounds", "2", "--json", str(file))
    done = compare("--paths", ",".join(names), *more)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert set(report["paths"]) == set(names)
    for name in names[1:]:
        path = report["paths"][name]
        assert path["tcp_ip_stacks"] == []
        assert path["up_mb_per_s"] > 0
        assert path["through"]["rtt_64_us"]["p50"] > 0
        assert f"tsi/{name}" in report["ratios"]
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


def test_back_ends_are_measured_as_variants(tmp_path):
    file = tmp_path / "report.json"
    rust = ("--variant", "rust:backend=vhost-device-vsock", "--json", str(file))
    done = compare("--rounds", "2", "--paths", "vsock", "--variant", "ours", *rust)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert [each["failure"] for each in report["variants"]] == ["", ""]
    assert list(report["differences"]) == ["vsock@rust/vsock@ours"]
    # rust-vmm's reads a packet from guest memory before it writes it.
    ours, theirs = (report["paths"][f"vsock@{name}"] for name in ("ours", "rust"))
    assert len(theirs["copies_up"]) == len(ours["copies_up"]) + 1
    assert children(tmp_path) == []


def test_hand_offs_are_measured_beside_the_fast_path(tmp_path):
    require_namespaces()
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "html")}
    names = ["tsi", "tsi+inpod", "tsi+ring", "tsi+embedded"]
    done = compare(
        *("--paths", ",".join(names)),
        *("--json", str(files["json"]), "--html", str(files["html"])),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(files["json"].read_text())
    assert list(report["paths"]) == names
    assert list(report["ratios"]) == [f"{name}/tsi" for name in names[1:]]
    for name, path in report["paths"].items():
        assert path["connect_us"]["n"] == 3 * 40, name
        assert path["down_mb_per_s"] > 0, name
        assert path["through"]["rtt_64_us"]["n"] == 3 * 200, name
        assert path["tcp_connections"], name
        if report["setting"]["calls_note"].startswith("System calls a round trip"):
            assert path["system_calls_per_rtt"]["ztunnel"]["epoll_wait"] > 0, name
    assert "tsi+embedded" in files["html"].read_text()
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


def test_without_a_right_the_paths_that_need_none_run(tmp_path):
    """As nobody in particular: even root has no capabilities here."""
    file = tmp_path / "report.json"
    bare = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--")
    tried = subprocess.run([*bare, *netns.UNSHARE, "--", "true"], check=False)
    names = "tsi,plain,passt,tsi+unix" if tried.returncode else "tsi,tsi+unix"
    paths = ("--rounds", "2", "--paths", names)
    done = subprocess.run(
        [*bare, *COMPARE, *paths, "--json", str(file)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == (2 if "plain" in names else 0), done.stderr
    report = json.loads(file.read_text())
    assert set(report["paths"]) == {"tsi", "tsi+unix"}
    if "plain" not in names:  # who is not root has a right without a capability
        return
    plain, passt = report["left_out"]
    assert (plain["name"], passt["name"]) == ("plain", "passt")
    assert "sysctl -w user.max_user_namespaces" in plain["hint"]
    assert "plain, passt were left out: " in " ".join(done.stdout.split())


def test_a_new_mesh_and_a_restart_under_load_are_measured(tmp_path):
    require_namespaces()
    file = tmp_path / "report.json"
    names = ("tsi", "inpod-l3forwarding", "tsi+ring")
    figures = ("--rounds", "2", "--figures", "policy,restart")
    done = compare("--paths", ",".join(names), *figures, "--json", str(file))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    found = {name: path["figures"] for name, path in report["paths"].items()}
    for name in names:
        assert found[name]["policy_took"]["median"] > 0
        assert found[name]["policy_gap"]["median"] > 0
    # Its microVM's device is in the process that would have to be restarted.
    assert "restart_gap" not in found["tsi"]
    for name in names[1:]:
        assert found[name]["restart_took"]["median"] > 500, "ms that it is away"
        assert found[name]["restart_gap"]["median"] > 0
        assert found[name]["restart_broken"]["median"] == 16
    pair = report["ratios"]["tsi/inpod-l3forwarding"]
    assert set(pair) == {"policy_gap"}
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


def script(file, *lines):
    file.write_text("\n".join(("#!/bin/sh -e", *lines, "")))
    file.chmod(0o755)
    return file


def test_each_key_of_a_variant_reaches_what_it_names(tmp_path):
    """By programs that write down what they are started with."""
    file, told, settings = (tmp_path / name for name in ("json", "told", "settings"))
    kernel = tmp_path / "bzImage"
    shutil.copy(images.build("base").kernel, kernel)
    qemu = script(
        tmp_path / "qemu", f'echo "$*" >>{told}', 'exec qemu-system-x86_64 "$@"'
    )
    ztunnel = script(
        tmp_path / "ztunnel",
        'test "$1 $2" = "ztunnel --config"',
        f'cp "$3" {settings}',
        f'exec {sys.executable} -m fastpath "$@"',
    )
    other = f"kernel={kernel},qemu={qemu},ztunnel={ztunnel},poll-us=7"
    done = compare(
        *("--rounds", "2", "--paths", "tsi", "--json", str(file)),
        *("--variant", "base", "--variant", f"other:{other}"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert [each["failure"] for each in report["variants"]] == ["", ""]
    assert list(report["differences"]) == ["tsi@other/tsi@base"]
    assert f"-kernel {kernel} " in told.read_text()
    assert yaml.safe_load(settings.read_text())["pollUs"] == 7
    assert children(tmp_path) == []


def test_a_variant_that_does_not_boot_is_left_out_and_its_console_stays(tmp_path):
    file = tmp_path / "report.json"
    done = compare(
        *("--paths", "tsi", "--json", str(file)),
        *("--variant", "base", "--variant", "agent:guest.cmdline=tsi=agent"),
        *("--variant", "bad:guest.cmdline=rdinit=/nowhere"),
    )
    assert done.returncode == 2, done.stderr
    report = json.loads(file.read_text())
    assert list(report["paths"]) == ["tsi@base", "tsi@agent"]
    (pair,) = report["differences"]
    assert pair == "tsi@agent/tsi@base"
    base, agent, bad = report["variants"]
    assert base["sockets"] == "module"
    assert agent["sockets"].startswith("agent")
    console = re.search(r"\(console log: ([^)]+)\)", bad["failure"])
    assert console, bad["failure"]
    assert Path(console[1]).read_text(errors="replace").strip()
    assert "bad" in done.stdout
    assert children(tmp_path) == []


def test_ctrl_c_writes_the_rounds_that_are_whole(tmp_path):
    file = tmp_path / "report.json"
    process = subprocess.Popen(
        [*COMPARE[:-1], "--paths", "tsi", "--rounds", "500", "--json", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 1 of "):  # of 501, where the first was disturbed
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGINT, said
    report = json.loads(file.read_text())
    assert report["rounds"] >= 1
    assert any(each.endswith("rounds: interrupted") for each in report["warnings"])
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []


@pytest.mark.parametrize(
    ("signo", "paths"),
    [
        (signal.SIGINT, "tsi,ambient-geneve"),
        (signal.SIGTERM, "tsi,ambient-geneve"),
        (signal.SIGINT, "tsi,tsi+inpod,tsi+unix"),
    ],
)
def test_a_signal_stops_everything(signo, paths, tmp_path):
    require_namespaces()
    process = subprocess.Popen(
        [*COMPARE, "--paths", paths],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        if any(line.startswith("qemu") for line in children(tmp_path)):
            break
        time.sleep(0.05)
    time.sleep(1.5)  # it boots
    process.send_signal(signo)
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signo, said
    assert "Traceback" not in said
    assert list(tmp_path.glob("fastpath-*")) == []
    assert children(tmp_path) == []
