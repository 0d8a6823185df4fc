"""Contents of configuration files that are wrong: line, key, and why."""

from __future__ import annotations

WORKLOAD = """\
workloads:
  - name: a
    namespace: default
    workloadIps: [10.0.0.1]
    services: {}
"""
TWO = f"""{WORKLOAD}\
  - {{name: b, namespace: default, workloadIps: [10.0.0.2], services: {{}}}}
"""
SANDBOX = """\
sandboxes:
  - name: a
    workload: default/a
    socket: /run/a.sock
    cid: 3
"""
SERVICE = """\
services:
  - name: web
    namespace: default
    hostname: web
    vips: [/10.96.0.1]
    ports: {80: 8080}
"""
POLICY = """\
policies:
  - name: p
    namespace: default
    scope: WorkloadSelector
    action: Allow
    dryRun: false
"""
ACCOUNT = "spiffe://cluster.local/ns/default/sa/a"
FILES = f"{{identity: {ACCOUNT}, directory: /d}}"
NO_RULES = f"{POLICY}    rules: []\n"
TAGGED = NO_RULES.replace("Allow", "!Deny").replace("Workload", "!Workload")
"""Words as tags: `action: !Deny`."""


ERRORS = {
    "empty-file": ("", 1, "", "the file is empty"),
    "not-yaml": ("workloads:\n  - [\n", 3, "", "expected the node content"),
    "not-utf8": (b"a: b\nc: \xff\n", 2, "", "invalid start byte"),
    "two-documents": ("{}\n---\n{}\n", 2, "", "but found another document"),
    "too-deep": ("workloads: " + "[" * 5000, 1, "", "nested too deeply"),
    "top-is-a-list": ("- a\n", 1, "", "must be a mapping, not a list"),
    "unknown-section": ("workload: []\n", 1, "workload", "unknown field"),
    "unknown-key": (
        WORKLOAD + "    nodes: x\n",
        6,
        "workloads[0].nodes",
        "unknown field",
    ),
    "snake-case-is-unknown": (
        WORKLOAD + "    trust_domain: x\n",
        6,
        "workloads[0].trust_domain",
        "unknown field",
    ),
    "key-twice": (WORKLOAD + "    name: b\n", 6, "workloads[0].name", "given twice"),
    "missing-key": (
        "workloads:\n  - name: a\n    namespace: b\n",
        2,
        "workloads[0].workloadIps",
        "is missing",
    ),
    "not-an-ip": (
        WORKLOAD.replace("10.0.0.1", "10.0.0"),
        4,
        "workloads[0].workloadIps[0]",
        "does not appear to be an IPv4 or IPv6 address",
    ),
    "ip-with-scope": (
        WORKLOAD.replace("10.0.0.1", "fe80::1%eth0"),
        4,
        "workloads[0].workloadIps[0]",
        "an IP without a scope",
    ),
    "ips-not-a-list": (
        WORKLOAD.replace("[10.0.0.1]", "10.0.0.1"),
        4,
        "workloads[0].workloadIps",
        "must be a list, not a single value",
    ),
    "string-is-a-number": (
        WORKLOAD.replace("name: a", "name: 12"),
        2,
        "workloads[0].name",
        'must be a string, not 12; write "12"',
    ),
    "string-is-null": (
        WORKLOAD.replace("name: a", "name:"),
        2,
        "workloads[0].name",
        "must be a string, not empty",
    ),
    "bad-namespace": (
        WORKLOAD.replace("namespace: default", "namespace: a/b"),
        3,
        "workloads[0].namespace",
        "must be a namespace name, not 'a/b'",
    ),
    "bad-trust-domain": (
        WORKLOAD + "    trustDomain: Cluster.local\n",
        6,
        "workloads[0].trustDomain",
        "must be a trust domain",
    ),
    "bad-enum": (
        WORKLOAD + "    protocol: hbone\n",
        6,
        "workloads[0].protocol",
        "must be one of TCP, HBONE, not hbone",
    ),
    "capacity-too-large": (
        WORKLOAD + "    capacity: 4294967296\n",
        6,
        "workloads[0].capacity",
        "must be a number from 0 to 4294967295",
    ),
    "capacity-negative": (
        WORKLOAD + "    capacity: -1\n",
        6,
        "workloads[0].capacity",
        "must be a number",
    ),
    "unknown-service": (
        WORKLOAD.replace(" {}", "\n      default/web: {80: 80}"),
        6,
        'workloads[0].services["default/web"]',
        "names no service",
    ),
    "service-key-without-namespace": (
        WORKLOAD.replace("{}", "{web: {80: 80}}"),
        5,
        "workloads[0].services.web",
        "must be namespace/hostname",
    ),
    "service-port-zero": (
        SERVICE.replace("80: 8080", "0: 8080"),
        6,
        'services[0].ports["0"]',
        "must be a number from 1 to 65535, not 0",
    ),
    "vip-without-network": (
        SERVICE.replace("/10.96.0.1", "10.96.0.1"),
        5,
        "services[0].vips[0]",
        "must be network/IP or /IP",
    ),
    "bad-identity": (
        SERVICE + "    subjectAltNames: [spiffe://a/b]\n",
        7,
        "services[0].subjectAltNames[0]",
        "must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
    ),
    "unknown-policy": (
        WORKLOAD + "    authorizationPolicies: [default/p]\n",
        6,
        "workloads[0].authorizationPolicies[0]",
        "names no policy",
    ),
    "policy-of-another-scope": (
        WORKLOAD
        + "    authorizationPolicies: [default/p]\n"
        + NO_RULES.replace("WorkloadSelector", "Namespace"),
        6,
        "workloads[0].authorizationPolicies[0]",
        "names a policy of another scope",
    ),
    "policy-namespace-empty": (
        NO_RULES.replace("namespace: default", 'namespace: ""'),
        3,
        "policies[0].namespace",
        "scope WorkloadSelector needs one",
    ),
    "match-without-tag": (
        POLICY + "    rules:\n      - - - namespaces: [a]\n",
        8,
        "policies[0].rules[0][0][0].namespaces[0]",
        "must have one of the tags !Exact !Prefix !Suffix !Presence",
    ),
    "presence-with-value": (
        POLICY + "    rules:\n      - - - namespaces: [!Presence a]\n",
        8,
        "policies[0].rules[0][0][0].namespaces[0]",
        "!Presence takes no value",
    ),
    "bad-prefix": (
        POLICY + "    rules:\n      - - - sourceIps: [10.0.0.0/33]\n",
        8,
        "policies[0].rules[0][0][0].sourceIps[0]",
        "does not appear to be an IPv4 or IPv6 network",
    ),
    "dry-run-not-a-bool": (
        NO_RULES.replace("dryRun: false", "dryRun: maybe"),
        6,
        "policies[0].dryRun",
        "must be true or false, not maybe",
    ),
    "same-uid": (
        WORKLOAD
        + "    uid: u\n"
        + "  - {namespace: default, uid: u, workloadIps: [], services: {}}\n",
        7,
        "workloads[1].uid",
        "u is also at workloads[0].uid",
    ),
    "same-ip": (
        WORKLOAD
        + "  - namespace: default\n    services: {}\n"
        + "    workloadIps:\n      - 10.0.0.1\n",
        9,
        "workloads[1].workloadIps[0]",
        "/10.0.0.1 is also at workloads[0].workloadIps[0]",
    ),
    "same-vip": (
        SERVICE.replace("[/10.96.0.1]", "[/10.96.0.1, /10.96.0.1]"),
        5,
        "services[0].vips[1]",
        "/10.96.0.1 of namespace default is also at services[0].vips[0]",
    ),
    "workload-services-missing": (
        WORKLOAD.replace("    services: {}\n", ""),
        2,
        "workloads[0].services",
        "is missing",
    ),
    "policy-rules-missing": (POLICY, 2, "policies[0].rules", "is missing"),
    "policy-dry-run-missing": (
        NO_RULES.replace("    dryRun: false\n", ""),
        2,
        "policies[0].dryRun",
        "is missing",
    ),
    "our-settings": (
        WORKLOAD + "fastpath: {}\n",
        6,
        "fastpath",
        "unknown field",
    ),
    "unknown-in-a-waypoint": (
        WORKLOAD + "    waypoint: {destination: /10.0.0.3, port: 1}\n",
        6,
        "workloads[0].waypoint.port",
        "unknown field",
    ),
    "unknown-in-a-match": (
        POLICY + "    rules:\n      - - - namespace: [!Exact a]\n",
        8,
        "policies[0].rules[0][0][0].namespace",
        "unknown field",
    ),
    "unknown-in-a-service-account": (
        POLICY + "    rules:\n      - - - serviceAccounts: [{name: a}]\n",
        8,
        "policies[0].rules[0][0][0].serviceAccounts[0].name",
        "unknown field",
    ),
    "bool-in-quotes": (
        NO_RULES.replace("false", '"false"'),
        6,
        "policies[0].dryRun",
        'must be true or false, not "false"',
    ),
    "bool-behind-a-tag": (
        NO_RULES.replace("false", "!x false"),
        6,
        "policies[0].dryRun",
        "must be true or false, not false",
    ),
    "word-and-tag": (
        NO_RULES.replace("action: Allow", "action: !Deny Allow"),
        5,
        "policies[0].action",
        "must be one of Allow, Deny, not !Deny Allow",
    ),
    "tag-in-lower-case": (
        NO_RULES.replace("action: Allow", "action: !allow"),
        5,
        "policies[0].action",
        "must be one of Allow, Deny, not allow",
    ),
    "presence-of-null": (
        POLICY + "    rules:\n      - - - namespaces: [!Presence null]\n",
        8,
        "policies[0].rules[0][0][0].namespaces[0]",
        "!Presence takes no value; write !Presence []",
    ),
    "prefix-without-length": (
        POLICY + "    rules:\n      - - - sourceIps: [10.0.0.1]\n",
        8,
        "policies[0].rules[0][0][0].sourceIps[0]",
        "must be IP/LENGTH, not '10.0.0.1'; write 10.0.0.1/32",
    ),
    "capacity-nan": (
        WORKLOAD + "    capacity: .nan\n",
        6,
        "workloads[0].capacity",
        "must be a number",
    ),
    "alias-of-itself": (
        POLICY + "    rules: &x [*x]\n",
        7,
        "policies[0].rules[0][0][0]",
        "must be a mapping, not a list",
    ),
    "endpoint-without-status": (
        SERVICE + "    endpoints: {u: {workloadUid: u, port: {80: 80}}}\n",
        7,
        "services[0].endpoints.u.status",
        "is missing",
    ),
}

