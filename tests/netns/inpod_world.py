"""What tests with Istio's ztunnel in in-pod mode share: `--ztunnel BIN`.

Three namespaces: a pod's, that of a server behind a veth, and ztunnel's own.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess

from fastpath.datapath.netns import Namespace
from tests.netns.pod_world import POD4
from tests.support.limits import LIMIT_S, wait_until

GATEWAY, SERVER, VIP = "10.0.0.1", "10.0.1.1", "10.96.0.10"
POD_SIDE = f"""
ip link set lo up; ip link set e0 up
ip addr add {POD4}/24 dev e0; ip route add default via {GATEWAY}
"""
# What istio-cni writes (reference: istio's in-pod iptables of the 1.2x releases)
RULES = r"""
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
SERVER_SIDE = f"""
ip link set lo up; ip link set e1 up
ip addr add {GATEWAY}/24 dev e1; ip addr add {SERVER}/32 dev lo
"""
CONFIG = f"""
workloads:
- {{uid: cluster1//v1/Pod/default/pod1, name: pod1, namespace: default,
   serviceAccount: pod1, trustDomain: cluster.local, workloadIps: [{POD4}],
   protocol: TCP, node: node1, services: {{}}}}
- {{uid: cluster1//v1/Pod/default/server, name: server, namespace: default,
   serviceAccount: server, trustDomain: cluster.local, workloadIps: [{SERVER}],
   protocol: TCP, node: node2, services: {{}}}}
services:
- {{name: web, namespace: default, hostname: web.default.svc.cluster.local,
   vips: [/{VIP}], ports: {{80: 8080}}}}
"""


def run_in(namespace, script):
    argv = ["sh", "-ec", script]
    subprocess.run(namespace.command(argv) if namespace else argv, check=True)


@contextlib.contextmanager
def pod_and_server():
    """The pod's namespace, without rules, and the server's."""
    with Namespace() as pod, Namespace() as server:
        ends = f"e0 netns {pod.path} type veth peer e1 netns {server.path}"
        run_in(None, f"ip link add {ends}")
        run_in(pod, POD_SIDE)
        run_in(server, SERVER_SIDE)
        yield pod, server


@contextlib.contextmanager
def istios_ztunnel(binary, folder, zds, config=CONFIG, *, own=None, **settings):
    """Run it in a namespace of its own, or `own`; yields its log."""
    (folder / "istio.yaml").write_text(config)
    log = folder / "istio.log"
    make_root = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/O=t"]
    make_root += ["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", "key", "-out", "ca"]
    subprocess.run(make_root, check=True, capture_output=True, cwd=folder)
    env = {
        "PATH": os.environ["PATH"],
        "XDS_ADDRESS": "",
        "LOCAL_XDS_PATH": f"{folder}/istio.yaml",
        "PROXY_MODE": "shared",
        "INPOD_UDS": str(zds),
        "NODE_NAME": "node1",
        "ZTUNNEL_WORKER_THREADS": "1",
        "CA_ADDRESS": "https://127.0.0.1:1",  # nobody's: there is no HBONE here
        "CA_ROOT_CA": f"{folder}/ca",
    }
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("a"))
        own = own or stack.enter_context(Namespace())
        run_in(own, "ip link set lo up")
        argv = own.command([str(binary.resolve()), "proxy", "ztunnel"])
        process = subprocess.Popen(argv, env=env | settings, stdout=out, stderr=out)
        try:
            yield log
        finally:
            process.kill()
            process.wait(LIMIT_S)


def access_line(log, pattern):
    """Wait for a line of its access log."""
    return wait_until(
        lambda: next(
            (it for it in log.read_text().splitlines() if re.search(pattern, it)), None
        ),
        what=pattern,
    )
