"""SPIFFE identities in Istio's form."""

from __future__ import annotations

import pytest

from fastpath.identity import Identity


def test_an_identity_reads_back():
    text = "spiffe://cluster.local/ns/default/sa/sleep.v1"
    identity = Identity.parse(text)
    assert identity == Identity("cluster.local", "default", "sleep.v1")
    assert str(identity) == text


@pytest.mark.parametrize(
    "text",
    [
        "cluster.local/ns/default/sa/a",
        "spiffe://cluster.local/ns/default",
        "spiffe:///ns/default/sa/a",
        "spiffe://Cluster.local/ns/default/sa/a",
        "spiffe://cluster.local/ns/default/sa/",
        "spiffe://cluster.local/ns/de/fault/sa/a",
        "spiffe://cluster.local/ns/default/sa/a/b",
        "spiffe://cluster.local/ns/default/sa/a\n",
        "spiffe://cluster.local/ns/-default/sa/a",
        "spiffe://cluster.local:80/ns/default/sa/a",
        "",
    ],
)
def test_anything_else_is_no_identity(text):
    with pytest.raises(ValueError, match="must be spiffe://"):
        Identity.parse(text)
