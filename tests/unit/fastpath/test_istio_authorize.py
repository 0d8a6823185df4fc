"""Authorization: what each part of a policy means, as a table.

Spec: Istio, "AuthorizationPolicy"; istio/ztunnel, `rbac`.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fastpath.identity import Identity
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.istio.authorize import Connection, judge, matches
from fastpath.ztunnel.istio.state import MeshState

WEB = Identity("cluster.local", "default", "web")
OTHER_DOMAIN = Identity("example.com", "default", "web")


def parse(text):
    return file.parse(text.encode(), "mesh.yaml")[0]


def policy(rules, *, action="Allow", dry_run="false", name="p"):
    head = f"name: {name}, namespace: default, scope: Namespace, action: {action}"
    return f"- {{{head}, dryRun: {dry_run}, rules: {rules}}}\n"


def connection(source="10.0.0.2", to="10.0.0.11", port=8080, identity=WEB):
    return Connection(ip_address(source), ip_address(to), port, identity)


def match(fields):
    return f"[[[{{{fields}}}]]]"


MATCHES = {
    # field, what matches, what does not
    "port": ("destinationPorts: [80, 8080]", {}, {"port": 81}),
    "not-port": ("notDestinationPorts: [9999]", {}, {"port": 9999}),
    "source-ip": (
        "sourceIps: [192.0.2.0/24, 10.0.0.0/30]",
        {},
        {"source": "10.0.0.4"},
    ),
    "source-ip-of-another-version": (
        "sourceIps: [0.0.0.0/0]",
        {},
        {"source": "fd00::2"},
    ),
    "not-source-ip": (
        "notSourceIps: [10.9.0.0/16]",
        {},
        {"source": "10.9.1.1"},
    ),
    "destination-ip": (
        "destinationIps: [10.0.0.11/32]",
        {},
        {"to": "10.0.0.12"},
    ),
    "not-destination-ip": (
        "notDestinationIps: [10.0.0.12/32]",
        {},
        {"to": "10.0.0.12"},
    ),
    "exact": ("namespaces: [!Exact default]", {}, {"identity": None}),
    "prefix": (
        "namespaces: [!Prefix def]",
        {},
        {"identity": Identity("cluster.local", "prod", "web")},
    ),
    "suffix": (
        "namespaces: [!Suffix ault]",
        {},
        {"identity": Identity("cluster.local", "default-2", "web")},
    ),
    "presence": ("namespaces: [!Presence []]", {}, {"identity": None}),
    "not-presence": ("notNamespaces: [!Presence []]", {"identity": None}, {}),
    "not-exact": (
        "notNamespaces: [!Exact prod]",
        {},
        {"identity": Identity("cluster.local", "prod", "web")},
    ),
    "principal": (
        "principals: [!Exact cluster.local/ns/default/sa/web]",
        {},
        {"identity": OTHER_DOMAIN},
    ),
    "principal-without-the-scheme": (
        "principals: [!Prefix cluster.local/]",
        {},
        {"identity": OTHER_DOMAIN},
    ),
    "principal-presence": ("principals: [!Presence []]", {}, {"identity": None}),
    "not-principal": (
        "notPrincipals: [!Suffix /sa/web]",
        {"identity": None},
        {},
    ),
    "account": (
        "serviceAccounts: [{namespace: default, serviceAccount: web}]",
        {"identity": OTHER_DOMAIN},
        {"identity": Identity("cluster.local", "prod", "web")},
    ),
    "not-account": (
        "notServiceAccounts: [{namespace: default, serviceAccount: web}]",
        {"identity": None},
        {},
    ),
    "fields-are-and": (
        "namespaces: [!Exact default], destinationPorts: [8080]",
        {},
        {"port": 81},
    ),
    "twins-are-and": (
        "sourceIps: [10.0.0.0/8], notSourceIps: [10.9.0.0/16]",
        {},
        {"source": "10.9.1.1"},
    ),
}


def first(text):
    return parse(f"policies:\n{text}").policies[0]


@pytest.mark.parametrize(("fields", "yes", "no"), MATCHES.values(), ids=MATCHES.keys())
def test_a_field_matches(fields, yes, no):
    found = first(policy(match(fields)))
    assert matches(found, connection(**yes))
    assert not matches(found, connection(**no))


A, B = "{destinationPorts: [8080]}", "{sourceIps: [192.0.2.0/24]}"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        pytest.param("[]", False, id="no-rules"),
        pytest.param("[[]]", True, id="no-clauses"),
        pytest.param("[[[]]]", True, id="no-matches"),
        pytest.param("[[[{}]]]", False, id="no-fields"),
        pytest.param(f"[[[{{}}, {A}]]]", True, id="no-fields-or"),
        pytest.param(f"[[[{B}]], [[{A}]]]", True, id="rules-or"),
        pytest.param(f"[[[{A}], [{B}]]]", False, id="clauses-and"),
        pytest.param(f"[[[{A}], []]]", True, id="clauses-and-empty"),
        pytest.param(f"[[[{B}, {A}]]]", True, id="matches-or"),
        pytest.param(f"[[[{B}]], [[{B}]]]", False, id="nothing"),
    ],
)
def test_how_rules_clauses_and_matches_go_together(rules, expected):
    assert matches(first(policy(rules)), connection()) is expected


YES, NO = "[[]]", "[]"


@pytest.mark.parametrize(
    ("policies", "allowed", "text"),
    [
        ([], True, ""),
        ([("Allow", YES)], True, ""),
        ([("Allow", NO)], False, "allow policies exist, but none allowed"),
        ([("Allow", NO), ("Allow", YES)], True, ""),
        ([("Deny", YES)], False, "explicitly denied by: default/p0"),
        ([("Deny", NO)], True, ""),
        ([("Allow", YES), ("Deny", YES)], False, "explicitly denied by: default/p1"),
        ([("Deny", NO), ("Allow", NO)], False, "allow policies exist, but none"),
    ],
)
def test_what_denies_goes_first(policies, allowed, text):
    rows = "".join(
        policy(rules, action=action, name=f"p{i}")
        for i, (action, rules) in enumerate(policies)
    )
    found = parse(f"policies:\n{rows}" if rows else "{}").policies
    verdict = judge(found, connection())
    assert verdict.allowed is allowed
    assert verdict.text.startswith(text)


@pytest.mark.parametrize(
    ("action", "rules", "note"),
    [
        ("Deny", YES, "dry-run: deny policy match: default/p"),
        ("Deny", NO, None),
        ("Allow", YES, "dry-run: allow policy match: default/p"),
        ("Allow", NO, "dry-run: no allow policies match"),
    ],
)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(action, rules, note):
    verdict = judge([first(policy(rules, action=action, dry_run="true"))], connection())
    assert verdict.allowed
    assert verdict.dry_run == ((note,) if note else ())


SCOPES = """
workloads:
- {name: a, namespace: default, workloadIps: [], services: {},
   authorizationPolicies: [prod/chosen]}
- {name: b, namespace: prod, workloadIps: [], services: {}}
policies:
- {name: all, namespace: istio-system, scope: Global, action: Deny, dryRun: false,
   rules: []}
- {name: here, namespace: default, scope: Namespace, action: Deny, dryRun: false,
   rules: []}
- {name: chosen, namespace: prod, scope: WorkloadSelector, action: Deny,
   dryRun: false, rules: []}
- {name: other, namespace: other, scope: Namespace, action: Deny, dryRun: false,
   rules: []}
"""


def test_which_policies_are_for_a_workload():
    there = parse(SCOPES)
    state = MeshState(there)
    a, b = (
        [policy.key for policy in state.policies_of(each)] for each in there.workloads
    )
    assert a == ["default/here", "istio-system/all", "prod/chosen"]
    assert b == ["istio-system/all"]
