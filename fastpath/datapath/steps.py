"""What a path is built of: one step a device, address, route, rule, filter or sysctl.

A step is data that knows two things: the command that a person would type for it, and
how the kernel is asked without that command. It names its network namespace by role
("pod", "node", "ztunnel"); whoever applies it knows which one that is. What a guest's
eth0 is attached to: attach.py.

Spec: ip-link(8), ip-address(8), ip-route(8), ip-rule(8), tc-u32(8), tc-mirred(8),
tc-bpf(8), ipset(8), iptables(8); Linux, Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastpath.datapath import bpf, geneve, links
from fastpath.datapath.netns import sysctl
from fastpath.datapath.rules import iptables

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from ipaddress import IPv4Interface
    from pathlib import Path

    from fastpath.datapath.links import Links
    from fastpath.datapath.rules import Mark
    from fastpath.vm.spec import Nic


class World(Protocol):
    """What a step may ask for where it is applied."""

    ip: Links
    """Of the namespace that the calling thread is in: the step's own."""

    def netns(self, role: str) -> int:
        """Return a descriptor of another role's namespace."""

    stays: bool
    """What is made here outlives this process."""
    as_frames: bool
    """A stand-in takes the sandbox's place: it reads and writes Ethernet frames."""

    closing: ExitStack
    """What is to be let go of with the path."""

    @property
    def pids(self) -> dict[str, int]:
        """Processes that carry packets, by name."""

    def keep(self, device: str, nic: Nic) -> None:
        """Remember what a sandbox can be attached to; its mac is filled in."""


