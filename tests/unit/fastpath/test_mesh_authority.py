"""The embedded CA: its root in a directory, and what it issues."""

from __future__ import annotations

import fcntl
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastpath.errors import FastpathError
from fastpath.mesh.authority import ROOT_LIFE, Authority
from fastpath.mesh.material import certificates, pem
from fastpath.mesh.signing import NotGrantedError
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.mesh_pki import (
    DAY,
    FOREIGN,
    HOUR,
    OTHER,
    SECOND,
    T0,
    WEB,
    authority,
    make_csr,
    rsa_key,
    uri,
)


def extension(cert, kind):
    found = cert.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def leaf_of(chain):
    return certificates("it", chain)[0]


def test_a_restart_has_the_same_root(tmp_path):
    first = authority(tmp_path)
    again = authority(tmp_path, now=T0 + DAY)
    assert again.root == first.root
    folder = tmp_path / "cluster.local"
    assert stat.S_IMODE((folder / "root-key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert certificates("it", again.root_path.read_bytes()) == (first.root,)


def test_many_who_start_at_once_have_one_root(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: authority(tmp_path).root, range(16)))
    assert set(found) == {found[0]}


def test_who_starts_waits_for_the_one_that_makes_the_root(tmp_path):
    folder = tmp_path / "cluster.local"
    first = authority(tmp_path)
    cert = first.root_path.read_bytes()
    first.root_path.unlink()
    inode = f":{(folder / 'lock').stat().st_ino} "
    with ThreadPoolExecutor(1) as pool, (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = pool.submit(authority, tmp_path)

        def waits():
            locks = Path("/proc/locks").read_text().splitlines()
            return any("-> FLOCK" in line and inode in line for line in locks)

        wait_until(lambda: second.done() or waits())
        assert not second.done()
        first.root_path.write_bytes(cert)
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert second.result(LIMIT_S).root == first.root


def test_a_start_that_ended_between_key_and_root_is_finished(tmp_path):
    first = authority(tmp_path)
    first.root_path.unlink()
    again = authority(tmp_path)
    assert again.root.public_key() == first.root.public_key()


def test_the_root_is_a_p256_ca_of_the_trust_domain(tmp_path):
    ca = authority(tmp_path)
    key = ca.root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert extension(ca.root, x509.BasicConstraints) == (
        x509.BasicConstraints(True, 0),
        True,
    )
    usage, critical = extension(ca.root, x509.KeyUsage)
    assert (critical, usage.key_cert_sign, usage.crl_sign) == (True, True, True)
    assert not usage.digital_signature
    assert ca.root.subject.rfc4514_string() == "O=cluster.local"


def test_a_workloads_certificate_is_as_istios(tmp_path):
    """An empty subject, one critical URI; the usages of Istio's CA."""
    ca = authority(tmp_path)
    material = ca.workload(WEB, HOUR, T0)
    (leaf,) = material.chain
    assert leaf.subject == x509.Name([])
    san = x509.SubjectAlternativeName([uri("spiffe://cluster.local/ns/default/sa/web")])
    assert extension(leaf, x509.SubjectAlternativeName) == (san, True)
    usage, critical = extension(leaf, x509.KeyUsage)
    assert critical
    assert (usage.digital_signature, usage.key_encipherment) == (True, True)
    assert (usage.key_cert_sign, usage.crl_sign) == (False, False)
    extended, _ = extension(leaf, x509.ExtendedKeyUsage)
    assert set(extended) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert extension(leaf, x509.BasicConstraints)[0].ca is False
    assert leaf.not_valid_after_utc == T0 + HOUR
    assert material.identity == WEB
    assert material.roots == (ca.root,)


@pytest.mark.parametrize("life", [10 * SECOND, HOUR, 90 * DAY], ids=str)
def test_a_new_certificate_is_not_past_its_half_life(life, tmp_path):
    material = authority(tmp_path).workload(WEB, life, T0)
    assert T0 + life / 3 < material.half_life < T0 + life


def test_no_certificate_outlives_the_root(tmp_path):
    ca = authority(tmp_path)
    late = T0 + ROOT_LIFE - HOUR
    assert ca.workload(WEB, DAY, late).not_after == ca.root.not_valid_after_utc


def test_two_certificates_have_two_serials_and_two_keys(tmp_path):
    ca = authority(tmp_path)
    one, two = (ca.workload(WEB, HOUR, T0) for _ in range(2))
    assert one.chain[0].serial_number != two.chain[0].serial_number
    assert one.key_pem != two.key_pem


def test_openssl_takes_the_chain(tmp_path):
    """Another implementation than the one that made it."""
    ca = Authority.open(tmp_path, "cluster.local", T0)
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(pem(ca.workload(WEB, HOUR, T0).chain))
    when = str(int(T0.timestamp()) + 60)
    root = str(tmp_path / "root-cert.pem")
    command = ["openssl", "verify", "-x509_strict", "-attime", when, "-CAfile", root]
    found = subprocess.run([*command, leaf], check=False, capture_output=True)
    assert found.returncode == 0, found


def test_only_the_key_of_a_request_is_taken(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.BasicConstraints(True, None)
    csr = make_csr(key=key, extensions=[wish])
    leaf = leaf_of(authority(tmp_path).issue(csr, WEB, HOUR, T0))
    assert leaf.public_key() == key.public_key()
    assert extension(leaf, x509.BasicConstraints)[0].ca is False
    assert extension(leaf, x509.SubjectAlternativeName)[0] == (
        x509.SubjectAlternativeName([uri(WEB)])
    )


@pytest.mark.parametrize(
    "names",
    [
        [uri(OTHER)],
        [uri(FOREIGN)],
        [uri(WEB), uri(OTHER)],
        [x509.DNSName("istiod.istio-system.svc")],
        [x509.DNSName(str(WEB))],
        [uri(f"{WEB}/")],
    ],
    ids=["other", "foreign", "two", "dns", "dns-uri", "path"],
)
def test_a_forged_name_in_a_request_is_refused(names, tmp_path):
    with pytest.raises(NotGrantedError, match="the CSR asks for"):
        authority(tmp_path).issue(make_csr(*names), WEB, HOUR, T0)


def test_a_request_may_repeat_the_granted_name(tmp_path):
    assert authority(tmp_path).issue(make_csr(uri(WEB)), WEB, HOUR, T0)


def test_rsa_keys_of_sidecars_are_certified(tmp_path):
    assert authority(tmp_path).issue(make_csr(key=rsa_key(2048)), WEB, HOUR, T0)


def tampered():
    """The last byte is the signature's."""
    good = x509.load_pem_x509_csr(make_csr(uri(WEB)))
    data = bytearray(good.public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    bad = x509.load_der_x509_csr(bytes(data))
    return bad.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("csr", "why"),
    [
        (b"", "can't be read"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "can't be read"),
        (b"\xff" * 100, "can't be read"),
        (b"x" * 9000, "more than 8192 bytes"),
        (make_csr(key=ec.generate_private_key(ec.SECP224R1())), "must be P-256"),
        (make_csr(key=rsa_key(1024)), "must be P-256"),
        (make_csr(key=rsa_key(4104)), "must be P-256"),
        (tampered(), "not signed with its own key"),
    ],
    ids=["empty", "short", "bytes", "huge", "p224", "rsa1024", "rsa4104", "tampered"],
)
def test_what_is_no_sound_request_is_refused(csr, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        authority(tmp_path).issue(csr, WEB, HOUR, T0)


def test_an_identity_of_another_trust_domain_is_not_issued(tmp_path):
    with pytest.raises(ValueError, match="not of trust domain"):
        authority(tmp_path).issue(make_csr(), FOREIGN, HOUR, T0)


def reopen(tmp_path, change, now=T0, trust_domain="cluster.local"):
    folder = tmp_path / "ca"
    Authority.open(folder, "cluster.local", T0)
    change(folder)
    with pytest.raises(FastpathError) as caught:
        Authority.open(folder, trust_domain, now)
    return str(caught.value)


def replace_key(folder):
    other = Authority.open(folder / "other", "cluster.local", T0)
    other.root_path.with_name("root-key.pem").rename(folder / "root-key.pem")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "root-key.pem").chmod(0o640), "mode 0640); hint: chmod 600"),
        (lambda d: (d / "root-key.pem").unlink(), "is missing beside root-cert.pem"),
        (lambda d: (d / "root-key.pem").write_bytes(b"x"), "is no private key"),
        (lambda d: (d / "root-cert.pem").write_bytes(b"x"), "can't be read"),
        (replace_key, "is not root-key.pem's"),
    ],
    ids=["mode", "no-key", "bad-key", "bad-root", "other-key"],
)
def test_a_root_that_is_not_good_is_said_and_not_replaced(change, words, tmp_path):
    assert words in reopen(tmp_path, change)


def test_a_root_of_another_trust_domain_is_refused(tmp_path):
    text = reopen(tmp_path, lambda _: None, trust_domain="prod.example")
    assert "is the root of ['cluster.local'], not of trust domain prod.example" in text


def test_a_root_that_is_over_is_refused(tmp_path):
    text = reopen(tmp_path, lambda _: None, now=T0 + ROOT_LIFE)
    assert "was valid until 2039-12-30T00:00:00Z; hint: move " in text


def test_a_trust_domain_may_be_as_long_as_spiffe_allows(tmp_path):
    name = "a" * 255
    ca = Authority.open(tmp_path, name, T0)
    assert Authority.open(tmp_path, name, T0).root == ca.root


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_directory_that_others_can_write_to_is_refused(mode, tmp_path):
    (tmp_path / "cluster.local").mkdir()
    (tmp_path / "cluster.local").chmod(mode)
    with pytest.raises(FastpathError, match=f"mode {mode:04o}.*chmod 700"):
        authority(tmp_path)
    assert list((tmp_path / "cluster.local").iterdir()) == []
