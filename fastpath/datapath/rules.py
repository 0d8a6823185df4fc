"""iptables rules, through the program: the rules are Istio's, word for word.

Everything here works in the network namespace of the calling thread: call it
through `Namespace.run`.
"""

from __future__ import annotations

import subprocess
from typing import Final, NamedTuple

from fastpath import tools
from fastpath.datapath import features
from fastpath.errors import FastpathError

_TIMEOUT_S: Final = 30.0

# In a rule that iptables refuses, the first of these words says what the kernel
# most likely lacks: its own message names a rule's number at best.
_FEATURES: Final = {
    "TPROXY": features.XT_TPROXY,
    "--match-set": features.XT_SET,
    "socket": features.XT_SOCKET,
    "owner": features.XT_OWNER,
    "REDIRECT": features.XT_NAT,
    "SNAT": features.XT_NAT,
    "DNAT": features.XT_NAT,
    "CT": features.XT_CT,
    "CONNMARK": features.XT_CONNMARK,
    "connmark": features.XT_CONNMARK,
    "MARK": features.XT_MARK,
    "mark": features.XT_MARK,
}


class Mark(NamedTuple):
    """A packet mark and the bits of it that count."""

    value: int
    mask: int

    def __str__(self) -> str:
        """As iptables and ip(8) write it."""
        return f"{self.value:#05x}/{self.mask:#05x}"


def iptables(*rules: str) -> None:
    """Run iptables once for each rule.

    Args:
        rules: arguments, such as "-t mangle -N chain".

    Raises:
        FastpathError: iptables is missing or the kernel refused the rule.
    """
    for rule in rules:
        argv = [tools.path_of("iptables"), "-w", *rule.split()]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except FileNotFoundError as exc:
            raise FastpathError(
                "cannot set up packet marks and TPROXY",
                "iptables is not installed",
                "sudo apt-get install iptables",
            ) from exc
        if done.returncode:
            raise _refused(rule, done.stderr.strip())


def _refused(rule: str, stderr: str) -> FastpathError:
    why = f"iptables {rule}: {stderr}"
    if "initialize nft" not in stderr:
        for word in rule.split():
            if feature := _FEATURES.get(word):
                return feature.missing(why)
    return features.NFT.missing(why)
