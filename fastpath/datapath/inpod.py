"""Istio's in-pod rules: what leads a pod's connections to the ztunnel in its namespace.

istio-cni writes them into a pod's network namespace; without it, `install` does. They
are Istio's by what they do, in chains of ours, so that they can be written anew without
a doubt what was there:

    out   TCP, but ztunnel's own (mark 0x539) and what stays on lo   -> 15001
          DNS, UDP and TCP                                           -> 15053
    in    TCP, but HBONE (15008) and ztunnel's own                   -> 15006
    back  what ztunnel sent as its client (mark 0x111)               -> ztunnel

They stay when this process ends: a pod whose rules were gone would speak to the mesh in
plain text. They go with the namespace.

Spec: istio in-pod redirection, 1.21 and later (docs/handoff-protocol.md).
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from fastpath import tools

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_TIMEOUT_S: Final = 30.0

PREROUTING: Final = "FASTPATH_PRERT"
OUTPUT: Final = "FASTPATH_OUTPUT"

# {lo} is the address of loopback
RULES: Final = """\
*mangle
:FASTPATH_PRERT - [0:0]
:FASTPATH_OUTPUT - [0:0]
-A FASTPATH_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A FASTPATH_OUTPUT -m connmark --mark 0x111/0xfff \
-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:FASTPATH_PRERT - [0:0]
:FASTPATH_OUTPUT - [0:0]
-A FASTPATH_PRERT ! -d {lo} -p tcp ! --dport 15008 \
-m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A FASTPATH_OUTPUT -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 \
-j REDIRECT --to-ports 15053
-A FASTPATH_OUTPUT ! -d {lo} -p tcp --dport 53 \
-m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A FASTPATH_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A FASTPATH_OUTPUT ! -d {lo} -o lo -j ACCEPT
-A FASTPATH_OUTPUT ! -d {lo} -p tcp -m mark ! --mark 0x539/0xfff \
-j REDIRECT --to-ports 15001
COMMIT
"""
_JUMPS: Final = tuple(
    (table, hook, chain)
    for table in ("mangle", "nat")
    for hook, chain in (("PREROUTING", PREROUTING), ("OUTPUT", OUTPUT))
)
_LO: Final = {4: "127.0.0.1/32", 6: "::1/128"}
_DEFAULT: Final = {4: "0.0.0.0/0", 6: "::/0"}


class RulesError(Exception):
    """The rules can't be had.

    Args:
        why: what is wrong.
        hint: what mends it.
    """

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def install(namespace: int, versions: Collection[int]) -> None:
    """Write the rules into a network namespace; again: anew. It waits for programs.

    Args:
        namespace: its descriptor.
        versions: 4, 6 or both: of the pod's IPs.

    Raises:
        RulesError: a program or a right is missing, or the kernel has no such rules.
    """
    _must(namespace, ["ip", "link", "set", "lo", "up"])  # REDIRECT is to it
    for version in sorted(versions):
        iptables = "iptables" if version == 4 else "ip6tables"
        rules = RULES.format(lo=_LO[version])
        _must(namespace, [f"{iptables}-restore", "--wait", "--noflush"], rules)
        for table, hook, chain in _JUMPS:
            jump = [iptables, "--wait", "-t", table]
            if _run(namespace, [*jump, "-C", hook, "-j", chain]).returncode:
                _must(namespace, [*jump, "-A", hook, "-j", chain])
        ip = ["ip", f"-{version}"]
        rule = ["pref", "32764", "fwmark", "0x111/0xfff", "lookup", "100"]
        _run(namespace, [*ip, "rule", "del", *rule])
        _must(namespace, [*ip, "rule", "add", *rule])
        route = ["local", _DEFAULT[version], "dev", "lo", "table", "100"]
        _must(namespace, [*ip, "route", "replace", *route])


def _must(namespace: int, argv: Sequence[str], stdin: str = "") -> None:
    done = _run(namespace, argv, stdin)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise RulesError(
            f"{' '.join(argv[:3])}: {said}",
            "it takes CAP_NET_ADMIN there, and a kernel with nat, REDIRECT, mark and"
            " connmark (nf_tables or ip_tables)",
        )


def _run(
    namespace: int, argv: Sequence[str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program in the namespace.

    Raises:
        RulesError: it is not installed, or hangs.
    """
    if tools.find(argv[0]) is None:
        package = "iproute2" if argv[0] == "ip" else "iptables"
        why = f"{argv[0]} is not installed"
        raise RulesError(why, f"sudo apt-get install {package}")
    enter = ["nsenter", f"--net=/proc/self/fd/{namespace}", "--"]
    try:
        return subprocess.run(
            [*enter, tools.path_of(argv[0]), *argv[1:]],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            pass_fds=[namespace],
        )
    except subprocess.TimeoutExpired as error:
        why = f"{argv[0]} does not end within {_TIMEOUT_S:g} s"
        raise RulesError(why, "end what holds xtables' lock") from error
