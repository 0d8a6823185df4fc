"""Files of Istio's, and what each answers to a CONNECT to its workload `server`.

Our decisions are held to these tables, and Istio's ztunnel's with `--ztunnel BIN`. On
port `OPEN` somebody listens there; elsewhere what is allowed is refused by TCP: 503.
"""

from __future__ import annotations

from dataclasses import dataclass

SERVER = "default/server/server"
"""Namespace, name and service account, as PROXY_WORKLOAD_INFO has them."""
CLIENT = "spiffe://cluster.local/ns/default/sa/client"
IP = "127.0.0.1"
OPEN, SHUT = 8080, 8081
FIRST = 7000
"""Port of the first case of `FIELDS`."""

_HEAD = f"""
workloads:
- {{uid: server, name: server, namespace: default, serviceAccount: server, node: local,
   trustDomain: cluster.local, clusterId: Kubernetes, workloadIps: [{IP}],
   services: {{default/web.default: {{80: {OPEN}, 82: {OPEN}}}}}TUNNEL}}
services:
- {{name: web, namespace: default, hostname: web.default, vips: [/10.96.0.1],
   ports: {{80: 80, 81: {OPEN}, 82: 0, 83: 0}}}}
- {{name: guarded, namespace: default, hostname: guarded.default, vips: [/10.96.0.2],
   ports: {{80: 80}}, waypoint: {{destination: /{IP}, hboneMtlsPort: 15008}}}}
- {{name: other, namespace: default, hostname: other.default, vips: [/10.96.0.3],
   ports: {{80: 80}}}}
"""
PLAIN = _HEAD.replace("TUNNEL", "")
TUNNEL = ", applicationTunnel: {protocol: PROXY, port: %d}"


def _policy(name, rules, action="Deny", *, scope="Namespace", dry="false"):
    head = f"name: {name}, namespace: default, scope: {scope}, action: {action}"
    return f"- {{{head}, dryRun: {dry}, rules: {rules}}}\n"


@dataclass(frozen=True)
class Authority:
    """What a CONNECT asks for, and the answer."""

    text: str
    status: int


AUTHORITIES = {
    "ip": Authority(f"{IP}:{OPEN}", 200),
    "nobody-listens": Authority(f"{IP}:{SHUT}", 503),
    "another-ip": Authority(f"127.0.0.2:{OPEN}", 400),
    "no-port": Authority(IP, 400),
    "our-own-port": Authority(f"{IP}:15008", 503),
    "plain-text-port": Authority(f"{IP}:15006", 503),
    "hostname": Authority("web.default:80", 200),
    "hostname-service-port": Authority("web.default:81", 200),
    "hostname-endpoint-port": Authority("web.default:82", 200),
    "hostname-no-target": Authority("web.default:83", 503),
    "hostname-other-port": Authority("web.default:84", 503),
    "hostname-unknown": Authority("nobody.default:80", 503),
    "vip": Authority(f"10.96.0.1:{OPEN}", 400),
    "vip-behind-us": Authority(f"10.96.0.2:{OPEN}", 200),
    "vip-of-another": Authority(f"10.96.0.3:{OPEN}", 400),
}
TUNNELLED = {
    "another-ip": Authority("192.0.2.1:99", 200),
    "hostname": Authority("web.default:80", 200),
    "our-own-port": Authority("192.0.2.1:15008", 503),
}
"""With an application tunnel to `OPEN`."""

FIELDS = {
    # what a match has, and whether it is `CLIENT` from 127.0.0.1
    "exact": ("namespaces: [!Exact default]", True),
    "exact-other": ("namespaces: [!Exact prod]", False),
    "prefix": ("namespaces: [!Prefix def]", True),
    "prefix-other": ("namespaces: [!Prefix prod]", False),
    "suffix": ("namespaces: [!Suffix ault]", True),
    "suffix-other": ("namespaces: [!Suffix prod]", False),
    "presence": ("namespaces: [!Presence []]", True),
    "not-presence": ("notNamespaces: [!Presence []]", False),
    "not-exact": ("notNamespaces: [!Exact default]", False),
    "not-exact-other": ("notNamespaces: [!Exact prod]", True),
    "values-or": ("namespaces: [!Exact prod, !Exact default]", True),
    "principal": ("principals: [!Exact cluster.local/ns/default/sa/client]", True),
    "principal-scheme": (f"principals: [!Exact '{CLIENT}']", False),
    "principal-prefix": ("principals: [!Prefix cluster.local/]", True),
    "principal-suffix": ("principals: [!Suffix /sa/client]", True),
    "principal-presence": ("principals: [!Presence []]", True),
    "not-principal": ("notPrincipals: [!Suffix /sa/client]", False),
    "account": (
        "serviceAccounts: [{namespace: default, serviceAccount: client}]",
        True,
    ),
    "account-other": (
        "serviceAccounts: [{namespace: a, serviceAccount: client}]",
        False,
    ),
    "not-account": (
        "notServiceAccounts: [{namespace: default, serviceAccount: client}]",
        False,
    ),
    "source-ip": ("sourceIps: [127.0.0.0/8]", True),
    "source-ip-host-bits": ("sourceIps: [127.9.9.9/8]", True),
    "source-ip-other": ("sourceIps: [10.0.0.0/8]", False),
    "source-ip-ipv6": ("sourceIps: ['::/0']", False),
    "not-source-ip": ("notSourceIps: [127.0.0.0/8]", False),
    "destination-ip": (f"destinationIps: [{IP}/32]", True),
    "destination-ip-other": ("destinationIps: [10.0.0.0/8]", False),
    "not-destination-ip": (f"notDestinationIps: [{IP}/32]", False),
    "not-port": ("notDestinationPorts: [1]", True),
    "fields-and": ("namespaces: [!Exact default], sourceIps: [10.0.0.0/8]", False),
    "twins-and": ("sourceIps: [127.0.0.0/8], notSourceIps: [127.0.0.1/32]", False),
    "empty": ("", False),
}
RULES = {
    # rules, and whether they match
    "none": ("[]", False),
    "no-clauses": ("[[]]", True),
    "no-matches": ("[[[]]]", True),
    "no-fields": ("[[[{}]]]", False),
    "rules-or": (
        "[[[{namespaces: [!Exact a]}]], [[{notNamespaces: [!Exact a]}]]]",
        True,
    ),
    "clauses-and": (
        "[[[{namespaces: [!Exact default]}], [{namespaces: [!Exact a]}]]]",
        False,
    ),
    "matches-or": (
        "[[[{namespaces: [!Exact a]}, {namespaces: [!Exact default]}]]]",
        True,
    ),
}


