"""Istio's unmodified ztunnel in in-pod mode, and what istio-cni does for it.

A node is a network namespace with `fastpath ca` and a ztunnel that serves one pod. We
are its istio-cni: we write the rules into the pod's namespace, and tell it of the pod
by ZDS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastpath.datapath.netns import Namespace
from tests.netns.pod_world import PUBLISHED
from tests.support.limits import LIMIT_S, wait_until

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "node-" + "1" * 27
TOKENS = f"""
tokens:
- {{token: {TOKEN}, identity: istio-system/ztunnel, impersonate: ["*"]}}
"""

# What istio-cni writes (reference: istio's in-pod iptables of the 1.2x releases)
IN_POD = """
ip rule add fwmark 0x111/0xfff pref 32764 lookup 100
ip route add local 0.0.0.0/0 dev lo table 100
for table in mangle nat; do
  iptables -t $table -N ISTIO_PRERT; iptables -t $table -A PREROUTING -j ISTIO_PRERT
  iptables -t $table -N ISTIO_OUTPUT; iptables -t $table -A OUTPUT -j ISTIO_OUTPUT
done
iptables -t mangle -A ISTIO_PRERT -m mark --mark 0x539/0xfff \
  -j CONNMARK --set-xmark 0x111/0xfff
iptables -t mangle -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff \
  -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
add="iptables -t nat -A"
ours="-m mark ! --mark 0x539/0xfff"
$add ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008 $ours \
  -j REDIRECT --to-ports 15006
$add ISTIO_OUTPUT -p udp $ours -m udp --dport 53 -j REDIRECT --to-ports 15053
$add ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp --dport 53 $ours -j REDIRECT --to-ports 15053
$add ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
$add ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
$add ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp $ours -j REDIRECT --to-ports 15001
"""


def field(number, data):
    """A length-delimited field of protobuf."""
    return bytes([number << 3 | 2, len(data)]) + data


class Cni:
    """The end of ZDS that istio-cni has: it tells of one pod."""

    def __init__(self, path, namespace, name="pod1"):
        self._name = name.encode()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._namespace = namespace
        self.acks = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            conn, _ = self._listener.accept()
            with conn:
                assert conn.recv(1024) == bytes([8, 1])  # hello, version 1
                names = (self._name, b"default", self._name)
                who = b"".join(field(i + 1, it) for i, it in enumerate(names))
                add = field(1, field(1, b"uid1") + field(2, who))
                socket.send_fds(conn, [add], [self._namespace.fileno()])
                self.acks.append(conn.recv(1024))
                conn.send(field(3, b""))
                self.acks.append(conn.recv(1024))
                conn.recv(1)

    def close(self):
        self._listener.close()


def access_line(log, pattern):
    """Wait for a line of its access log."""
    return wait_until(
        lambda: next(
            (it for it in log.read_text().splitlines() if re.search(pattern, it)), None
        ),
        what=pattern,
    )


@dataclass
class Node:
    """What runs on a node, and what it says.

    Args:
        name: the node's, as workloads have it.
        pod: name of its pod and of that one's service account.
        namespace: the pod's.
        folder: the node's own.
        ca: the directory of the CA's root, all nodes'.
        workloads: Istio's local file.
        ttl_s: seconds that a certificate is valid.
        network: the one that the node is on.
    """

    name: str
    pod: str
    namespace: Namespace
    folder: Path
    ca: Path
    workloads: str
    ttl_s: int
    network: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(
        default_factory=dict
    )
    """`ca` and `ztunnel`, once they run."""

    def start(self, binary: Path, stack: Any) -> None:
        """Start the CA and ztunnel; return when the pod is served."""
        self.folder.mkdir()
        own = stack.enter_context(Namespace())
        subprocess.run(own.command(["ip", "link", "set", "lo", "up"]), check=True)
        self._write("workloads.yaml", self.workloads)
        self._write("token", TOKEN)
        tokens = self._write("tokens.yaml", TOKENS)
        ca = [sys.executable, "-m", "fastpath", "ca", "--dir", str(self.ca)]
        ca += ["--ttl", str(self.ttl_s), "--token-file", str(tokens)]
        self._run(stack, own, "ca", ca)
        self._wait_for("ca", "fastpath ca: ready")
        cni = Cni(self.folder / "zds", self.namespace, self.pod)
        stack.callback(cni.close)
        self._run(stack, own, "ztunnel", [str(binary.resolve()), "proxy", "ztunnel"])
        wait_until(lambda: len(cni.acks) == 2, what="ZDS")

    @property
    def log(self) -> Path:
        """What ztunnel says."""
        return self.folder / "ztunnel.log"

    @property
    def issued(self) -> int:
        """Certificates that the CA has issued here."""
        return (self.folder / "ca.log").read_text().count(f"/sa/{self.pod} until ")

    def has_issued(self, count: int) -> bool:
        """Whether it has issued so many."""
        return self.issued >= count

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def _run(self, stack: Any, own: Namespace, name: str, argv: list[str]) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": f"{self.folder}/workloads.yaml",
            "PROXY_MODE": "shared",
            "INPOD_UDS": f"{self.folder}/zds",
            "NODE_NAME": self.name,
            "NETWORK": self.network,
            "ZTUNNEL_WORKER_THREADS": "1",
            "CA_ADDRESS": "https://127.0.0.1:15012",
            "CA_ROOT_CA": f"{self.ca}/root-cert.pem",
            "AUTH_TOKEN": f"{self.folder}/token",
        }
        out = stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(own.command(argv), env=env, stdout=out, stderr=out)
        self.processes[name] = process
        stack.callback(process.wait, LIMIT_S)
        stack.callback(process.kill)

    def _wait_for(self, name: str, words: str) -> None:
        path = self.folder / f"{name}.log"
        wait_until(lambda: words in path.read_text(), what=f"{path}: {words}")


IPS = {"a": "10.0.0.5", "b": "10.0.0.6"}
VIP = "10.96.0.10"
"""Of a service, port 80, whose endpoint is pod b."""
WORKLOADS = "workloads:\n" + "".join(
    f"""
