"""Mutual TLS by our contexts, whose certificate a peer shows, and what is revoked."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastpath.errors import FastpathError
from fastpath.mesh.contexts import PemDirectory, client_context, server_context
from fastpath.mesh.peers import PeerError, Verifier
from fastpath.mesh.revocation import Revocations, follow, parse
from tests.support.limits import until
from tests.unit.fastpath.mesh_pki import (
    DAY,
    FOREIGN,
    HOUR,
    OTHER,
    T0,
    WEB,
    authority,
    root,
)

ROOT = root()
BETWEEN = ROOT.issue(ca="between")
LEAF = BETWEEN.issue(WEB, serial=7)


def der(*certs):
    return [each.cert.public_bytes(serialization.Encoding.DER) for each in certs]


def verifier(*crls, roots=(ROOT,)):
    return Verifier(tuple(each.cert for each in roots), parse(b"".join(crls)))


def refused(call):
    with pytest.raises(PeerError) as caught:
        call()
    return str(caught.value)


def test_a_client_is_who_its_certificate_names():
    chain = der(LEAF, BETWEEN)
    assert verifier().client(chain, "cluster.local", T0) == WEB


def test_a_server_is_one_of_those_expected():
    chain = der(LEAF, BETWEEN)
    assert verifier().server(chain, [OTHER, WEB], T0) == WEB
    text = refused(lambda: verifier().server(chain, [OTHER], T0))
    assert text == f"the server is {WEB}, not one of: {OTHER}"


def test_the_embedded_cas_certificates_are_taken(tmp_path):
    ca = authority(tmp_path)
    (leaf,) = ca.workload(WEB, HOUR, T0).chain
    chain = [leaf.public_bytes(serialization.Encoding.DER)]
    own = Verifier((ca.root,), Revocations())
    assert own.client(chain, "cluster.local", T0) == WEB
    assert own.server(chain, [WEB], T0) == WEB


def sub_leaf():
    """A leaf that signs another one."""
    leaf = ROOT.issue(OTHER)
    return leaf.issue(WEB), leaf


BAD = {
    "none": (list, "it shows no certificate"),
    "no-intermediate": (lambda: der(LEAF), "is not to be trusted"),
    "other-root": (lambda: der(root().issue(WEB)), "is not to be trusted"),
    "self-signed": (lambda: der(root("cluster.local")), "has 0 URIs, not one"),
    "expired": (
        lambda: der(ROOT.issue(WEB, begin=T0 - 2 * DAY, life=DAY)),
        "is not to be trusted",
    ),
    "early": (lambda: der(ROOT.issue(WEB, begin=T0 + HOUR)), "is not to be trusted"),
    "old-intermediate": (
        lambda: der(
            (old := ROOT.issue(ca="old", begin=T0 - DAY, life=HOUR)).issue(WEB), old
        ),
        "is not to be trusted",
    ),
    "leaf-as-ca": (lambda: der(*sub_leaf()), "is not to be trusted"),
    "trust-domain": (
        lambda: der(ROOT.issue(FOREIGN)),
        f"{FOREIGN} is not of trust domain cluster.local",
    ),
    "no-name": (lambda: der(ROOT.issue()), "has 0 URIs, not one"),
    "two-names": (lambda: der(ROOT.issue(WEB, OTHER)), "has 2 URIs, not one"),
    "no-spiffe": (lambda: der(ROOT.issue("https://a/b")), "must be spiffe://"),
    "usage": (
        lambda: der(ROOT.issue(WEB, usages=[ExtendedKeyUsageOID.SERVER_AUTH])),
        "is not to be trusted",
    ),
    "garbage": (lambda: [b"\x30\x03abc"], "error parsing asn1 value"),
    "long": (lambda: der(LEAF) * 11, "too many certificates"),
    "large": (lambda: [bytes(70000)], "too many certificates"),
}


@pytest.mark.parametrize(("chain", "words"), BAD.values(), ids=BAD)
def test_a_client_that_is_not_good_is_refused(chain, words):
    made = chain()
    assert words in refused(lambda: verifier().client(made, "cluster.local", T0))


@pytest.mark.parametrize(
    ("crls", "words"),
    [
        ([BETWEEN.crl(7)], "its certificate 7 is revoked"),
        (
            [ROOT.crl(BETWEEN.cert.serial_number)],
            f"its certificate {BETWEEN.cert.serial_number:x} is revoked",
        ),
        ([ROOT.crl(), BETWEEN.crl(1, 7, 9)], "its certificate 7 is revoked"),
        ([BETWEEN.crl(7, begin=T0 - 9 * DAY)], "its certificate 7 is revoked"),
    ],
    ids=["leaf", "intermediate", "second-list", "stale-list"],
)
def test_a_list_revokes_any_certificate_of_a_chain(crls, words):
    chain = der(LEAF, BETWEEN)
    judge = verifier(*crls)
    assert refused(lambda: judge.client(chain, "cluster.local", T0)) == words
    assert refused(lambda: judge.server(chain, [WEB], T0)) == words


@pytest.mark.parametrize(
    "crls",
    [
        [],
        [BETWEEN.crl(8)],
        [ROOT.crl(7)],
        [root("other").crl(7)],
        [BETWEEN.crl(7, signer=ROOT)],
    ],
    ids=["none", "other-serial", "other-issuer", "stranger", "forged"],
)
def test_whom_no_list_speaks_of_is_good(crls):
    chain = der(LEAF, BETWEEN)
    assert verifier(*crls).client(chain, "cluster.local", T0) == WEB


def der_of(pem_data):
    crl = x509.load_pem_x509_crl(pem_data)
    return crl.public_bytes(serialization.Encoding.DER)


def test_a_file_of_lists_is_read_as_ztunnel_does():
    one, two = ROOT.crl(1), BETWEEN.crl(2)
    cert = LEAF.cert.public_bytes(serialization.Encoding.PEM)
    assert len(parse(b"")) == len(parse(b"\n")) == len(parse(cert)) == 0
    assert len(parse(one + cert + b"\n# text\n" + two)) == 2
    assert len(parse(der_of(one))) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"nonsense", "list 1 can't be read"),
        (ROOT.crl() + b"-----BEGIN X509 CRL-----\nAAAA\n", "list 2 can't be read"),
        (
            ROOT.crl(extensions=[x509.DeltaCRLIndicator(1)]),
            "list 1 has the critical extension 2.5.29.27",
        ),
    ],
    ids=["nonsense", "cut", "delta"],
)
def test_a_file_that_is_no_list_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        parse(data)


def test_lists_are_followed_and_bad_ones_change_nothing(tmp_path, caplog):
    path = tmp_path / "crl.pem"
    chain = [LEAF.cert, BETWEEN.cert, ROOT.cert]

    def put(data):
        (tmp_path / "new").write_bytes(data)
        (tmp_path / "new").rename(path)

    async def main():
        calls = []
        watch = follow(path, changed=lambda: calls.append(1))
        assert "is missing, so there are no revocation lists" in caplog.text
        watch.start()
        put(BETWEEN.crl(7))
        await until(lambda: watch.current.find(chain))
        assert calls == [1]
        put(b"nonsense")
        await until(lambda: "stay as they were" in caplog.text)
        assert watch.current.find(chain) == LEAF.cert
        caplog.clear()
        path.unlink()
        await until(lambda: "no such file; hint" in caplog.text)
        assert watch.current.find(chain) == LEAF.cert
        put(b"")
        await until(lambda: watch.current.find(chain) is None)
        assert calls == [1, 1]
        watch.close()

    asyncio.run(main())


def test_a_file_of_lists_that_is_bad_at_the_start_is_said(tmp_path):
    path = tmp_path / "crl.pem"
    path.write_bytes(b"nonsense")
    with pytest.raises(FastpathError, match=r"crl.pem: list 1 can't be read: .*; hint"):
        follow(path)
    with pytest.raises(FastpathError, match="hint: make the directory"):
        follow(tmp_path / "none" / "crl.pem")


# ---- contexts ----


class Ends:
    """Two ends of TLS over memory."""

    def __init__(self, client, server):
        a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(a, b)
        self.server = server.wrap_bio(b, a, server_side=True)

    def shake(self):
        """Until both are done, or one raises."""
        pending = [self.client, self.server]
        for _ in range(10):
            for end in list(pending):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                pending.remove(end)
            if not pending:
                break
        with pytest.raises(ssl.SSLWantReadError):
            self.client.read()  # a refusal of the client's certificate comes late
        return self


def today(ca, identity):
    """Material for contexts, whose clock is the machine's."""
    return ca.workload(identity, HOUR, dt.datetime.now(dt.UTC))


