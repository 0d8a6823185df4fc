"""Who gets which certificate: the token file, and requests judged by it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from google.protobuf import struct_pb2

from fastpath.errors import FastpathError
from fastpath.mesh import tokens, wire
from fastpath.mesh.authority import ROOT_LIFE
from fastpath.mesh.issuing import Issuer, Reason, RefusedError, Shares
from fastpath.mesh.material import certificates, identity_of
from fastpath.mesh.tokens import Token
from tests.support.limits import until
from tests.unit.fastpath.mesh_pki import (
    FOREIGN,
    HOUR,
    NODE_TOKEN,
    OTHER,
    T0,
    TOKENS,
    WEB,
    WEB_TOKEN,
    authority,
    make_csr,
    uri,
)


def issuer(folder, *, file=TOKENS, **shares):
    known = tokens.parse(file.encode(), "t")
    return Issuer(authority(folder), lambda: known, HOUR, Shares(**shares))


def ask(of, token=WEB_TOKEN, csr=None, clock_s=0.0, now=T0, **fields):
    request = wire.Request(csr=(csr or make_csr()).decode(), **fields)
    with of.caller([f"Bearer {token}"], clock_s) as entry:
        return of.issue(entry, request.encode(), now)


def refusal(of, *args, **kwargs):
    with pytest.raises(RefusedError) as caught:
        ask(of, *args, **kwargs)
    assert "; hint: " in str(caught.value)
    return caught.value.reason, str(caught.value)


def test_the_bytes_of_a_request_are_istios():
    """Csr = 1, validity_duration = 3, metadata = 4, by hand."""
    data = b"\x0a\x03CSR\x18\x80\xa3\x05"
    assert wire.Request.decode(data) == wire.Request(csr="CSR", validity_s=86400)
    assert wire.Request(csr="CSR", validity_s=86400).encode() == data
    value = b"\x1a\x02id"  # string_value = 3
    entry = b"\x0a\x14ImpersonatedIdentity\x12" + bytes([len(value)]) + value
    struct = b"\x0a" + bytes([len(entry)]) + entry
    data += b"\x22" + bytes([len(struct)]) + struct
    request = wire.Request(csr="CSR", validity_s=86400, impersonated="id")
    assert wire.Request.decode(data) == request
    assert request.encode() == data


def test_the_bytes_of_a_response_are_istios():
    assert wire.Response(("a", "bc")).encode() == b"\x0a\x01a\x0a\x02bc"
    assert wire.Response.decode(b"\x0a\x01a\x0a\x02bc").cert_chain == ("a", "bc")


def test_other_metadata_is_skipped():
    """Istiod's callers send ClusterID and more."""
    metadata = struct_pb2.Struct()
    metadata.update({"ClusterID": "Kubernetes", "nested": {"a": [1, None]}})
    data = metadata.SerializeToString()
    request = b"\x0a\x01x\x22" + bytes([len(data)]) + data
    assert wire.Request.decode(request).impersonated is None


def test_a_caller_gets_its_own_identity(tmp_path):
    issued = ask(issuer(tmp_path))
    leaf, root = wire.Response.decode(issued.response).cert_chain
    assert identity_of(certificates("leaf", leaf.encode())[0]) == WEB
    assert certificates("root", root.encode()) == (authority(tmp_path).root,)


@pytest.mark.parametrize("identity", [WEB, OTHER], ids=str)
def test_a_node_gets_what_it_may_impersonate(identity, tmp_path):
    issued = ask(issuer(tmp_path), NODE_TOKEN, impersonated=str(identity))
    assert issued.identity == identity


@pytest.mark.parametrize(
    ("token", "name", "words"),
    [
        (WEB_TOKEN, OTHER, "default/web may not ask for"),
        (NODE_TOKEN, "spiffe://cluster.local/ns/prod/sa/other", "may not ask for"),
        (NODE_TOKEN, "spiffe://cluster.local/ns/default2/sa/web", "may not ask for"),
        (NODE_TOKEN, FOREIGN, "is not of trust domain cluster.local"),
    ],
    ids=["none", "account", "namespace", "trust-domain"],
)
def test_nobody_gets_another_identity(token, name, words, tmp_path):
    reason, text = refusal(issuer(tmp_path), token, impersonated=str(name))
    assert reason is Reason.PERMISSION_DENIED
    assert words in text


