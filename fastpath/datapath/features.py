"""Kernel features that the standard paths need, and how to get a missing one.

One table for two users: the code that asks the kernel turns its refusal into an
error that names the module, and the doctor shows the same words beforehand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastpath.errors import FastpathError

_MODULES: Final = Path("/lib/modules")


@dataclass(frozen=True, slots=True)
class Feature:
    """Something the kernel has built in, has as a module, or lacks."""

    name: str
    modules: tuple[str, ...]

    def missing(self, why: str) -> FastpathError:
        """The error for a kernel that answered `why`."""
        return FastpathError(
            f"this kernel lacks {self.name}",
            f"{why} (module {', '.join(self.modules)})",
            self.hint(),
        )

    def hint(self) -> str:
        """The command that brings the modules, as far as the host can tell."""
        release = os.uname().release
        index = _MODULES / release / "modules.dep"
        listed = index.read_text() if index.exists() else ""
        if all(f"/{module}.ko" in listed for module in self.modules):
            return f"sudo modprobe -a {' '.join(self.modules)}"
        return (
            f"sudo apt-get install linux-modules-extra-{release} (Ubuntu), or boot"
            " the kernel of linux-image-amd64 (Debian)"
        )


VETH: Final = Feature("veth devices", ("veth",))
TUN: Final = Feature("tap devices", ("tun",))
MACVTAP: Final = Feature("macvtap devices", ("macvtap",))
IFB: Final = Feature("ifb devices", ("ifb",))
GENEVE: Final = Feature("Geneve tunnels", ("geneve",))
VXLAN: Final = Feature("VXLAN tunnels", ("vxlan",))
GRE: Final = Feature("GRE tunnels", ("ip_gre",))
IPIP: Final = Feature("IP-in-IP tunnels", ("ipip",))
SIT: Final = Feature("sit tunnels", ("sit",))
INGRESS: Final = Feature("the ingress and clsact qdiscs", ("sch_ingress",))
TCFILTER: Final = Feature(
    "the u32 filter and the mirred action",
    (
        "cls_u32",
        "act_mirred",
    ),
)
CLS_BPF: Final = Feature("the BPF classifier", ("cls_bpf",))
IPSET: Final = Feature("IP sets of type hash:ip", ("ip_set_hash_ip",))
NFT: Final = Feature("what iptables is built on", ("nf_tables", "nft_compat"))
XT_SET: Final = Feature("the iptables match set", ("xt_set",))
XT_MARK: Final = Feature("the iptables match and target MARK", ("xt_mark",))
XT_CONNMARK: Final = Feature("the iptables match and target CONNMARK", ("xt_connmark",))
XT_TPROXY: Final = Feature("the iptables target TPROXY", ("xt_TPROXY",))
XT_SOCKET: Final = Feature("the iptables match socket", ("xt_socket",))
XT_NAT: Final = Feature(
    "the iptables targets SNAT, DNAT and REDIRECT", ("xt_nat", "xt_REDIRECT")
)
XT_OWNER: Final = Feature("the iptables match owner", ("xt_owner",))
XT_CT: Final = Feature("the iptables target CT", ("xt_CT",))
