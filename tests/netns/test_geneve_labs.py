"""docs/geneve: the commands of each lab, their output, and the packets on its wire.

Packets are decoded by scapy. A kernel without Geneve has no labs, so conftest.py leaves
them out: tests/vm/test_node.py runs these tests on one that has it.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import socket
import subprocess
import time
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Interface
from pathlib import Path

import pytest
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from fastpath.datapath import geneve
from fastpath.datapath.links import Links
from fastpath.datapath.netns import Namespace
from fastpath.datapath.probe import Capturing
from tests.support.limits import LIMIT_S
from tests.support.pages import ROOT

pytestmark = pytest.mark.netns

LABS = sorted(
    page.stem
    for page in (ROOT / "docs" / "geneve").glob("*.md")
    if page.stem != "README"
)
NAMED = Path("/run/netns")
VNI = 1001
ANSWER = re.compile(r"\A( {4}(?!# ).*\n)*")


def steps(page):
    """Commands of a page, each with the lines that it says of their output."""
    text = (ROOT / "docs" / "geneve" / f"{page}.md").read_text()
    for found in re.finditer(r"^ {4}# (.*)\n", text, re.MULTILINE):
        answer = ANSWER.match(text[found.end() :])
        assert answer
        yield found[1], [line[4:].strip() for line in answer[0].splitlines()]


def do(command):
    done = subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return [line.strip() for line in done.stdout.splitlines()]


@contextmanager
def lab(page, *, until=""):
    """Do what a page says, up to the command that begins with `until`."""
    made: list[Path] = []
    try:
        for command, answer in steps(page):
            if until and command.startswith(until):
                break
            before = set(NAMED.glob("*"))
            said = do(command)
            made += set(NAMED.glob("*")) - before
            for line in answer:
                assert fnmatch.filter(said, line), f"{command}: {line!r} not in {said}"
        with ExitStack() as stack:
            yield {
                file.name: stack.enter_context(closing(Namespace.at(file)))
                for file in made
            }
    finally:
        for file in made:
            do(f"ip netns delete {file.name}")


def sent(where, device, command):
    """What a device sends while a command runs, decoded."""
    with closing(Capturing(where, device)) as wire:
        do(command)
        return [Ether(frame) for out, frame in wire.frames() if out]


def tunnelled(frames):
    """Those that are Geneve's, by their UDP port."""
    return [f for f in frames if UDP in f and GENEVE in f]


@pytest.mark.parametrize("page", LABS)
def test_a_lab_does_what_its_page_says(page):
    before = set(NAMED.glob("*"))
    with lab(page):
        pass
    assert set(NAMED.glob("*")) == before


PING = "ip netns exec left ping -c 2 -i 0.2 -W 5 10.0.0.2"


def test_a_frame_is_in_ethernet_ip_udp_and_geneve():
    with lab("point-to-point", until="ip -n right link set tun down") as ends:
        frames = tunnelled(sent(ends["left"], "wire", PING))
    echoes = [frame for frame in frames if ICMP in frame]
    assert len(echoes) == 2
    for frame in echoes:
        assert (frame[IP].src, frame[IP].dst) == ("192.0.2.1", "192.0.2.2")
        assert frame[UDP].dport == 6081
        head = frame[GENEVE]
        assert (head.version, head.optionlen, head.oam, head.critical) == (
            0,
            0,
            0,
            0,
        )
        assert (head.proto, head.vni) == (0x6558, VNI)
        assert (head[IP].src, head[IP].dst) == ("10.0.0.1", "10.0.0.2")


def test_hosts_behind_bridges_are_in_the_tunnel_with_their_own_addresses():
    with lab("bridge") as ends:
        ping = "ip netns exec left-host ping -c 2 -i 0.2 10.0.0.2"
        frames = tunnelled(sent(ends["left"], "wire", ping))
    inner = {(f[GENEVE][Ether].src, f[GENEVE][Ether].dst) for f in frames}
    assert ("02:00:00:00:00:01", "02:00:00:00:00:02") in inner


