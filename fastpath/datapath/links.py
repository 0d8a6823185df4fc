"""Devices, addresses, routes, rules and filters; the one user of pyroute2.

Everything here works in the network namespace of the calling thread: call it
through `Namespace.run`. What the kernel does not know becomes an error that
names the module; any other refusal is an `OSError` with the kernel's errno.

Spec: rtnetlink(7), tc-u32(8), tc-mirred(8), tc-bpf(8), ipset(8); Linux,
Documentation/networking/tuntap.rst, "Program interface".
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pyroute2 import IPRoute, IPSet  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped]
    NetlinkError,
)

from fastpath.datapath import features
from fastpath.errors import FastpathError
from vhost_user.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from ipaddress import IPv4Interface

    from fastpath.datapath.features import Feature
    from fastpath.datapath.rules import Mark

TABLE_MAIN: Final = 254
_TABLE_LOCAL: Final = 255

CLSACT_INGRESS: Final = 0xFFFF_FFF2
CLSACT_EGRESS: Final = 0xFFFF_FFF3

_INGRESS_HANDLE: Final = 0xFFFF_0000
_ETH_P_ALL: Final = 0x0003
_IFF_NOARP: Final = 0x80

# tun_setiff(2) has no header for us: linux/if_tun.h
_TUNSETIFF: Final = 0x4004_54CA
_TUNSETPERSIST: Final = 0x4004_54CB
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000

_IPSET_ERR_FIND_TYPE: Final = 4098
_UNKNOWN: Final = {
    errno.EOPNOTSUPP,
    errno.EPROTONOSUPPORT,
    errno.ENOENT,
    _IPSET_ERR_FIND_TYPE,
}
"""What the kernel answers when a kind of device, qdisc, filter or set is unknown."""


class Links(Closing):
    """The devices and routes of a namespace, as a context manager."""

    def __init__(self) -> None:
        self._ip = IPRoute()

    def index(self, device: str) -> int:
        """Index of a device.

        Raises:
            OSError: there is no such device.
        """
        found: list[int] = list(self._ip.link_lookup(ifname=device))
        if not found:
            raise OSError(errno.ENODEV, f"no device {device}")
        return found[0]

    def mac(self, device: str) -> str:
        """Ethernet address of a device."""
        with _asking():
            link = next(iter(self._ip.link("get", index=self.index(device))))
        return str(link.get_attr("IFLA_ADDRESS"))

    def set_mac(self, device: str, mac: str) -> None:
        """Give a device another Ethernet address."""
        with _asking():
            self._ip.link("set", index=self.index(device), address=mac)

    def up(self, device: str, *, mtu: int | None = None, arp: bool = False) -> None:
        """Bring a device up.

        Args:
            device: its name.
            mtu: bytes; None leaves it.
            arp: resolve addresses on it although its kind does not by default.
        """
        settings: dict[str, object] = {"state": "up"}
        if mtu is not None:
            settings["mtu"] = mtu
        index = self.index(device)
        with _asking():
            if arp:
                self._ip.link("set", index=index, flags=0, change=_IFF_NOARP)
            self._ip.link("set", index=index, **settings)

    def veth(
        self,
        device: str,
        *,
        peer: str,
        peer_netns: int,
        mac: str | None = None,
        peer_mac: str | None = None,
    ) -> None:
        """Make a veth pair, its other end as `peer` in another namespace.

        Args:
            device: this end.
            peer: the other.
            peer_netns: where that is.
            mac: this end's Ethernet address; None: the kernel makes one.
            peer_mac: the other's.
        """
        own = {"address": mac} if mac else {}
        other: dict[str, object] = {"ifname": peer, "net_ns_fd": peer_netns}
        if peer_mac:
            other["address"] = peer_mac
        with _asking(features.VETH):
            self._ip.link("add", ifname=device, kind="veth", peer=other, **own)

    def macvtap(self, device: str, *, lower: str, mac: str) -> int:
        """Make a macvtap device in bridge mode on top of another device.

        Returns:
            Its index, which no other namespace is likely to have: file names depend
            on it.
        """
        index = secrets.randbelow(1 << 30) + (1 << 20)
        with _asking(features.MACVTAP):
            self._ip.link(
                "add",
                ifname=device,
                index=index,
                kind="macvtap",
                link=self.index(lower),
                macvtap_mode="bridge",
                address=mac,
            )
        return index

    def ifb(self, device: str) -> None:
        """Make an ifb device."""
        with _asking(features.IFB):
            self._ip.link("add", ifname=device, kind="ifb")

    def geneve(self, device: str, *, vni: int, remote: str, port: int) -> None:
        """Make one end of a Geneve tunnel of the kernel's."""
        with _asking(features.GENEVE):
            self._ip.link(
                "add",
                ifname=device,
                kind="geneve",
                geneve_id=vni,
                geneve_remote=remote,
                geneve_port=port,
            )

    def tunnel(
        self,
        device: str,
        kind: str,
        attributes: Mapping[str, int | str],
        feature: Feature,
    ) -> None:
        """Make one end of a tunnel.

        Args:
            device: its name.
            kind: as ip-link(8) has it.
            attributes: of that kind, without its name.
            feature: what a kernel lacks that has none of that kind.
        """
        # gretap has the attributes of gre, and sit those of ipip with its own name
        own = kind.removesuffix("tap")
        named = {f"{own}_{key}": value for key, value in attributes.items()}
        with _asking(feature):
            self._ip.link("add", ifname=device, kind=kind, **named)

    def no_address(self, device: str, address: IPv4Interface) -> None:
        """Take an address from a device, and its routes with it."""
        with _asking():
            self._ip.addr(
                "del",
                index=self.index(device),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )

    def address(self, device: str, address: IPv4Interface) -> None:
        """Give a device an address; the prefix becomes its route."""
        with _asking():
            self._ip.addr(
                "add",
                index=self.index(device),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )

    def route(
        self,
        destination: str,
        *,
        dev: str,
        via: str | None = None,
        table: int = TABLE_MAIN,
        kind: str = "unicast",
        onlink: bool = False,
    ) -> None:
        """Add a route.

        Args:
            destination: a prefix, or "default".
            dev: device.
            via: gateway; None: the destination is on the link.
            table: routing table.
            kind: type of the route: "unicast" or "local".
            onlink: the gateway is on the link whatever the addresses say.
        """
        route: dict[str, object] = {"dst": destination, "oif": self.index(dev)}
        if via is not None:
            route["gateway"] = via
        else:
            route["scope"] = "host" if kind == "local" else "link"
        if onlink:
            route["flags"] = ["onlink"]
        with _asking():
            self._ip.route("add", table=table, type=kind, **route)

    def no_local(self, address: str, *, dev: str) -> None:
        """Have the namespace no more answer for an address of a device."""
        with _asking():
            self._ip.route(
                "del",
                dst=f"{address}/32",
                oif=self.index(dev),
                table=_TABLE_LOCAL,
                type="local",
                scope="host",
            )

    def rule(
        self,
        priority: int,
        *,
        mark: Mark | None = None,
        table: int | None = None,
        goto: int | None = None,
    ) -> None:
        """Add a policy routing rule: look up `table`, or go on at rule `goto`."""
        rule: dict[str, object] = {"priority": priority}
        if mark is not None:
            rule |= {"fwmark": mark.value, "fwmask": mark.mask}
        if table is not None:
            rule["table"] = table
        if goto is not None:
            rule |= {"action": "goto", "goto": goto}
        with _asking():
            self._ip.rule("add", **rule)

    def redirect(self, source: str, target: str) -> None:
        """Send all that `source` receives out of `target`: half a Kata tcfilter."""
        index, target_index = self.index(source), self.index(target)
        with _asking(features.INGRESS):
            self._ip.tc("add", "ingress", index, handle=_INGRESS_HANDLE)
        with _asking(features.TCFILTER):
            self._ip.tc(
                "add-filter",
                "u32",
                index,
                parent=_INGRESS_HANDLE,
                protocol=_ETH_P_ALL,
                prio=1,
                target=0,
                keys=["0x0/0x0+0"],
                action={
                    "kind": "mirred",
                    "direction": "egress",
                    "action": "redirect",
                    "ifindex": target_index,
                },
            )

    def attach(
        self, device: str, parent: int, program: int, *, first: bool = True
    ) -> None:
        """Attach a BPF program, which stays when its descriptor is closed.

        Args:
            device: its name.
            parent: CLSACT_INGRESS or CLSACT_EGRESS.
            program: descriptor.
            first: the device has no clsact qdisc yet.
        """
        index = self.index(device)
        if first:
            with _asking(features.INGRESS):
                self._ip.tc("add", "clsact", index)
        with _asking(features.CLS_BPF):
            self._ip.tc(
                "add-filter",
                "bpf",
                index,
                parent=parent,
                protocol=_ETH_P_ALL,
                prio=1,
                fd=program,
                name="vsock-fastpath",
                classid=1,
                direct_action=True,
            )

    def sent(self, device: str) -> int:
        """Packets that the stack sent into a device, which need not have sent them.

        What a program of ours takes on clsact egress never reaches the device's
        own counter; the qdisc has counted it, together with what the device
        received, which on istioout is a reply to ARP now and then.
        """
        index = self.index(device)
        with _asking():
            link = next(iter(self._ip.link("get", index=index)))
            qdiscs = list(self._ip.get_qdiscs(index))
        taken = sum(
            int(qdisc.get_nested("TCA_STATS2", "TCA_STATS_BASIC")["packets"])
            for qdisc in qdiscs
            if qdisc.get_attr("TCA_KIND") == "clsact"
        )
        return taken + int(link.get_attr("IFLA_STATS64")["tx_packets"])

    def close(self) -> None:
        """Close the netlink socket."""
        self._ip.close()


