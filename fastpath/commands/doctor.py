"""What this host can do, and for each "no" the command that fixes it.

Each check looks at the thing itself, with the code that will use it: it makes
the device, adds the rule, loads the program, in a network namespace that nobody
sees. What that code says when it fails is what the doctor says.

Nothing is installed or loaded, and nothing is left behind.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any, Final

from fastpath import stdio, tools
from fastpath.datapath import geneve, links, netns
from fastpath.datapath.links import Links
from fastpath.datapath.rules import Mark, iptables
from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.image.images import cache_directory
from fastpath.vm import accel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TIMEOUT_S: Final = 60.0
_OLDEST_PYTHON: Final = (3, 11)

QEMU: Final = "qemu-system-x86_64"
IMAGE: Final = "base"


class Need(enum.Flag):
    """What a check is needed for."""

    NOTHING = 0
    """Good to have: without it things are slower or take another way."""
    RUN = enum.auto()
    """`fastpath run`."""
    COMPARE = enum.auto()
    """`fastpath compare` and the standard paths."""
    TEST = enum.auto()
    """`make test`."""
    ALL = RUN | COMPARE | TEST


@dataclass(frozen=True, slots=True)
class Check:
    """One answer of the doctor."""

    name: str
    ok: bool
    detail: str
    """What was found, or why not; one line."""
    hint: str | None
    """The command that fixes it; None when `ok`."""
    need: Need

    def needs(self) -> list[str]:
        """What it is needed for, in words."""
        return [n.name.lower() for n in Need if n in self.need and n.name]

    def facts(self) -> dict[str, Any]:
        """The same for a program."""
        return asdict(self) | {"need": self.needs()}


@dataclass(frozen=True, slots=True)
class _Look:
    """One question: `look` returns what it found, or raises why not."""

    name: str
    need: Need
    look: Callable[[], str]
    hint: str | None = None
    """For errors that do not bring their own."""

    def answer(self) -> Check:
        """Look, and make a `Check` of what comes of it."""
        hint = self.hint
        try:
            found, ok = self.look(), True
        except FastpathError as exc:
            found, ok, hint = exc.why, False, exc.hint or hint
        except (OSError, ImportError, subprocess.SubprocessError) as exc:
            found, ok = str(exc), False
        detail = " ".join(found.split())
        return Check(self.name, ok, detail, None if ok else hint, self.need)


def run(*, as_json: bool = False) -> int:
    """Print all checks; return 1 if something is missing that a command needs."""
    found = checks()
    if as_json:
        print(json.dumps([each.facts() for each in found], indent=2))  # noqa: T201
    else:
        _show(found)
    return 1 if any(each.need for each in found if not each.ok) else 0


def _show(found: Sequence[Check]) -> None:
    from rich.text import Text  # here: `main` does without

    console = stdio.console()
    for check in found:
        mark = Text("yes  ", "green") if check.ok else Text("no   ", "bold red")
        line = mark + Text(check.name, "bold") + Text(f": {check.detail}")
        console.print(line, soft_wrap=True)
        if not check.ok:
            needed = f"needed for: {', '.join(check.needs()) or 'nothing'}"
            for more in (needed, f"hint: {check.hint}"):
                console.print(Text(f"     {more}"), soft_wrap=True)


def checks() -> list[Check]:
    """Look at everything that the commands need.

    Blocks: some seconds the first time on a host with /dev/kvm, where it boots a
    guest, else less than one.
    """
    found = [each.answer() for each in _HOST]
    if netns.may_configure():
        return found + network_checks()
    if netns.user_namespace_problem() is None:
        return found + _network_checks_in_user_namespace()
    return found


def network_checks() -> list[Check]:
    """The checks that configure networks; only root, of a namespace at least, may."""
    has_geneve = geneve.choose("auto") == "kernel"
    # BPF is the other way to have a tunnel, not a second thing to have.
    need = Need.NOTHING if has_geneve else Need.COMPARE | Need.TEST
    bpf = _Look("Geneve in BPF", need, _bpf_geneve, _SUDO)
    found = []
    for each in (*_NETWORK, bpf):
        with netns.Namespace() as scratch:
            found.append(scratch.run(each.answer))
    return found


def main() -> None:
    """Print the network checks as JSON: a user's doctor starts this as root."""
    print(to_json(network_checks()))  # noqa: T201