class Step(Protocol):
    """One step."""

    @property
    def at(self) -> str:
        """The role whose network namespace it is for."""

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """What a person would type there; `name` gives a role's namespace."""

    def apply(self, world: World) -> None:
        """Do it, in a thread that is there.

        Raises:
            FastpathError: a kernel feature or a program is missing.
            OSError: the kernel refuses.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """A veth pair; its other end is in another namespace."""

    at: str
    device: str
    to: str
    peer: str = "eth0"
    mac: str | None = None
    peer_mac: str | None = None

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-link(8)."""
        own = f" address {self.mac}" if self.mac else ""
        other = f" address {self.peer_mac}" if self.peer_mac else ""
        head = f"ip link add {self.device}{own} type veth"
        return [f"{head} peer name {self.peer}{other} netns {name(self.to)}"]

    def apply(self, world: World) -> None:
        """Make both ends."""
        world.ip.veth(
            self.device,
            peer=self.peer,
            peer_netns=world.netns(self.to),
            mac=self.mac,
            peer_mac=self.peer_mac,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mac:
    """A device gets another Ethernet address."""

    at: str
    device: str
    mac: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-link(8)."""
        del name
        return [f"ip link set {self.device} address {self.mac}"]

    def apply(self, world: World) -> None:
        """Do it."""
        world.ip.set_mac(self.device, self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAddress:
    """An address is taken from a device."""

    at: str
    device: str
    address: IPv4Interface

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-address(8)."""
        del name
        return [f"ip address del {self.address} dev {self.device}"]

    def apply(self, world: World) -> None:
        """Do it."""
        world.ip.no_address(self.device, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """A device is brought up."""

    at: str
    device: str
    mtu: int | None = None

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-link(8)."""
        del name
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        return [f"ip link set {self.device} up{mtu}"]

    def apply(self, world: World) -> None:
        """Do it."""
        world.ip.up(self.device, mtu=self.mtu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A device gets an address; the prefix becomes its route."""

    at: str
    device: str
    address: IPv4Interface

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-address(8)."""
        del name
        return [f"ip address add {self.address} dev {self.device}"]

    def apply(self, world: World) -> None:
        """Do it."""
        world.ip.address(self.device, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route."""

    at: str
    to: str
    dev: str
    via: str | None = None
    table: int = links.TABLE_MAIN
    kind: str = "unicast"
    onlink: bool = False

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-route(8)."""
        del name
        words = ["ip route add", self.to if self.kind == "unicast" else ""]
        words += [f"{self.kind} {self.to}"] if self.kind != "unicast" else []
        words += [f"via {self.via}"] if self.via else []
        words += [f"dev {self.dev}"]
        words += [f"table {self.table}"] if self.table != links.TABLE_MAIN else []
        words += ["onlink"] if self.onlink else []
        return [" ".join(filter(None, words))]

    def apply(self, world: World) -> None:
        """Add it."""
        world.ip.route(
            self.to,
            dev=self.dev,
            via=self.via,
            table=self.table,
            kind=self.kind,
            onlink=self.onlink,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLocal:
    """An address of a device is no more one that this namespace answers for."""

    at: str
    address: str
    dev: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-route(8)."""
        del name
        return [f"ip route del local {self.address} dev {self.dev} table local"]

    def apply(self, world: World) -> None:
        """Take its route out of table local."""
        world.ip.no_local(self.address, dev=self.dev)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy routing rule: look up a table, or go on at another rule."""

    at: str
    priority: int
    mark: Mark | None = None
    table: int | None = None
    goto: int | None = None

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-rule(8)."""
        del name
        words = [f"ip rule add pref {self.priority}"]
        words += [f"fwmark {self.mark}"] if self.mark else []
        words += [f"lookup {self.table}"] if self.table is not None else []
        words += [f"goto {self.goto}"] if self.goto is not None else []
        return [" ".join(words)]

    def apply(self, world: World) -> None:
        """Add it."""
        world.ip.rule(self.priority, mark=self.mark, table=self.table, goto=self.goto)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A net sysctl, named without "net." and with slashes."""

    at: str
    name: str
    value: int = 1
    optional: bool = False
    """Not there in each kernel: one may have been started without IPv6."""

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One sysctl(8)."""
        del name
        return [f"sysctl -qw net/{self.name}={self.value}"]

    def apply(self, world: World) -> None:
        """Write it."""
        del world
        try:
            sysctl(self.name, self.value)
        except FileNotFoundError:
            if not self.optional:
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class IpSet:
    """An IP set of type hash:ip, and who is in it."""

    at: str
    name: str
    members: tuple[str, ...]

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ipset(8) for the set and one a member."""
        del name
        added = [f"ipset add {self.name} {member}" for member in self.members]
        return [f"ipset create {self.name} hash:ip", *added]

    def apply(self, world: World) -> None:
        """Make it."""
        del world
        links.ipset(self.name, self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Iptables:
    """iptables rules and chains, in their order."""

    at: str
    rules: tuple[str, ...]

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One iptables(8) a rule."""
        del name
        return [f"iptables -w {rule}" for rule in self.rules]

    def apply(self, world: World) -> None:
        """Add them."""
        del world
        iptables(*self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """All that one device receives is sent out of another: half a Kata tcfilter."""

    at: str
    source: str
    target: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """Two tc(8)."""
        del name
        match = "protocol all u32 match u8 0 0"
        act = f"action mirred egress redirect dev {self.target}"
        return [
            f"tc qdisc add dev {self.source} ingress",
            f"tc filter add dev {self.source} parent ffff: {match} {act}",
        ]

    def apply(self, world: World) -> None:
        """Do it."""
        world.ip.redirect(self.source, self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneveEnd:
    """One end of a Geneve tunnel: the kernel's, or ours in tc-eBPF."""

    at: str
    tunnel: geneve.Tunnel
    kind: geneve.Kind

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """The kernel's, whatever is made here."""
        del name
        it = self.tunnel
        add = f"ip link add {it.device} type geneve id {it.vni} remote {it.remote}"
        note = "  # here: ifb and bpf/geneve.bpf.c" if self.kind == "bpf" else ""
        return [
            f"{add} dstport {geneve.PORT}{note}",
            f"ip link set {it.device} up mtu {geneve.TUNNEL_MTU}",
            f"ip address add {it.address} dev {it.device}",
        ]

    def apply(self, world: World) -> None:
        """Make it."""
        geneve.add(world.ip, self.tunnel, self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A BPF program on a device's clsact qdisc."""

    at: str
    device: str
    source: Path
    section: str
    values: tuple[tuple[str, int], ...] = ()
    """Of its parameters."""
    devices: tuple[tuple[str, str], ...] = ()
    """Those whose value is a device's index."""
    egress: bool = False
    first: bool = True
    """The device's first: it makes the qdisc, too."""

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """Two tc(8), as for an object that has its parameters."""
        del name
        way = "egress" if self.egress else "ingress"
        given = [f"{key}={value:#x}" for key, value in self.values]
        given += [f"{key}=ifindex({device})" for key, device in self.devices]
        note = f"  # {' '.join(given)}" if given else ""
        load = f"bpf da obj {self.source.stem}.o sec {self.section}"
        qdisc = [f"tc qdisc add dev {self.device} clsact"] if self.first else []
        return [*qdisc, f"tc filter add dev {self.device} {way} {load}{note}"]

    def apply(self, world: World) -> None:
        """Load it and attach it."""
        indices = {key: world.ip.index(device) for key, device in self.devices}
        elf = bpf.compile_source(self.source)
        program = bpf.load(elf, self.section, dict(self.values) | indices)
        parent = links.CLSACT_EGRESS if self.egress else links.CLSACT_INGRESS
        try:
            world.ip.attach(self.device, parent, program, first=self.first)
        finally:
            os.close(program)