def denying_fields():
    """A file with a policy for each case of `FIELDS`, which denies on its port only."""
    policies = "".join(
        _policy(name, f"[[[{{{fields}}}], [{{destinationPorts: [{FIRST + i}]}}]]]")
        for i, (name, (fields, _)) in enumerate(FIELDS.items())
    )
    return f"{PLAIN}policies:\n{policies}"


YES, NO = "[[]]", "[]"
ACTIONS = {
    # policies, and whether they allow
    "allow": ((("Allow", YES, "false"),), True),
    "allow-no-match": ((("Allow", NO, "false"),), False),
    "allow-one-of-two": ((("Allow", NO, "false"), ("Allow", YES, "false")), True),
    "deny-first": ((("Allow", YES, "false"), ("Deny", YES, "false")), False),
    "deny-no-match": ((("Deny", NO, "false"),), True),
    "dry-deny": ((("Deny", YES, "true"),), True),
    "dry-allow": ((("Allow", NO, "true"),), True),
    "dry-allow-and-allow": ((("Allow", YES, "true"), ("Allow", NO, "false")), False),
    **{
        name: ((("Deny", rules, "false"),), not it)
        for name, (rules, it) in RULES.items()
    },
}


def with_policies(policies):
    """A file with some policies."""
    rows = "".join(
        _policy(f"p{i}", rules, action, dry=dry)
        for i, (action, rules, dry) in enumerate(policies)
    )
    return f"{PLAIN}policies:\n{rows}"


def with_tunnel():
    """A file whose workload takes PROXY."""
    return _HEAD.replace("TUNNEL", TUNNEL % OPEN)


SCOPES = {
    # where a policy to deny stands, and whether it is for `server`
    "global": ("namespace: other, scope: Global", True),
    "namespace": ("namespace: default, scope: Namespace", True),
    "other-namespace": ("namespace: other, scope: Namespace", False),
    "selector-unnamed": ("namespace: default, scope: WorkloadSelector", False),
}


def with_scope(where):
    """A file with one policy that denies all."""
    policy = f"- {{name: p, {where}, action: Deny, dryRun: false, rules: [[]]}}\n"
    return f"{PLAIN}policies:\n{policy}"


_NAMES = "workload canonical_service canonical_revision workload_namespace app version"
UNKNOWN = dict.fromkeys([*_NAMES.split(), "cluster", "region", "zone"], "unknown")
_ALL = (
    "k8s.cluster.name=c9,k8s.namespace.name=far,k8s.deployment.name=shop-v1,"
    "service.name=shop,service.version=v7,cloud.region=r,cloud.availability_zone=z"
)
SAID = {
    "all": (
        _ALL,
        {"workload": "shop", "namespace": "far", "cluster": "c9"},
        {
            "workload": "shop-v1",
            "canonical_service": "shop",
            "canonical_revision": "v7",
            "workload_namespace": "far",
            "app": "shop-v1",
            "version": "v7",
            "cluster": "c9",
            "region": "r",
            "zone": "z",
        },
    ),
    "a-part": ("k8s.pod.name=one", {}, {"workload": "one", "app": "one"}),
    "the-last-counts": (
        "k8s.job.name=a,k8s.cronjob.name=b",
        {},
        {"workload": "b", "app": "b"},
    ),
    "empty-takes-back": (
        "service.name=a,k8s.cluster.name=x,service.name=",
        {"cluster": "x"},
        {"cluster": "x"},
    ),
    "two-signs": ("service.name=a=b", {"workload": "a"}, {"canonical_service": "a"}),
    "spaces-are-of-the-name": ("x=y, service.name=a, k8s.cluster.name=b", {}, {}),
    "others": ("k8s.replicaset.name=a,b,=c,service.name", {}, {}),
    "none": ("", {}, {}),
}
"""Of a client from another network: `baggage`; `src.` in the log, `source_` labels."""