def to_json(answers: list[Check]) -> str:
    """Checks as one line, for `from_json`."""
    return json.dumps([{**asdict(each), "need": each.need.value} for each in answers])


def from_json(line: str) -> list[Check]:
    """What `to_json` was given."""
    return [Check(**{**each, "need": Need(each["need"])}) for each in json.loads(line)]


def _network_checks_in_user_namespace() -> list[Check]:
    argv = [*netns.UNSHARE, "--", sys.executable, "-m", "fastpath.commands.doctor"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
    )
    return from_json(done.stdout)


def _install(*packages: str) -> str:
    return f"sudo apt-get install {' '.join(packages)}"


def _python() -> str:
    if sys.version_info < _OLDEST_PYTHON:
        raise OSError(f"{platform.python_version()} is older than 3.11")
    return f"{platform.python_version()}, {sys.executable}"


def _native() -> str:
    return str(importlib.import_module("vhost_user._native").__name__)


def _memfd() -> str:
    os.close(os.memfd_create("doctor"))
    return "memfd_create works"


def _library(name: str) -> Callable[[], str]:
    """A check that a shared library is there."""

    def look() -> str:
        ctypes.CDLL(name)
        return name

    return look


def _image() -> str:
    """Whether it was ever built; `image build` knows whether it is up to date."""
    images = cache_directory() / "images"
    if not any(images.glob(f"{IMAGE}.*")):
        raise OSError(f"not in {images}")
    return f"in {images}"


def _kvm() -> str:
    accel.choose("kvm")  # brings its own hint if /dev/kvm cannot be opened
    _image()
    failure = accel.remembered()
    if failure is None:
        if images.cached(IMAGE) is None:
            why = "no guest was tried under it yet, as the image is not up to date"
            raise FastpathError("KVM", why, _BUILD_IMAGE)
        failure = accel.kvm_failure()
    if failure:
        raise FastpathError("KVM", failure, "none: TCG takes its place")
    return accel.BOOTED


def _rights() -> str:
    if netns.may_configure():
        return "CAP_SYS_ADMIN and CAP_NET_ADMIN"
    if (problem := netns.user_namespace_problem()) is not None:
        raise OSError(problem)
    return "in a user namespace"


def _program(name: str, *version: str) -> Callable[[], str]:
    """A check that program `name` is there, and what it says to `version`."""

    def look() -> str:
        if (path := tools.find(name)) is None:
            raise OSError(f"{name} is not installed")
        if not version:
            return path
        argv = [path, *version]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise OSError(done.stderr or f"{name} exits with {done.returncode}")
        return done.stdout.splitlines()[0]

    return look


def _veth() -> str:
    with Links() as ip, netns.Namespace() as other:
        ip.veth("veth", peer="eth0", peer_netns=other.fileno())
    return _PRESENT


def _tap() -> str:
    os.close(links.tap("tap"))
    return "/dev/net/tun, with virtio-net headers"


def _ifb() -> str:
    with Links() as ip:
        ip.ifb("ifb")
    return _PRESENT


def _kernel_geneve() -> str:
    geneve.choose("kernel")
    return _PRESENT


def _tcfilter() -> str:
    with Links() as ip:
        ip.ifb("from")
        ip.redirect("from", "lo")
    return _PRESENT


def _policy_routing() -> str:
    with Links() as ip:
        ip.rule(100, mark=Mark(0x200, 0x200), goto=32766)
    return _PRESENT


def _ipset() -> str:
    links.ipset("doctor", ["192.0.2.1"])
    iptables("-t mangle -A PREROUTING -m set --match-set doctor src -j ACCEPT")
    return "sets and the iptables match"


def _marks() -> str:
    iptables(
        "-t mangle -A PREROUTING -m mark --mark 1 -j MARK --set-mark 2",
        "-t mangle -A PREROUTING -m connmark --mark 1 -j CONNMARK --save-mark",
    )
    return "of packets and connections"


def _tproxy() -> str:
    iptables("-t mangle -A PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark 1")
    return _PRESENT


