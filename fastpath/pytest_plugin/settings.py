"""The configuration of a microVM's ztunnel: what leads to the microVM, and from it.

To a program that listens in it: an address of its own in 127.0.0.0/8, at which each
port is reachable on which one listens. From it to a server on the host: a service of
its mesh, HOST, whose ports are those that the test listens on.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

import yaml

from fastpath import files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HOST: Final = "host.fastpath.internal"
"""The guests' name for the host."""
HOST_IP: Final = "198.18.0.2"
POD_IP: Final = "10.200.1.2"
"""What programs see as their own address; it is never on a wire."""
ADDRESSES: Final = IPv4Address("127.64.0.0")
ADDRESS_BITS: Final = 22
"""Of a microVM's address, drawn by lot: pytest's workers know nothing of each other."""

VHOST: Final = "vhost"
VSOCK: Final = "vsock"
KEY: Final = "key"
ACCESS_LOG: Final = "access.log"
MESH: Final = "mesh.yaml"
"""Istio's file."""


def draw_address() -> str:
    """Draw an address for a microVM on the host."""
    return str(ADDRESSES + random.getrandbits(ADDRESS_BITS))


def write(folder: Path, name: str, address: str, policy: Path | None) -> Path:
    """Write all of it; return the settings' file.

    Args:
        folder: where the microVM's files are.
        name: the sandbox's, and its workload's.
        address: the microVM's on the host.
        policy: a policy file; None: it may reach what we do.
    """
    sandbox: dict[str, Any] = {
        "name": name,
        "workload": f"default/{name}",
        "socket": str(folder / VHOST),
        "cid": 3,
        "udsPath": str(folder / VSOCK),
        "keyFile": str(folder / KEY),
        "publish": [f"{address}:*"],
        "podListeners": False,
    }
    if policy:
        sandbox["policy"] = str(policy)
    else:
        sandbox["egress"] = {"allow": ["0.0.0.0/0", "::/0", "127.0.0.1/32"]}
    own = {
        "mesh": str(folder / MESH),
        "sandboxes": [sandbox],
        "accessLog": str(folder / ACCESS_LOG),
    }
    write_mesh(folder, name, ())
    path = folder / "ztunnel.yaml"
    path.write_text(yaml.safe_dump(own), encoding="utf-8")
    return path


def write_mesh(folder: Path, name: str, ports: Iterable[int]) -> None:
    """Write Istio's file: the microVM's workload, and HOST with these ports."""
    there = {port: port for port in ports}
    mesh = {
        "workloads": [
            {
                "uid": name,
                "name": name,
                "namespace": "default",
                "workloadIps": [POD_IP],
                "services": {},
            },
            {
                "uid": "host",
                "name": "host",
                "namespace": "default",
                "workloadIps": ["127.0.0.1"],
                "services": {f"default/{HOST}": there},
            },
        ],
        "services": [
            {
                "name": "host",
                "namespace": "default",
                "hostname": HOST,
                "vips": [f"/{HOST_IP}"],
                "ports": there,
            }
        ],
    }
    files.replace(folder / MESH, yaml.safe_dump(mesh))