@pytest.fixture
def ca(tmp_path):
    return authority(tmp_path, now=dt.datetime.now(dt.UTC))


def test_two_workloads_shake_hands_by_tls_1_3_and_h2(ca):
    client = client_context(today(ca, WEB))
    server = server_context(today(ca, OTHER))
    ends = Ends(client, server).shake()
    for end in (ends.client, ends.server):
        assert end.version() == "TLSv1.3"
        assert end.selected_alpn_protocol() == "h2"
    names = ends.server.getpeercert()["subjectAltName"]
    assert names == (("URI", str(WEB)),)
    shown = [ends.server.getpeercert(binary_form=True)]
    judge = Verifier((ca.root,), Revocations())
    now = dt.datetime.now(dt.UTC)
    assert judge.client(shown, "cluster.local", now) == WEB
    ends.client.write(b"hello")
    assert ends.server.read() == b"hello"


def test_a_connection_goes_on_through_a_rotation(ca):
    """New contexts are for new connections."""
    old = Ends(client_context(today(ca, WEB)), server_context(today(ca, OTHER))).shake()
    new = Ends(client_context(today(ca, WEB)), server_context(today(ca, OTHER))).shake()
    for ends in (old, new):
        ends.server.write(b"still here")
        assert ends.client.read() == b"still here"
    serials = {each.server.getpeercert()["serialNumber"] for each in (old, new)}
    assert len(serials) == 2


