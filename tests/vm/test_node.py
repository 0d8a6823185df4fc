"""A node whose kernel has all tunnels: tests of tests/netns, on another kernel.

The kernel is Debian's user-mode Linux, a process; the node's files are this host's own,
by hostfs, so that the same code runs there. It has no iptables in it, so whole paths
don't.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from fastpath.image import images
from fastpath.image.programs import unpack
from tests.support import programs
from tests.support.limits import GUEST_LIMIT_S
from tests.support.pages import ROOT
from tests.support.uml import UmlSpec
from tests.vm.conftest import boot, vsock_backend

pytestmark = pytest.mark.vm

INSIDE = """
mount -t hostfs none /host -o /
for kind in proc sysfs; do mount -t $kind none /host/${kind%fs}; done
for folder in run dev; do mount -t tmpfs none /host/$folder; done
mkdir /host/run/tmp /host/dev/net; mknod /host/dev/net/tun c 10 200
mknod /host/dev/null c 1 3
mknod /host/dev/urandom c 1 9
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
export TMPDIR=/run/tmp  # the checkout may be in /tmp
exec chroot /host sh -ec 'cd "$1"; shift; exec "$@"' sh "$@"
"""
TUNNELS = "tests/netns/test_tunnels.py"
LABS = "tests/netns/test_geneve_labs.py"
KINDS = ("geneve", "geneve-bpf", "vxlan", "gre", "gretap", "ipip", "sit")


def run(vm_dir, tests):
    """Run tests on the node; return what pytest said."""
    spec = UmlSpec(
        image=images.build("node"),
        start=unpack(programs.UML).start,
        vsock_socket=vm_dir / "vhost",
        console=vm_dir / "console",
        memory_mib=512,
    )
    pytest_ = (sys.executable, "-m", "pytest", "-v", "-n0", "-pno:cacheprovider")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    command = (
        "env",
        f"XDG_CACHE_HOME={home}",
        *pytest_,
        "--basetemp=/run/tmp/b",
        tests,
    )
    said = bytearray()

    async def work(_machine, guest):
        argv = ["sh", "-ec", INSIDE, "sh", str(ROOT), *command]
        return await guest.run(argv, tsi=False, stdout=said.extend, stderr=said.extend)

    async def bounded():
        async with asyncio.timeout(GUEST_LIMIT_S), vsock_backend(vm_dir):
            return await boot(spec, vm_dir / "vsock", work)

    status = asyncio.run(bounded())
    text = said.decode(errors="replace")
    assert status == 0, text
    return text


def test_each_kind_of_tunnel_carries_a_connection(vm_dir):
    text = run(vm_dir, TUNNELS)
    passed = set(re.findall(r"::test_bytes_arrive\S*\[(\S+)\] PASSED", text))
    mixed = {"geneve/geneve-bpf", "geneve-bpf/geneve"}
    assert passed == {f"{kind}/{kind}" for kind in KINDS} | mixed, text
    by_ipv6 = set(re.findall(r"::test_ipv6_arrives\S*\[(\S+)\] PASSED", text))
    assert by_ipv6 == {f"{kind}/{kind}" for kind in KINDS[:5]} | mixed, text
    assert re.search(r"::test_isatap\S+ PASSED", text), text


def test_each_geneve_lab_does_what_its_page_says(vm_dir):
    text = run(vm_dir, LABS)
    passed = set(re.findall(r"::test_a_lab_does\S*\[(\S+)\] PASSED", text))
    assert passed == {"bridge", "container", "mtu", "options", "point-to-point"} | {
        "ports",
        "veth-bridge",
    }
    assert " skipped" not in text.splitlines()[-1]