def ipset(name: str, members: Iterable[str]) -> None:
    """Make an IP set of type hash:ip."""
    with _asking(features.IPSET), IPSet() as sets:
        sets.create(name, stype="hash:ip")
        for member in members:
            sets.add(name, member)


def tap(device: str) -> int:
    """Make a tap device with virtio-net headers.

    Returns:
        Its descriptor, which any process can use in any namespace. The device
        goes when the last copy of it is closed.

    Raises:
        FastpathError: no tap devices in this kernel, or not for this user.
        OSError: the name is taken.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as exc:
        raise FastpathError(
            "cannot make a tap device",
            f"/dev/net/tun: {exc.strerror}",
            "sudo chmod 0666 /dev/net/tun",
        ) from exc
    except OSError as exc:
        raise features.TUN.missing(f"/dev/net/tun: {exc.strerror}") from exc
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    except OSError:
        os.close(fd)
        raise
    return fd


def open_macvtap(index: int) -> int:
    """Open a macvtap device, which has virtio-net headers by itself.

    Args:
        index: of the device, by which the kernel names its file.

    Raises:
        FastpathError: not for this user.
    """
    path = f"/dev/tap{index}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise FastpathError(
            "cannot open a macvtap device",
            f"{path}: {exc.strerror}",
            "run as root of the host, with devtmpfs on /dev",
        ) from exc


def persist(fd: int) -> None:
    """Have a tap device stay when its descriptors are closed."""
    fcntl.ioctl(fd, _TUNSETPERSIST, 1)


@contextmanager
def _asking(needed: Feature | None = None) -> Iterator[None]:
    """Turn the kernel's refusal into the errors that our callers know.

    Args:
        needed: what a kernel lacks that does not know this request.
    """
    try:
        yield
    except (NetlinkError, OSError) as exc:
        code, why = int(exc.args[0]), str(exc.args[1])
        if needed is not None and code in _UNKNOWN:
            raise needed.missing(why) from exc
        raise OSError(code, why) from exc
