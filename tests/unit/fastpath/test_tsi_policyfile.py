"""Policy files: what they say, what is wrong with them, and what a change does."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi.policy import Limits, Ports, SandboxPolicy
from fastpath.tsi.policyfile import Egress, PolicyFile, PolicyWatch, parse
from tests.support.limits import LIMIT_S
from vhost_user.decode import camel_case

DOCS = Path(__file__).parents[3] / "docs"


def denial(policy, host, port=80):
    found = policy.egress.check((host, port))
    return found and (found.reason, found.error)


def test_the_documented_example_is_understood_in_full():
    example = DOCS / "tsi-policy.example.yaml"
    policy = parse(example.read_bytes(), str(example))
    assert denial(policy, "10.0.0.1") is None
    assert denial(policy, "10.0.0.99", 22) == ("deny_rule", errno.EACCES)
    assert denial(policy, "192.0.2.10", 81) == ("not_allowed", errno.EACCES)
    assert denial(policy, "2001:db8::1", 443) is None
    assert denial(policy, "127.0.0.1", 9090) is None
    assert denial(policy, "127.0.0.1", 9091) == ("loopback", errno.EACCES)
    published = [port for port in range(65536) if policy.published.covers(port)]
    assert published == [80, *range(8000, 8100)]
    assert policy.udp
    assert policy.limits == Limits(
        max_conns=10000,
        max_queued_bytes=64 << 20,
        accept_rate=5000,
        max_listeners=16,
        max_udp_sockets=256,
    )


@pytest.mark.parametrize("schema", [PolicyFile, Egress, Limits])
def test_every_key_is_in_the_example_and_in_the_page(schema):
    example = (DOCS / "tsi-policy.example.yaml").read_text()
    page = (DOCS / "tsi-policy.md").read_text()
    for field in dataclasses.fields(schema):
        key = camel_case(field.name)
        assert re.search(rf"\b{key}:", example), key
        assert re.search(rf"\b{key}\b", page), key


def test_an_empty_mapping_is_the_default_policy():
    policy = parse(b"{}", "p")
    assert policy.limits == SandboxPolicy().limits
    assert (policy.udp, policy.published) == (False, Ports())
    assert denial(policy, "192.0.2.1") is None


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("127.0.0.1", 80, "loopback"),
        ("::1", 80, "loopback"),
        ("::ffff:127.0.0.1", 80, "loopback"),
        ("169.254.1.1", 80, "link_local"),
        ("fe80::1", 80, "link_local"),
        ("169.254.169.254", 80, "link_local"),
        ("100.100.100.200", 80, "metadata"),
        ("fd00:ec2::254", 80, "metadata"),
        ("224.0.0.1", 80, "multicast"),
        ("ff02::1", 80, "multicast"),
        ("255.255.255.255", 80, "reserved"),
    ],
)
def test_the_default_policy_denies(host, port, reason):
    found = denial(parse(b"{}", "p"), host, port)
    assert found == (reason, errno.ECONNREFUSED)


ERRORS = {
    "empty": ("", "p:1: the file is empty"),
    "not-yaml": ("egress: [", "p:1: "),
    "unknown-key": (
        "udp: true\nports: [80]\n",
        "p:2: ports: unknown field; hint: use one of egress, published, udp, limits",
    ),
    "unknown-egress-key": (
        "egress:\n  permit: []\n",
        "p:2: egress.permit: unknown field; hint: use one of allow, deny, errno",
    ),
    "prefix": (
        "egress:\n  allow:\n  - 10.0.0.0/8\n  - 10.0.0.0/33\n",
        "p:4: egress.allow[1]: '10.0.0.0/33': ",
    ),
    "rule-hint": ("egress: {deny: [x]}", "hint: write PREFIX or PREFIX:PORTS"),
    "errno": (
        "egress: {errno: EPERM}",
        "must be one of ECONNREFUSED, EACCES, not EPERM; hint: write ECONNREFUSED or",
    ),
    "port-range": (
        "published: ['90-80']",
        "p:1: published[0]: '90-80': range '90-80' is upside down; hint: write a list",
    ),
    "port-0": ("published: [0]", "p:1: published[0]: '0': port 0 is none"),
    "rule-port-0": (
        "egress:\n  deny:\n  - 10.0.0.1:0\n",
        "p:3: egress.deny[0]: '10.0.0.1:0': port 0 is none; hint: write PREFIX",
    ),
    "never": (
        "egress:\n  deny: ['10.0.0.0/8']\n  allow:\n  - 10.0.0.0/7\n  - 10.1.0.0/16:80",
        "p:5: egress.allow[1]: can never match: deny[0], 10.0.0.0/8, denies what it",
    ),
    "never-by-two": (
        "egress:\n  deny: [10.0.0.0/9:1-80, 10.128.0.0/9]\n  allow: ['10.0.0.0/8:80']",
        "p:3: egress.allow[0]: can never match: deny[0]",
    ),
    "never-in-its-form": (
        "egress: {deny: ['10.0.0.0/8'], allow: ['64:ff9b::a00:1']}",
        "p:1: egress.allow[0]: can never match: deny[0]",
    ),
    "not-a-list": ("published: 80", "p:1: published: must be a list"),
    "switch": ("udp: maybe", "p:1: udp: must be true or false, not maybe; hint: write"),
    "limit-range": (
        "limits:\n  maxConns: 0\n",
        "p:2: limits.maxConns: must be a number from 1 to 16777216, not 0; hint: docs",
    ),
    "limits-contradict": (
        "limits:\n  maxConns: 1000\n  maxQueuedBytes: 100000\n",
        "p:3: limits.maxQueuedBytes: is less than 2048 for each of 1000 connections",
    ),
    "limits-hint": (
        "limits: {maxConns: 1000, maxQueuedBytes: 100000}",
        "; hint: raise it to 2048000, or lower maxConns",
    ),
    "twice": ("udp: true\nudp: false\n", "p:2: udp: is given twice"),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_file_line_and_what_fixes_it(text, message):
    with pytest.raises(FastpathError, match=re.escape(message)):
        parse(text.encode(), "p")


@pytest.mark.parametrize("exists", [True, False], ids=["no-file", "no-directory"])
def test_a_file_that_is_not_there_is_an_error_at_the_start(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "x"
    with pytest.raises(FastpathError, match="No such file or directory; hint: name a"):
        PolicyWatch(folder / "policy.yaml", name="box")


class Followed:
    """A watch, and what it said."""

    def __init__(self, path):
        self.path = path
        self.watch = PolicyWatch(path, name="box")
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.watch.start(self.said.put_nowait, self.said.put_nowait)

    async def next(self):
        async with asyncio.timeout(LIMIT_S):
            return await self.said.get()

    async def silent(self):
        """Whether all that happened so far was no news; a good change ends it."""
        self.path.write_text("udp: true  # the mark\n")
        return (await self.next()).udp and await self.next() is True


def follow(tmp_path, play, path=None):
    path = path or tmp_path / "policy.yaml"

    async def main():
        if not path.exists():
            path.write_text("{}")
        followed = Followed(path)
        with contextlib.closing(followed.watch):
            await play(followed)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["in-place", "rename"])
def test_a_change_is_noticed_and_applied(tmp_path, how):
    async def play(it):
        target = it.path if how == "in-place" else tmp_path / "new"
        target.write_text("published: [80]")
        target.rename(it.path)
        policy = await it.next()
        assert policy is it.watch.policy
        assert policy.published.covers(80)
        assert await it.next() is True

    follow(tmp_path, play)


def test_a_mounted_config_map_is_followed(tmp_path):
    """Kubernetes moves `..data`, a symlink to the directory of the files."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.yaml").write_text(f"udp: {str(name == 'b').lower()}")
    (tmp_path / "..data").symlink_to("a")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")

    async def play(it):
        (tmp_path / "tmp").symlink_to("b")
        (tmp_path / "tmp").rename(tmp_path / "..data")
        assert (await it.next()).udp

    follow(tmp_path, play)