OWN_ERRORS = {
    "istios-keys": ("workloads: []\n", 1, "workloads", "unknown field"),
    "section-of-old": ("fastpath: {}\n", 1, "fastpath", "unknown field"),
    "sandbox-of-nobody": (
        SANDBOX.replace("default/a", "default/b"),
        3,
        "sandboxes[0].workload",
        "names no workload of `mesh`: default/b",
    ),
    "cid-of-the-host": (
        SANDBOX.replace("cid: 3", "cid: 2"),
        5,
        "sandboxes[0].cid",
        "must be a number from 3 to 4294967294, not 2",
    ),
    "socket-path-too-long": (
        SANDBOX.replace("/run/a.sock", f"/run/{'a' * 103}"),
        4,
        "sandboxes[0].socket",
        "longer than the 107 bytes",
    ),
    "egress-rule-without-effect": (
        SANDBOX + "    egress: {allow: [10.1.0.0/16], deny: [10.0.0.0/8]}\n",
        6,
        "sandboxes[0].egress.allow[0]",
        "can never match: deny[0], 10.0.0.0/8, denies what it allows",
    ),
    "bad-egress-rule": (
        SANDBOX + "    egress: {allow: [10.0.0.0/8, nowhere]}\n",
        6,
        "sandboxes[0].egress.allow[1]",
        "nowhere",
    ),
    "bad-errno": (
        SANDBOX + "    egress: {errno: EPERM}\n",
        6,
        "sandboxes[0].egress.errno",
        "must be one of ECONNREFUSED, EACCES, not EPERM",
    ),
    "listen-address-without-port": (
        "outbound: {tproxy: 0.0.0.0}\n",
        1,
        "outbound.tproxy",
        "must be IP:PORT or [IPv6]:PORT",
    ),
    "no-way-to-capture": (
        "outbound: {}\n",
        1,
        "outbound",
        "must have either tproxy or redirect",
    ),
    "two-ways-to-capture": (
        "outbound: {tproxy: '0.0.0.0:1', redirect: '0.0.0.0:2'}\n",
        1,
        "outbound",
        "must have either tproxy or redirect",
    ),
    "listen-address-ipv6-bare": (
        "metrics: '::1:80'\n",
        1,
        "metrics",
        "must be IP:PORT or [IPv6]:PORT",
    ),
    "echo-is-a-workload": (
        "echo: 10.0.0.1\n",
        1,
        "echo",
        "10.0.0.1 belongs to a service or a workload",
    ),
    "certificates-of-no-source": (
        "certificates: {crls: /crl.pem}\n",
        1,
        "certificates",
        "names no source: embedded, ca or files",
    ),
    "certificates-of-two-cas": (
        "certificates: {embedded: /ca, ca: {address: 'https://a', roots: /r}}\n",
        1,
        "certificates.embedded",
        "is there beside `ca`; leave one of them out",
    ),
    "certificates-of-half-the-files": (
        f"certificates: {{files: [{{identity: {ACCOUNT}, key: /k, chain: /c}}]}}\n",
        1,
        "certificates.files[0]",
        "needs directory, or key, chain and roots",
    ),
    "certificates-of-an-identity-twice": (
        f"certificates: {{files: [{FILES}, {FILES}]}}\n",
        1,
        "certificates.files[1].identity",
        f"{ACCOUNT} is also at ",
    ),
    "certificates-of-no-identity": (
        "certificates: {files: [{identity: default/a, directory: /d}]}\n",
        1,
        "certificates.files[0].identity",
        "must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
    ),
    "certificates-of-others": (
        SANDBOX + f"certificates: {{files: [{FILES}]}}\n",
        3,
        "sandboxes[0].workload",
        "certificates.files has none of spiffe://cluster.local/ns/default/sa/default",
    ),
    "hbone-without-certificates": (
        SANDBOX + "    hbone: true\n",
        6,
        "sandboxes[0].hbone",
        "is for a process that has `certificates`",
    ),
    "hbone-beside-another-proxy": (
        SANDBOX
        + "    hbone: true\n    handoff: {unix: /s}\ncertificates: {embedded: /ca}\n",
        6,
        "sandboxes[0].hbone",
        "another proxy has its connections",
    ),
}