def test_no_session_is_resumed(ca):
    client = client_context(today(ca, WEB))
    ends = Ends(client, server_context(today(ca, OTHER))).shake()
    assert not ends.client.session.has_ticket


def foreign_client(ca, tmp_path):
    other = authority(tmp_path / "foreign", now=ca.root.not_valid_before_utc + HOUR)
    context = client_context(today(ca, WEB))
    PemDirectory(tmp_path / "pems").write(today(other, WEB))
    pems = PemDirectory(tmp_path / "pems")
    context.load_cert_chain(pems.chain, pems.key)
    return context


def expired_client(ca, tmp_path):
    context = client_context(today(ca, WEB))
    pems = PemDirectory(tmp_path / "pems")
    pems.write(ca.workload(WEB, HOUR, ca.root.not_valid_before_utc - 2 * HOUR))
    context.load_cert_chain(pems.chain, pems.key)
    return context


def bare_client(ca, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca.root_path)
    return context


def old_client(ca, tmp_path):
    context = client_context(today(ca, WEB))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (foreign_client, "certificate verify failed"),
        (expired_client, "certificate has expired"),
        (bare_client, "peer did not return a certificate"),
        (old_client, "unsupported protocol"),
    ],
)
def test_a_server_refuses_in_the_handshake(make, words, ca, tmp_path):
    ends = Ends(make(ca, tmp_path), server_context(today(ca, OTHER)))
    with pytest.raises(ssl.SSLError) as caught:
        ends.shake()
    assert words in str(caught.value).replace("_", " ").lower()


def test_a_client_refuses_a_server_of_another_root(ca, tmp_path):
    other = authority(tmp_path / "foreign", now=ca.root.not_valid_before_utc + HOUR)
    ends = Ends(client_context(today(ca, WEB)), server_context(today(other, OTHER)))
    with pytest.raises(ssl.SSLCertVerificationError):
        ends.shake()


def test_pem_files_are_of_one_issue_and_the_key_is_ours(ca, tmp_path):
    pems = PemDirectory(tmp_path / "pems")
    for _ in range(4):
        material = today(ca, WEB)
        pems.write(material)
        assert pems.key.read_bytes() == material.key_pem
        assert pems.chain.read_bytes() == material.chain_pem
        assert pems.roots.read_bytes() == ca.root_pem
    assert stat.S_IMODE(pems.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(pems.path.stat().st_mode) == 0o700
    kept = [each.name for each in pems.path.iterdir() if not each.is_symlink()]
    assert len(kept) == 2  # the current one and the one before


def test_pem_files_that_cannot_be_written_leave_the_last_ones(ca, tmp_path):
    pems = PemDirectory(tmp_path / "pems")
    first = today(ca, WEB)
    pems.write(first)
    (pems.path / "..data.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        pems.write(today(ca, WEB))
    assert pems.key.read_bytes() == first.key_pem
