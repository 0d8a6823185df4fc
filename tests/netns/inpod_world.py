"""What tests with Istio's ztunnel in in-pod mode share: `--ztunnel BIN`.

Three namespaces: a pod's, that of a server behind a veth, and ztunnel's own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess

from fastpath.datapath.netns import Namespace
from tests.netns.pod_world import POD4
from tests.support.limits import LIMIT_S

GATEWAY, SERVER, VIP = "10.0.0.1", "10.0.1.1", "10.96.0.10"
POD_SIDE = f"""
ip link set lo up; ip link set e0 up
ip addr add {POD4}/24 dev e0; ip route add default via {GATEWAY}
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