def test_a_forged_name_in_the_csr_is_refused(tmp_path):
    reason, text = refusal(issuer(tmp_path), csr=make_csr(uri(OTHER)))
    assert reason is Reason.PERMISSION_DENIED
    assert f"the CSR asks for URI:{OTHER}, and the token is for {WEB}" in text


@pytest.mark.parametrize(
    "name", ["", "web", "spiffe://cluster.local/ns/default", "\x00" * 99]
)
def test_what_is_no_identity_is_the_callers_fault(name, tmp_path):
    reason, _ = refusal(issuer(tmp_path), NODE_TOKEN, impersonated=name)
    assert reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 10,
        b"",
        b"\x0a\x01\xff",
        b"\x0a\x00\x22\x1d\x0a\x1b\x0a\x14ImpersonatedIdentity\x12\x03\x11\x00\x00",
        b"\x0a\x00\x22\x1a\x0a\x18\x0a\x14ImpersonatedIdentity\x12\x00",
        b"\x22\x06\x0a\x04\x12\x02\x32\x00" * 8000,
    ],
    ids=["no-message", "empty", "no-text", "cut", "no-string", "many"],
)
def test_a_message_that_is_none_is_the_callers_fault(data, tmp_path):
    of = issuer(tmp_path)
    with of.caller([f"Bearer {WEB_TOKEN}"], 0.0) as entry:
        with pytest.raises(RefusedError) as caught:
            of.issue(entry, data, T0)
        assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Bearer " + "0" * 32],
        ["Basic " + WEB_TOKEN],
        [WEB_TOKEN],
        [f"Bearer {WEB_TOKEN} "],
        [f"Bearer {WEB_TOKEN}"] * 2,
    ],
    ids=["none", "wrong", "basic", "bare", "space", "two"],
)
def test_without_a_known_token_nobody_is_anybody(headers, tmp_path):
    with (
        pytest.raises(RefusedError) as caught,
        issuer(tmp_path).caller(headers, 0.0),
    ):
        pass
    assert caught.value.reason is Reason.UNAUTHENTICATED
    assert WEB_TOKEN not in str(caught.value)


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2ln-bmF0_dXJl"


def test_a_kubernetes_token_is_refused_with_where_it_belongs(tmp_path):
    with (
        pytest.raises(RefusedError, match="a JWT, as Kubernetes' are") as caught,
        issuer(tmp_path).caller([f"Bearer {JWT}"], 0.0),
    ):
        pass
    assert caught.value.reason is Reason.UNAUTHENTICATED
    assert "hint: send one of those in the CA's --token-file, or ask istiod" in str(
        caught.value
    )
    assert JWT not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "given"),
    [(0, 3600), (-5, 3600), (60, 60), (86400, 3600), ((1 << 63) - 1, 3600)],
)
def test_a_life_is_as_asked_and_at_most_the_cas(asked, given, tmp_path):
    issued = ask(issuer(tmp_path), validity_s=asked)
    assert issued.life == timedelta(seconds=given)


def test_a_root_that_is_over_issues_nothing(tmp_path):
    of = issuer(tmp_path)
    assert ask(of, now=T0 + ROOT_LIFE - HOUR)
    reason, text = refusal(of, now=T0 + ROOT_LIFE)
    assert reason is Reason.UNAVAILABLE
    assert "root was valid until 2039-12-30T00:00:00Z; hint: start it with" in text