def test_a_containers_frames_leave_by_the_nodes_socket():
    with lab("container") as ends:
        ping = "ip netns exec container ping -c 2 -i 0.2 10.0.0.2"
        frames = tunnelled(sent(ends["node"], "wire", ping))
    assert {frame[IP].src for frame in frames} == {"192.0.2.1"}
    assert {frame[GENEVE][IP].src for frame in frames if ICMP in frame} == {"10.0.0.1"}


def test_a_bridge_passes_the_tunnels_packets_as_they_are():
    with lab("veth-bridge") as ends:
        full = f"{PING} -s 1472 -M do"
        frames = tunnelled(sent(ends["node"], "port2", full))
    assert {len(frame) for frame in frames if ICMP in frame} == {14 + 1500 + 50}


def test_one_vni_goes_by_two_ports():
    with lab("ports") as ends:
        pings = " && ".join(f"ip netns exec left ping -c1 10.0.{n}.2" for n in (1, 2))
        frames = sent(ends["left"], "wire", pings)
    seen = {
        (frame[UDP].dport, GENEVE(bytes(frame[UDP].payload)).vni)
        for frame in frames
        if UDP in frame
    }
    assert seen == {(6081, 7), (6082, 7)}


def test_options_are_on_the_wire_as_they_were_set():
    with lab("options", until="tc -n left filter delete") as ends:
        frames = tunnelled(sent(ends["left"], "wire", PING))
    assert frames
    for frame in frames:
        head = frame[GENEVE]
        assert (head.vni, head.critical, head.oam, head.optionlen) == (VNI, 0, 0, 5)
        found = [(o.classid, o.type, o.length, o.data) for o in head.options]
        assert found == [
            (0x0102, 0x80, 1, bytes.fromhex("00880022")),
            (0x0102, 0x01, 2, bytes.fromhex("0011223344556677")),
        ]


def test_arp_crosses_the_tunnel():
    with lab("mtu", until="ip netns exec left ping") as ends:
        frames = tunnelled(sent(ends["left"], "wire", PING))
    asked = [frame[GENEVE][ARP] for frame in frames if ARP in frame[GENEVE]]
    assert ("10.0.0.1", "10.0.0.2") in {(arp.psrc, arp.pdst) for arp in asked}


def by_bpf(where, local, remote, address):
    tunnel = geneve.Tunnel(
        device="tun",
        address=IPv4Interface(address),
        vni=VNI,
        underlay="wire",
        local=local,
        remote=remote,
        remote_mac="02:00:00:00:00:01",
    )

    def make():
        with Links() as links:
            geneve.add(links, tunnel, "bpf")

    where.run(make)


def test_what_the_kernel_sends_and_what_ours_sends_differ_in_four_fields_only():
    """The source port, which is the flow's hash; identification, sum and DF."""
    found = []
    until = "ip -n right link set tun down"
    for kind in ("kernel", "bpf"):
        with lab("point-to-point", until=until) as ends:
            do("ip -n left link set wire address 02:00:00:00:00:0a")
            do("ip -n right link set wire address 02:00:00:00:00:01")
            if kind == "bpf":
                do("ip -n left link delete tun")
                by_bpf(ends["left"], "192.0.2.1", "192.0.2.2", "10.0.0.1/24")
            for there, mac, device in (
                ("192.0.2.2", "02:00:00:00:00:01", "wire"),
                ("10.0.0.2", "02:00:00:00:01:02", "tun"),
            ):
                do(f"ip -n left neighbour replace {there} lladdr {mac} dev {device}")
            udp = "ip netns exec left bash -c 'echo x >/dev/udp/10.0.0.2/7001'"
            frames = tunnelled(sent(ends["left"], "wire", udp))
            inner = [(f, f[GENEVE].payload) for f in frames]
            found.append([f for f, it in inner if UDP in it and it[UDP].dport == 7001])
    (kernels,), (ours,) = found
    for frame in (kernels, ours):
        assert frame is kernels or frame[UDP].sport >= 49152
        frame[UDP].sport = 0
        frame[IP].id = frame[IP].chksum = frame[IP].flags = 0
        frame[GENEVE][Ether].src = frame.src  # the device's, any
        inner = frame[GENEVE][IP]
        inner.id = inner.chksum = 0
        frame[GENEVE][UDP].chksum = frame[GENEVE][UDP].sport = 0
    assert bytes(ours) == bytes(kernels)