def test_an_error_keeps_the_last_good_policy_and_says_so_once(tmp_path, caplog):
    async def play(it):
        good = it.watch.policy
        for _ in range(3):
            it.path.write_text("udp: maybe")
            os.utime(it.path)
        assert await it.next() is False
        assert it.watch.policy is good
        assert await it.silent()

    follow(tmp_path, play)
    kept = [r.getMessage() for r in caplog.records if "stays as it was" in r.message]
    path = tmp_path / "policy.yaml"
    text = "udp: must be true or false, not maybe; hint: write true or false"
    assert kept == [f"box: the policy stays as it was: {path}:1: {text}"]


def test_a_file_that_goes_and_comes_back_is_followed(tmp_path, caplog):
    async def play(it):
        it.path.unlink()
        assert await it.next() is False
        assert await it.silent()

    follow(tmp_path, play)
    assert "No such file or directory; hint: put it back" in caplog.text


def test_the_same_content_again_is_no_news(tmp_path, caplog):
    async def play(it):
        it.path.write_text("{}")
        (tmp_path / "other").write_text("udp: maybe")
        assert await it.silent()

    follow(tmp_path, play)


def test_a_change_between_reading_and_following_counts(tmp_path):
    async def main():
        path = tmp_path / "policy.yaml"
        path.write_text("{}")
        watch = PolicyWatch(path, name="box")
        path.write_text("udp: true")
        said: asyncio.Queue[Any] = asyncio.Queue()
        watch.start(said.put_nowait, lambda good: None)
        with contextlib.closing(watch):
            async with asyncio.timeout(LIMIT_S):
                assert (await said.get()).udp

    asyncio.run(main())


def test_a_reload_that_was_asked_for_always_says_how_it_went(tmp_path):
    async def play(it):
        it.watch.reload()
        assert await it.next() is it.watch.policy
        assert await it.next() is True
        it.path.unlink()
        assert await it.next() is False
        it.watch.reload()
        assert await it.next() is False

    follow(tmp_path, play)


def test_a_new_directory_in_place_of_the_old_one_is_found_by_a_reload(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()

    async def play(it):
        folder.rename(tmp_path / "old")
        folder.mkdir()
        it.path.write_text("udp: true")
        it.watch.reload()
        assert (await it.next()).udp
        assert await it.next() is True
        it.path.write_text("udp: false")
        assert not (await it.next()).udp

    follow(tmp_path, play, folder / "policy.yaml")
