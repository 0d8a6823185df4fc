"""The accelerator: kvm is believed only after a guest has lived under it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.image.images import Image
from fastpath.vm import accel
from tests.support.limits import LIMIT_S

LIVES = 'echo "init: alive" > "$console"; exec sleep 600'
DIES = "echo 'qemu: no MSR' >&2; exit 1"
HANGS = "exec sleep 600"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with a /dev/kvm, a cache of its own, and a QEMU of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vsock-fastpath").mkdir()
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(accel, "PROBE_S", LIMIT_S)
    image = Image("base", tmp_path / "kernel", tmp_path / "initramfs", "6.1")
    monkeypatch.setattr(images, "build", lambda name: image)
    return tmp_path


def qemu(host, behaviour):
    """A program that counts its starts and does as a QEMU would."""
    program = host / "qemu"
    program.write_text(
        f"""#!/bin/sh
        test "$1" = --version && exec echo 7.2
        echo started >> {host}/starts
        for each; do case $each in file,id=console,path=*)
        console=${{each##*path=}};; esac; done
        {behaviour}
        """
    )
    program.chmod(0o755)
    return str(program)


def test_kvm_is_taken_when_a_guest_lives_under_it(host):
    assert accel.choose("auto", qemu=qemu(host, LIVES)).kind == "kvm"


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        pytest.param(DIES, "died: qemu: no MSR", id="dies"),
        pytest.param(HANGS, "did not boot within", id="hangs"),
    ],
)
def test_tcg_takes_its_place_and_says_why(host, behaviour, why, monkeypatch):
    if behaviour == HANGS:
        monkeypatch.setattr(accel, "PROBE_S", 0.5)
    chosen = accel.choose("auto", qemu=qemu(host, behaviour))
    assert chosen.kind == "tcg"
    assert why in chosen.reason


@pytest.mark.parametrize("behaviour", [LIVES, DIES])
def test_the_answer_is_kept(host, behaviour):
    program = qemu(host, behaviour)
    assert accel.choose("auto", qemu=program) == accel.choose("auto", qemu=program)
    assert (host / "starts").read_text() == "started\n"


def test_another_qemu_is_asked_again(host):
    accel.choose("auto", qemu=qemu(host, LIVES))
    assert accel.choose("auto", qemu=qemu(host, DIES)).kind == "kvm"  # same version
    program = Path(qemu(host, DIES))
    program.write_text(program.read_text().replace("7.2", "10.0"))
    assert accel.choose("auto", qemu=str(program)).kind == "tcg"


def test_a_damaged_answer_is_asked_for_again(host):
    (host / "vsock-fastpath" / "kvm.json").write_text("[]")
    assert accel.choose("auto", qemu=qemu(host, LIVES)).kind == "kvm"
    assert json.loads((host / "vsock-fastpath" / "kvm.json").read_text())["key"]


def test_nothing_is_started_without_a_device(host):
    (host / "kvm").unlink()
    chosen = accel.choose("auto", qemu=qemu(host, LIVES))
    assert (chosen.kind, chosen.reason) == ("tcg", f"there is no {host}/kvm")
    assert not (host / "starts").exists()


@pytest.mark.parametrize("want", ["kvm", "tcg"])
def test_what_is_asked_for_is_taken_at_its_word(host, want):
    assert accel.choose(want, qemu=qemu(host, DIES)).kind == want
    assert not (host / "starts").exists()


def test_kvm_without_a_device_is_an_error_that_can_be_fixed(host):
    (host / "kvm").unlink()
    with pytest.raises(FastpathError, match=r"there is no .*kvm; hint: --accel tcg"):
        accel.choose("kvm", qemu=qemu(host, LIVES))


def test_a_missing_qemu_is_named_with_its_package():
    with pytest.raises(FastpathError, match=r"no-qemu.*apt-get install qemu"):
        accel.choose("auto", qemu="no-qemu")


def test_an_unknown_accelerator_is_refused(host):
    with pytest.raises(FastpathError, match="accelerator xen"):
        accel.choose("xen", qemu=qemu(host, LIVES))


def test_an_answer_that_cannot_be_kept_is_asked_for_again(host, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    program = qemu(host, LIVES)
    assert accel.choose("auto", qemu=program).kind == "kvm"
    assert accel.choose("auto", qemu=program).kind == "kvm"
    assert (host / "starts").read_text() == "started\n" * 2


def test_two_that_ask_at_once_both_get_an_answer(host, monkeypatch):
    """Both have written what they found before either gives it its name."""
    both = threading.Barrier(2)
    monkeypatch.setattr(accel, "_probe", lambda _qemu: None)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, after(both, getattr(Path, name)))
    program = qemu(host, LIVES)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda _: accel.choose("auto", qemu=program), range(2))
        assert [each.kind for each in found] == ["kvm", "kvm"]
    answers = host / "vsock-fastpath" / "kvm.json"
    assert list(answers.parent.iterdir()) == [answers]


def after(barrier, work):
    """`work`, begun when the other one begins, too."""

    def wait_and_work(*args):
        barrier.wait(LIMIT_S)
        return work(*args)

    return wait_and_work