def echo(mac, head, number):
    """An echo request to the right end, behind a Geneve header of our own."""
    return bytes(
        Ether(src=mac["left", "wire"], dst=mac["right", "wire"])
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / UDP(sport=50000, dport=6081, chksum=0)
        / Raw(head)
        / Ether(src=mac["left", "tun"], dst=mac["right", "tun"])
        / IP(src="10.0.0.1", dst="10.0.0.2")
        / ICMP(id=number)
    )


def received(end, head):
    """Whether the right end takes a packet whose Geneve header is `head`.

    One that it does take is sent behind it: what has not come by then doesn't come.
    """
    ends, mac = end
    came: set[int] = set()
    deadline = time.monotonic() + LIMIT_S
    with ExitStack() as stack:
        there = stack.enter_context(closing(Capturing(ends["right"], "tun")))
        raw = ends["left"].socket(socket.AF_PACKET, socket.SOCK_RAW)
        stack.enter_context(raw).bind(("wire", 0))
        raw.send(echo(mac, head, 1))
        raw.send(echo(mac, header(), 2))
        while 2 not in came and time.monotonic() < deadline:
            frames = [Ether(frame) for out, frame in there.frames() if not out]
            came |= {frame[ICMP].id for frame in frames if ICMP in frame}
    assert 2 in came
    return 1 in came


def header(*, flags=0, options=b""):
    """RFC 8926, section 3.4, by hand: VNI 1001, Ethernet inside."""
    assert len(options) % 4 == 0
    return bytes([len(options) // 4, flags]) + bytes.fromhex("6558 0003e9 00") + options


def option(kind, size):
    return bytes.fromhex("0102") + bytes([kind, size // 4]) + bytes(size)


def all_options(size):
    """Options of `size` bytes together, each of at most 128."""
    whole, rest = divmod(size, 128)
    return option(1, 124) * whole + (option(1, rest - 4) if rest else b"")


@pytest.fixture(scope="module", params=["kernel", "bpf"])
def end(request):
    """A right end, the kernel's or ours, and a left one that sends raw."""
    with lab("point-to-point", until="ip -n right link set tun down") as ends:
        if request.param == "bpf":
            do("ip -n right link delete tun")
            by_bpf(ends["right"], "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
        mac = {
            (at, dev): do(f"ip netns exec {at} cat /sys/class/net/{dev}/address")[0]
            for at, dev in itertools.product(("left", "right"), ("wire", "tun"))
        }
        yield ends, mac


@pytest.mark.parametrize("size", [*range(0, 253, 4)])
def test_options_of_any_length_are_skipped_by_who_knows_none(end, size):
    assert received(end, header(options=all_options(size)))


def test_a_packet_with_a_critical_option_is_dropped_by_who_does_not_know_it(end):
    assert not received(end, header(flags=0x40, options=option(0x80, 4)))


def test_only_the_kernel_takes_a_control_packets_payload(end, request):
    """RFC 8926, section 3.4: endpoints must not forward it."""
    kernels = request.node.callspec.params["end"] == "kernel"
    assert received(end, header(flags=0x80)) is kernels


def test_reserved_bits_are_ignored(end):
    assert received(end, header(flags=0x3F))


def test_another_version_is_dropped(end):
    head = bytearray(header())
    head[0] |= 1 << 6
    assert not received(end, bytes(head))