- {{uid: cluster1//v1/Pod/default/{name}, name: {name}, namespace: default,
   serviceAccount: {name}, trustDomain: cluster.local, workloadIps: [{ip}],
   protocol: HBONE, node: node-{name}, services: {{
   "default/{name}.default.svc.cluster.local": {{80: {PUBLISHED}}}}}}}
"""
    for name, ip in IPS.items()
)
SERVICES = f"""
services:
- {{name: b, namespace: default, hostname: b.default.svc.cluster.local,
   vips: [/{VIP}], ports: {{80: {PUBLISHED}}}}}
- {{name: a, namespace: default, hostname: a.default.svc.cluster.local,
   vips: [/10.96.0.11], ports: {{80: {PUBLISHED}}}}}
"""


def identity(name):
    return f"spiffe://cluster.local/ns/default/sa/{name}"


class TwoNodes:
    """Both nodes, and the namespaces of their pods."""

    def __init__(self, folder, binary, stack, ttl_s=3600):
        self.pods = {name: stack.enter_context(Namespace()) for name in IPS}
        self.nodes = {}
        a, b = (self.pods[name].path for name in IPS)
        link = f"ip link add e0 netns {a} type veth peer e0 netns {b}"
        subprocess.run(link.split(), check=True)
        for name, ip in IPS.items():
            script = (
                f"ip link set lo up; ip link set e0 up; ip addr add {ip}/24 dev e0;"
                f" ip route add default dev e0\n{IN_POD}"
            )
            argv = self.pods[name].command(["sh", "-ec", script])
            subprocess.run(argv, check=True)
        for name in IPS:
            self.nodes[name] = Node(
                name=f"node-{name}",
                pod=name,
                namespace=self.pods[name],
                folder=folder / name,
                ca=folder / "ca",
                workloads=WORKLOADS + SERVICES,
                ttl_s=ttl_s,
            )
            self.nodes[name].start(binary, stack)

    def tell_apart(self, client, server):
        """What both ztunnels say of a connection: who it is from, and to."""
        whole = r"connection complete(?!.* error=).* direction="
        outbound = access_line(self.nodes[client].log, whole + '"outbound"')
        inbound = access_line(self.nodes[server].log, whole + '"inbound"')
        for line in (outbound, inbound):
            assert f'src.identity="{identity(client)}"' in line
            assert f'src.workload="{client}"' in line
            assert f'dst.workload="{server}"' in line
        assert f'dst.identity="{identity(server)}"' in outbound
        assert f"dst.hbone_addr={IPS[server]}:" in outbound
        assert f"dst.addr={IPS[server]}:15008" in outbound
