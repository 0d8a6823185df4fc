"""docs/certificates.md and the example of a token file say what is so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastpath.identity import Identity
from fastpath.mesh import tokens
from fastpath.mesh.issuing import Shares
from fastpath.mesh.service import Limits
from fastpath.mesh.signing import MAX_CSR_BYTES
from fastpath.mesh.tokens import Token
from tests.unit.fastpath.mesh_pki import OTHER, WEB

DOCS = Path(__file__).parents[3] / "docs"


def test_the_documented_tokens_are_understood_in_full():
    example = DOCS / "ca-tokens.example.yaml"
    known = tokens.parse(example.read_bytes(), str(example))
    node = known.find(Token.of("9c1e6a2f4d80b3579c1e6a2f4d80b357"))
    assert node is not None
    assert node.identity.of("t") == Identity("t", "istio-system", "ztunnel")
    assert [each.cover(OTHER) for each in node.impersonate] == [False, True]
    assert [each.cover(WEB) for each in node.impersonate] == [True, False]
    page = (DOCS / "certificates.md").read_text()
    for field in dataclasses.fields(tokens.Entry):
        assert f"{field.name}:" in example.read_text()
        assert f"| `{field.name}` |" in page


def test_the_page_has_the_limits_that_are_so():
    page = (DOCS / "certificates.md").read_text()
    limits, shares = Limits(), Shares()
    for words in (
        f"| connections | {limits.connections} |",
        f"| handshake | {limits.handshake_s:g} s |",
        f"of our SETTINGS | {limits.settings_s:g} s |",
        f"without a request | {limits.idle_s:g} s |",
        f"| {limits.streams}, {shares.at_once}, {limits.requests} |",
        f"| headers | {limits.metadata_bytes >> 10} KiB |",
        f"to the message | {limits.receive_s:g} s |",
        f"| {limits.message_bytes >> 10} KiB, {MAX_CSR_BYTES >> 10} KiB |",
        f"of one token | {shares.rate:g}, and {shares.burst:g} after a rest |",
    ):
        assert words in page
