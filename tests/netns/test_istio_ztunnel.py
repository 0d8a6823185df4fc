"""Istio's own ztunnel and `fastpath ca`, in a network namespace of theirs.

Run with `--ztunnel BIN`. ztunnel is as it is released: CA_ADDRESS, CA_ROOT_CA and
AUTH_TOKEN name our CA, LOCAL_XDS_PATH its workloads.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from fastpath.datapath.netns import Namespace
from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from fastpath.mesh.contexts import client_context
from fastpath.mesh.material import identity_of
from fastpath.mesh.peers import PeerError, Verifier
from fastpath.mesh.revocation import Revocations, parse
from tests.support.limits import LIMIT_S, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

TOKEN = "node-" + "1" * 27
CLIENT = Identity("cluster.local", "default", "client")
WEB = Identity("cluster.local", "default", "web")
DB = Identity("cluster.local", "prod", "db")
TOKENS = f"""
tokens:
- token: {TOKEN}
  identity: default/web
  impersonate: [default/*, prod/db]
"""
WORKLOADS = """
workloads:
- {uid: web, name: web, namespace: default, serviceAccount: web,
   trustDomain: cluster.local, workloadIps: [127.0.0.1], protocol: HBONE,
   node: local, services: {}}
- {uid: db, name: db, namespace: prod, serviceAccount: db,
   trustDomain: cluster.local, workloadIps: [127.0.0.2], protocol: HBONE,
   node: local, services: {}}
"""
DEDICATED = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "default/web/web"}
EMPTY_SETTINGS = bytes(3) + b"\4" + bytes(5)
ADMIN_PORT = 15000
HBONE_PORT = 15008


class World:
    """A namespace with `fastpath ca` and Istio's ztunnel, and what they say."""

    def __init__(self, folder, binary, stack):
        self.folder = folder
        self._binary = binary
        self._stack = stack
        self._namespace = stack.enter_context(Namespace())
        up = self._namespace.command(["ip", "link", "set", "lo", "up"])
        subprocess.run(up, check=True)
        self.write("tokens.yaml", TOKENS)
        self.write("workloads.yaml", WORKLOADS)

    def write(self, name, text):
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def start(self, name, command, env=None, stack=None):
        """Run a command inside until `stack` ends; the file `name` is its output."""
        stack = stack or self._stack
        output = stack.enter_context((self.folder / name).open("w"))
        process = subprocess.Popen(
            self._namespace.command(list(map(str, command))),
            stdout=output,
            stderr=output,
            env=env,
        )
        stack.callback(process.wait, LIMIT_S)
        stack.callback(process.terminate)

    def said(self, name):
        return (self.folder / name).read_text()

    def wait_for(self, name, words):
        wait_until(lambda: words in self.said(name), what=f"{name}: {words}")

    def serve(self, *options):
        tokens = ["--token-file", self.folder / "tokens.yaml"]
        command = [sys.executable, "-m", "fastpath", "ca", "--dir", self.folder / "ca"]
        self.start("ca.log", [*command, *tokens, *options])
        self.wait_for("ca.log", "fastpath ca: ready: https://127.0.0.1:15012")

    def listen(self, address):
        """A listener inside, until the end."""
        sock = self._stack.enter_context(self._namespace.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(512)

    def ztunnel(self, token=TOKEN, stack=None, **more):
        (self.folder / "token").write_text(token)
        env = {
            "PATH": os.environ["PATH"],
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": str(self.folder / "workloads.yaml"),
            "NODE_NAME": "local",
            "CA_ADDRESS": "https://127.0.0.1:15012",
            "CA_ROOT_CA": str(self.folder / "ca" / "root-cert.pem"),
            "AUTH_TOKEN": str(self.folder / "token"),
            "INPOD_UDS": str(self.folder / "nobody.sock"),
            "ZTUNNEL_WORKER_THREADS": "1",
        }
        self.start("ztunnel.log", [self._binary], env | more, stack)

    def certificates(self):
        """Identity -> leaf, of those that ztunnel has now."""

        def dump():
            connection = http.client.HTTPConnection("localhost", ADMIN_PORT)
            with contextlib.closing(connection):
                connection.request("GET", "/config_dump")
                return json.load(connection.getresponse())

        try:
            found = self._namespace.run(dump)["certificates"]
        except ConnectionError:
            return {}
        return {
            each["identity"]: x509.load_pem_x509_certificate(
                base64.b64decode(each["certChain"][0]["pem"])
            )
            for each in found
            if each["certChain"]
        }

    def page(self, port, path):
        """One of its pages."""

        def ask():
            connection = http.client.HTTPConnection("localhost", port)
            with contextlib.closing(connection):
                connection.request("GET", path)
                return connection.getresponse().read().decode()

        return self._namespace.run(ask)

    def authority(self):
        """The CA's root, which is ours, too."""
        now = dt.datetime.now(dt.UTC)
        return Authority.open(self.folder / "ca", "cluster.local", now)

    def connect(self, port):
        """Connect as soon as somebody listens."""
        end = time.monotonic() + LIMIT_S
        while True:
            sock = self._namespace.socket()
            sock.settimeout(LIMIT_S)
            try:
                sock.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < end
                time.sleep(0.05)
            else:
                return sock


@pytest.fixture
def world(request, tmp_path):
    with contextlib.ExitStack() as stack:
        yield World(tmp_path, request.config.getoption("--ztunnel"), stack)


def test_it_gets_certificates_for_its_workloads_and_renews_them(world):
    world.serve("--ttl", "10")
    world.ztunnel()
    names = {str(WEB), str(DB)}
    wait_until(lambda: names == set(world.certificates()))
    first = world.certificates()
    for name, leaf in first.items():
        assert str(identity_of(leaf)) == name
    wait_until(
        lambda: all(
            leaf.serial_number != first[name].serial_number
            for name, leaf in world.certificates().items()
        )
    )
    assert "refused" not in world.said("ca.log")


def test_a_wrong_token_is_said_in_its_log(world):
    world.serve()
    world.ztunnel(token="x" * 32)
    world.wait_for("ztunnel.log", "the token is not known; hint: send one of those")
    assert world.certificates() == {}


def shake(world, material):
    """Shake hands with its HBONE port as a client.

    Returns the server's leaf, and the first byte of HTTP/2 that it sends, if it does:
    that is after it has seen our certificate.
    """
    with client_context(material).wrap_socket(world.connect(HBONE_PORT)) as tls:
        assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.3", "h2")
        leaf = tls.getpeercert(binary_form=True)
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS)
            return leaf, tls.recv(1)
    return leaf, b""


def client_of(ca):
    return ca.workload(CLIENT, dt.timedelta(hours=1), dt.datetime.now(dt.UTC))


def test_it_shakes_hands_with_our_client(world):
    """Mutual TLS: it is who it has to be by our checks, and takes our certificate."""
    world.serve()
    world.ztunnel(**DEDICATED)
    material = client_of(world.authority())
    leaf, answer = shake(world, material)
    assert answer
    judge = Verifier(material.roots, Revocations())
    assert judge.server([leaf], [WEB], dt.datetime.now(dt.UTC)) == WEB


def test_the_engines_streams_go_through_it(world):
    """HBONE by the C engine: bytes, half-close, 503, and who it is."""
    world.serve()
    world.ztunnel(**DEDICATED)
    material = client_of(world.authority())
    for name in ("chain", "key", "roots"):
        (world.folder / f"{name}.pem").write_bytes(getattr(material, f"{name}_pem"))
    world.connect(HBONE_PORT).close()
    peer = [sys.executable, "-m", "tests.netns.hbone_peer", world.folder, str(WEB)]
    world.start("peer.log", peer)
    world.wait_for("peer.log", f"not {WEB}")
    said = world.said("peer.log").splitlines()
    assert said == [
        "TUNNEL NONE 0",
        "echoed over 1 tunnel",
        "FAILED UNAVAILABLE ECONNREFUSED",
        "refused",
        "TUNNEL NAME 0",
        "FAILED NAME ECONNREFUSED",
        f"not {WEB}",
    ]


def test_it_and_we_refuse_what_the_same_list_revokes(world):
    world.serve()
    ca = world.authority()
    good, bad = client_of(ca), client_of(ca)
    path = revoke(world.folder / "crl.pem", ca, bad.chain[0])
    world.ztunnel(**DEDICATED, CRL_PATH=str(path))
    assert shake(world, good)[1]
    assert not shake(world, bad)[1]
    counted = 'istio_crl_policy_rejections_total{reporter="destination"} 1'
    assert counted in world.page(15020, "/metrics").splitlines()
    judge = Verifier((ca.root,), parse(path.read_bytes()))
    now = dt.datetime.now(dt.UTC)

    def ask(material):
        leaf = material.chain[0].public_bytes(serialization.Encoding.DER)
        return judge.client([leaf], "cluster.local", now)

    assert ask(good) == CLIENT
    with pytest.raises(PeerError, match="is revoked"):
        ask(bad)


def revoke(path, ca, cert):
    """Write a list of the CA's with one certificate."""
    now = dt.datetime.now(dt.UTC)
    entry = x509.RevokedCertificateBuilder().serial_number(cert.serial_number)
    authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(
        ca.root.public_key()
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.root.subject)
        .last_update(now)
        .next_update(now + dt.timedelta(days=1))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(authority_key, critical=False)
        .add_revoked_certificate(entry.revocation_date(now).build())
        .sign(ca.key, hashes.SHA256())
    )
    path.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
    return path
