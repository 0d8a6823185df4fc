"""Our answers to CONNECT, by the tables that Istio's ztunnel is held to as well."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fastpath.identity import Identity
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.istio.inbound import Accepted, Request, inbound
from fastpath.ztunnel.istio.state import MeshState
from tests.support.inbound_cases import (
    ACTIONS,
    AUTHORITIES,
    CLIENT,
    FIELDS,
    FIRST,
    IP,
    OPEN,
    PLAIN,
    SCOPES,
    TUNNELLED,
    denying_fields,
    with_policies,
    with_scope,
    with_tunnel,
)


def answer(mesh, authority):
    """The status; what is allowed to a port where nobody listens is 503."""
    loaded, _ = file.parse(mesh.encode(), "mesh.yaml")
    assert not list(file.problems(loaded))
    request = Request(
        authority=authority,
        source=ip_address(IP),
        reached=ip_address(IP),
        identity=Identity.parse(CLIENT),
    )
    found = inbound(MeshState(loaded), loaded.workloads[0], request)
    if isinstance(found, Accepted):
        return 200 if found.port == OPEN else 503
    return found.status


@pytest.mark.parametrize("case", AUTHORITIES.values(), ids=AUTHORITIES.keys())
def test_an_authority_is_answered(case):
    assert answer(PLAIN, case.text) == case.status


@pytest.mark.parametrize("case", TUNNELLED.values(), ids=TUNNELLED.keys())
def test_a_tunnels_authority_is_answered(case):
    assert answer(with_tunnel(), case.text) == case.status


@pytest.mark.parametrize("name", FIELDS)
def test_a_match_is_that_of_the_client(name):
    port = FIRST + list(FIELDS).index(name)
    denied = answer(denying_fields(), f"{IP}:{port}") == 401
    assert denied is FIELDS[name][1]


@pytest.mark.parametrize(("policies", "allowed"), ACTIONS.values(), ids=ACTIONS.keys())
def test_policies_allow(policies, allowed):
    assert (answer(with_policies(policies), f"{IP}:{OPEN}") == 200) is allowed


@pytest.mark.parametrize(("where", "denied"), SCOPES.values(), ids=SCOPES.keys())
def test_a_scope_has_the_workload(where, denied):
    assert (answer(with_scope(where), f"{IP}:{OPEN}") == 401) is denied
