"""Which engine each VM is on: groups as a whole, the load spread."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_user.engine import MAX_DEVICES
from vhost_user.vsock.cli import main, parse
from vhost_user.vsock.config import ConfigError, VmConfig, share_descriptors
from vhost_user.vsock.placement import place


def groups(*texts):
    """One VM a text, as `--groups` has it."""
    return [frozenset(text.split("+")) for text in texts]


def test_vms_that_groups_join_are_on_one_engine():
    assert place(groups("a", "b", "a+c", "b", "c", "d"), 2) == [0, 1, 0, 1, 0, 1]


def test_vms_are_joined_by_way_of_others():
    assert len(set(place(groups("a", "b", "c", "a+b", "b+c"), 4))) == 1


def test_the_largest_group_is_placed_first_and_then_the_least_loaded_engine_serves():
    placed = place(groups("a", "b", "b", "b", "c", "d"), 2)
    assert placed == [1, 0, 0, 0, 1, 1]


def test_vms_without_groups_are_spread():
    placed = place([frozenset()] * 10, 4)
    assert sorted(placed.count(engine) for engine in range(4)) == [2, 2, 3, 3]


def test_the_engines_that_are_used_are_the_lowest():
    assert set(place(groups("a", "b"), 5)) == {0, 1}


def test_a_group_larger_than_an_engine_is_refused():
    with pytest.raises(ConfigError, match=r"1025 VMs .*'a' .* 1024: give .*groups"):
        place(groups(*["a"] * (MAX_DEVICES + 1)), 2)


def test_more_vms_than_all_engines_take_are_refused():
    vms = groups(*(f"g{i // 10}" for i in range(2 * MAX_DEVICES)))
    with pytest.raises(ConfigError, match=r"1 engines don't suffice.*--threads"):
        place(vms, 1)
    assert place(vms, 3).count(0) <= MAX_DEVICES


# ---- options ----


def vms(*names):
    return [
        f"--vm=guest-cid={3 + i},socket=/{i},groups={x}" for i, x in enumerate(names)
    ]


def test_one_engine_is_the_default():
    options = parse(vms("a", "b"))
    assert (options.threads, options.placed) == (1, [0, 0])


def test_engines_by_option():
    options = parse([*vms("a", "b"), "--threads=2"])
    assert (options.threads, options.placed) == (2, [0, 1])


def test_engines_by_file(tmp_path):
    file = tmp_path / "vms.yaml"
    file.write_text("threads: 2\nvms:\n- {socket: /a, groups: a}\n")
    assert parse(["--config", str(file)]).threads == 2
    with pytest.raises(ConfigError, match="threads is given twice: --threads, "):
        parse(["--config", str(file), "--threads=2"])


def test_vms_whose_sockets_alone_are_too_many_descriptors_are_refused():
    few = [VmConfig(socket=Path(f"/{cid}"), guest_cid=cid) for cid in range(3, 103)]
    assert len(share_descriptors(few, 164)) == 100
    with pytest.raises(ConfigError, match=r"164 open files .* most 163 .*ulimit -Hn"):
        share_descriptors(few, 163)


@pytest.mark.parametrize("text", ["0", "65", "x", ""])
def test_a_number_of_engines_is_checked(tmp_path, text):
    with pytest.raises(ConfigError, match=r"^--threads: "):
        parse([*vms("a"), f"--threads={text}"])
    file = tmp_path / "vms.yaml"
    file.write_text(f"vms: []\nthreads: {text}\n")
    with pytest.raises(ConfigError, match=f"^{file}:2: threads: "):
        parse(["--config", str(file)])


def test_engines_are_given_once_in_a_file(tmp_path):
    file = tmp_path / "vms.yaml"
    file.write_text("threads: 1\nthreads: 1\nvms: []\n")
    with pytest.raises(ConfigError, match=f"^{file}:2: threads: is given twice"):
        parse(["--config", str(file)])


def test_engines_that_one_group_leaves_without_vms_are_said(tmp_path, caplog):
    here = tmp_path / "missing"
    argv = [f"--vm=guest-cid={cid},socket={here}/{cid}" for cid in (3, 4)]
    assert main([*argv, "--threads=2"]) == 2  # no such folder: it ends at once
    assert "threads is 2, but one engine has all 2 VMs" in caplog.text
    assert "(groups)" in caplog.text