def _nat() -> str:
    """What Istio's in-pod rules and Kata's need beside marks."""
    iptables(
        "-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 1",
        "-t nat -A OUTPUT -p tcp -j DNAT --to-destination 192.0.2.1",
        "-t nat -A POSTROUTING -p tcp -j SNAT --to-source 192.0.2.1",
        "-t mangle -A PREROUTING -p tcp -m socket -j ACCEPT",
        "-t raw -A PREROUTING -p udp -j CT --zone 1",
    )
    return "REDIRECT, DNAT, SNAT, zones, the match of sockets"


def _bpf_geneve() -> str:
    tunnel = geneve.Tunnel(
        device="tunnel",
        address=IPv4Interface("192.0.2.1/30"),
        vni=1,
        underlay="underlay",
        local="192.0.2.5",
        remote="192.0.2.6",
        remote_mac="02:00:00:00:00:01",
    )
    with Links() as ip:
        ip.ifb(tunnel.underlay)
        geneve.add(ip, tunnel, "bpf")
    return "compiled, loaded and attached"


_PRESENT: Final = "present"
_BUILD_IMAGE: Final = f"fastpath image build {IMAGE}"
_SUDO: Final = "run with sudo"
_DEBIAN_KERNEL: Final = "boot the kernel of linux-image-amd64"

_IPSEC_MB: Final = _install("libipsec-mb-dev")
_NGHTTP2: Final = _install("libnghttp2-dev")
_STANDARD_PATH: Final = Need.COMPARE | Need.TEST

_HOST: Final = (
    _Look("Python", Need.ALL, _python, _install("python3")),
    _Look("native module", Need.ALL, _native, "make setup"),
    _Look("QEMU", Need.ALL, _program(QEMU, "--version"), _install("qemu-system-x86")),
    _Look("image", Need.ALL, _image, _BUILD_IMAGE),
    _Look("KVM", Need.NOTHING, _kvm, _BUILD_IMAGE),
    _Look("shared guest memory", Need.ALL, _memfd, "boot Linux 3.17 or later"),
    _Look("C compiler", Need.ALL, _program("gcc", "--version"), _install("gcc")),
    _Look("make", Need.ALL, _program("make", "--version"), _install("make")),
    # of the native module
    _Look("OpenSSL 3", Need.ALL, _library("libssl.so.3"), _install("libssl-dev")),
    _Look("libipsec-mb", Need.ALL, _library("libIPSec_MB.so.1"), _IPSEC_MB),
    _Look("nghttp2", Need.ALL, _library("libnghttp2.so.14"), _NGHTTP2),
    # of a tool of the kernel's headers
    _Look("libelf", Need.ALL, _library("libelf.so.1"), _install("libelf-dev")),
    _Look("apt-get", Need.ALL, _program("apt-get"), "use Debian 12+ or Ubuntu 24.04+"),
    _Look("dpkg-deb", Need.ALL, _program("dpkg-deb"), _install("dpkg")),
    _Look("Go", Need.TEST, _program("go", "version"), _install("golang-go")),
    _Look("clang", Need.NOTHING, _program("clang", "--version"), _install("clang")),
    _Look("strace", Need.TEST, _program("strace", "--version"), _install("strace")),
    _Look("nsenter", _STANDARD_PATH, _program("nsenter"), _install("util-linux")),
    _Look(
        "iptables",
        _STANDARD_PATH,
        _program("iptables", "--version"),
        _install("iptables"),
    ),
    _Look("network rights", _STANDARD_PATH, _rights, netns.USER_NAMESPACE_HINT),
)

_NETWORK: Final = (
    _Look("veth", _STANDARD_PATH, _veth),
    _Look("tap", _STANDARD_PATH, _tap),
    _Look("ifb", _STANDARD_PATH, _ifb),
    _Look("Kata tcfilter", _STANDARD_PATH, _tcfilter),
    _Look("policy routing", _STANDARD_PATH, _policy_routing, _DEBIAN_KERNEL),
    _Look("IP sets", _STANDARD_PATH, _ipset),
    _Look("marks", _STANDARD_PATH, _marks),
    _Look("TPROXY", _STANDARD_PATH, _tproxy),
    _Look("NAT", _STANDARD_PATH, _nat),
    _Look("Geneve in the kernel", Need.NOTHING, _kernel_geneve),
)


if __name__ == "__main__":
    main()
