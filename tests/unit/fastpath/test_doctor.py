"""The doctor says what it found, and for each "no" the command that fixes it."""

from __future__ import annotations

import json

import pytest

from fastpath.commands import doctor
from fastpath.commands.doctor import Check, Need
from fastpath.datapath import netns
from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.spec import Accelerator


def look(function, hint="the hint"):
    return doctor._Look("thing", Need.RUN, function, hint).answer()


def raising(error):
    def function():
        raise error

    return function


def test_what_is_there_needs_no_hint():
    found = Check("thing", ok=True, detail="1.0", hint=None, need=Need.RUN)
    assert look(lambda: "1.0") == found


@pytest.mark.parametrize(
    ("error", "detail", "hint"),
    [
        pytest.param(FastpathError("w", "why", "its own"), "why", "its own", id="own"),
        pytest.param(FastpathError("w", "why"), "why", "the hint", id="no-hint"),
        pytest.param(OSError(2, "No such file"), "[Errno 2] No such file", "the hint"),
        pytest.param(ImportError("no module"), "no module", "the hint", id="import"),
        pytest.param(OSError("two\n lines"), "two lines", "the hint", id="lines"),
    ],
)
def test_what_is_missing_brings_why_and_the_hint(error, detail, hint):
    found = look(raising(error))
    assert (found.ok, found.detail, found.hint) == (False, detail, hint)


def test_a_missing_program_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = look(doctor._program("qemu-system-x86_64", "--version"))
    assert not found.ok
    assert "qemu-system-x86_64 is not installed" in found.detail


@pytest.fixture
def unprivileged(monkeypatch):
    monkeypatch.setattr(netns, "may_configure", lambda: False)
    monkeypatch.setattr(accel, "choose", lambda _: Accelerator("tcg", "no /dev/kvm"))


def test_a_host_that_lets_nobody_configure_networks_says_so_once(
    unprivileged, monkeypatch
):
    monkeypatch.setattr(netns, "user_namespace_problem", lambda: "not permitted")
    missing = {c.name: c for c in doctor.checks() if not c.ok}
    assert missing["network rights"].hint == netns.USER_NAMESPACE_HINT
    assert "TPROXY" not in missing


def test_kvm_is_not_tried_without_an_image(monkeypatch, tmp_path):
    tried: list[str] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accel, "choose", tried.append)
    with pytest.raises(OSError, match="not in"):
        doctor._kvm()
    assert tried == ["kvm"]


@pytest.fixture
def built(monkeypatch, tmp_path):
    """An image that was built, and is not what its sources say now."""
    (tmp_path / "vsock-fastpath" / "images" / "base.1").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accel, "choose", lambda _want: None)
    monkeypatch.setattr(images, "cached", lambda _name: None)
    monkeypatch.setattr(images, "build", lambda _name: pytest.fail("it takes minutes"))


def test_no_image_is_built_to_try_kvm(built, monkeypatch):
    monkeypatch.setattr(accel, "remembered", lambda: None)
    with pytest.raises(FastpathError, match=r"no guest was tried.*image build base"):
        doctor._kvm()


@pytest.mark.parametrize("failure", ["", "a guest under kvm died: no MSR"])
def test_what_is_known_of_kvm_is_told_without_an_image(built, monkeypatch, failure):
    monkeypatch.setattr(accel, "remembered", lambda: failure)
    if not failure:
        assert doctor._kvm() == accel.BOOTED
    else:
        with pytest.raises(FastpathError, match=failure):
            doctor._kvm()


def test_every_check_that_is_needed_has_a_hint(unprivileged, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = [c for c in doctor.checks() if not c.ok and c.need]
    assert missing
    assert [c.name for c in missing if not c.hint] == []


def test_answers_survive_the_way_from_the_user_namespace():
    answers = [
        Check("TPROXY", ok=False, detail="lacks", hint="modprobe", need=Need.COMPARE),
        Check("veth", ok=True, detail="present", hint=None, need=Need.ALL),
    ]
    assert doctor.from_json(doctor.to_json(answers)) == answers


def test_for_programs_it_is_json(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "checks", lambda: [look(lambda: "1.0"), look(raising(OSError("none")))]
    )
    status = doctor.run(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (status, [each["ok"] for each in found]) == (1, [True, False])
    assert found[1] | {"name": ""} == {
        "name": "",
        "ok": False,
        "detail": "none",
        "hint": "the hint",
        "need": ["run"],
    }