def test_one_token_has_a_rate(tmp_path):
    of = issuer(tmp_path, rate=2.0, burst=3.0)
    for _ in range(3):
        ask(of)
    reason, text = refusal(of)
    assert reason is Reason.RESOURCE_EXHAUSTED
    assert text.startswith("default/web asks too often")
    ask(of, NODE_TOKEN)  # another one's share is its own
    ask(of, clock_s=0.5)
    assert refusal(of, clock_s=0.5)[0] is Reason.RESOURCE_EXHAUSTED
    ask(of, clock_s=1.0)


def test_one_token_has_so_many_requests_under_way(tmp_path):
    of = issuer(tmp_path, at_once=1)
    with of.caller([f"Bearer {WEB_TOKEN}"], 0.0):
        assert refusal(of)[0] is Reason.RESOURCE_EXHAUSTED
        ask(of, NODE_TOKEN)
    ask(of)


ERRORS = {
    "empty": ("", "t:1: the file is empty"),
    "none": ("{}", "t:1: tokens: is missing"),
    "short": (
        "tokens:\n- token: abc\n  identity: a/b\n",
        "t:2: tokens[0].token: must be a bearer token of 16 to 8192 characters; hint:",
    ),
    "identity": (
        f"tokens:\n- token: {WEB_TOKEN}\n  identity: web\n",
        "t:3: tokens[0].identity: must be NAMESPACE/SERVICE_ACCOUNT, not 'web'; hint:",
    ),
    "pattern": (
        f"tokens:\n- token: {WEB_TOKEN}\n  identity: a/b\n  impersonate: ['*/b']\n",
        "t:4: tokens[0].impersonate[0]: must be NAMESPACE/SERVICE_ACCOUNT or *,",
    ),
    "unknown": (
        f"tokens:\n- token: {WEB_TOKEN}\n  identity: a/b\n  admin: true\n",
        "t:4: tokens[0].admin: unknown field; hint: use one of token, identity, imp",
    ),
    "twice": (
        f"tokens:\n- &a {{token: {WEB_TOKEN}, identity: a/b}}\n- *a\n",
        "t:1: tokens: two entries have the same token",
    ),
}


@pytest.mark.parametrize(("text", "words"), ERRORS.values(), ids=ERRORS)
def test_a_token_file_that_is_wrong_says_where(text, words):
    with pytest.raises(FastpathError) as caught:
        tokens.parse(text.encode(), "t")
    assert str(caught.value).startswith(words)


def test_an_error_shows_no_token():
    secret = "s3cret!" * 5
    text = f"tokens:\n- token: '{secret}'\n  identity: a/b\n"
    with pytest.raises(FastpathError) as caught:
        tokens.parse(text.encode(), "t")
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "no such file; hint: write one as docs/certificates.md"),
        (lambda path: path.mkdir(), "Is a directory; hint:"),
        (lambda path: path.touch(0o640), "others can use it (mode 0640); hint: chmod"),
    ],
    ids=["missing", "directory", "mode"],
)
def test_a_token_file_that_cannot_be_used_is_said(prepare, words, tmp_path):
    path = tmp_path / "tokens.yaml"
    prepare(path)
    with pytest.raises(FastpathError) as caught:
        tokens.follow(path)
    assert words in str(caught.value)


def test_a_token_file_is_followed_and_a_wrong_one_changes_nothing(tmp_path, caplog):
    path = tmp_path / "tokens.yaml"

    def put(text):
        new = tmp_path / "new"
        new.touch(0o600)
        new.write_text(text)
        new.rename(path)

    async def main():
        put(TOKENS)
        watch = tokens.follow(path)
        watch.start()
        assert watch.current.find(Token.of(WEB_TOKEN))
        put(TOKENS.replace(WEB_TOKEN, "next-" + "2" * 27))
        await until(lambda: watch.current.find(Token.of("next-" + "2" * 27)))
        assert watch.current.find(Token.of(WEB_TOKEN)) is None
        put("tokens: [")
        await until(lambda: "the tokens stay as they were" in caplog.text)
        assert watch.current.find(Token.of(NODE_TOKEN))
        watch.close()

    asyncio.run(main())
