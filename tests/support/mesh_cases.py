"""One file of Istio's, and where each connection of its workload `client` goes by it.

Our decisions are held to this table, and Istio's ztunnel's with `--ztunnel BIN`.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIENT = "default/client/client"
"""Namespace, name and service account, as PROXY_WORKLOAD_INFO has them."""


def _workload(name, *more, ips=(), services="{}", **fields):
    fields = {
        "uid": f"cluster1//v1/Pod/default/{name}",
        "name": name,
        "namespace": "default",
        "serviceAccount": name,
        "trustDomain": "cluster.local",
        "clusterId": "Kubernetes",
        "node": "local",
        "workloadIps": f"[{', '.join(f'{chr(34)}{ip}{chr(34)}' for ip in ips)}]",
        "services": services,
    } | fields
    return f"- {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}\n"


def _service(name, vip, **fields):
    fields = {
        "name": name,
        "namespace": "default",
        "hostname": f"{name}.default",
        "vips": f"[{vip}]",
        "ports": "{80: 8080}",
    } | fields
    return f"- {{{', '.join(f'{key}: {value}' for key, value in fields.items())}}}\n"


def _of(*names, ports="{80: 8080}"):
    return f"{{{', '.join(f'default/{name}.default: {ports}' for name in names)}}}"


def _gateway(destination, port=15008):
    return f"{{destination: {destination}, hboneMtlsPort: {port}}}"


def _balancer(mode, *scopes, health="OnlyHealthy"):
    return (
        f"{{mode: {mode}, routingPreferences: [{', '.join(scopes)}],"
        f" healthPolicy: {health}}}"
    )


def _locality(region, zone):
    return f"{{region: {region}, zone: {zone}, subzone: a}}"


WORKLOADS = "".join(
    (
        _workload("client", ips=["10.0.0.2"], locality=_locality("eu", "eu-1")),
        _workload("plain", ips=["10.0.0.11"], services=_of("plain", "famous")),
        _workload("meshed", ips=["10.0.0.12"], services=_of("web"), protocol="HBONE"),
        _workload(
            "sick", ips=["10.0.0.13"], services=_of("ill", "any"), status="Unhealthy"
        ),
        _workload(
            "guarded",
            ips=["10.0.0.14"],
            services=_of("guarded"),
            protocol="HBONE",
            waypoint=_gateway("/10.0.0.30"),
        ),
        _workload("lost", ips=["10.0.0.15"], waypoint=_gateway("/10.9.9.9")),
        _workload("node", ips=["10.0.0.16"], networkMode="HostNetwork"),
        _workload("dual", ips=["10.0.0.17", "fd00::17"], services=_of("six", "both")),
        _workload(
            "far",
            services=_of("far"),
            protocol="HBONE",
            network="far",
            networkGateway=_gateway("/10.0.0.40"),
        ),
        _workload("farther", ips=["10.5.0.1"], services=_of("farther"), network="far"),
        _workload(
            "same-zone",
            ips=["10.0.0.21"],
            services=_of("near", "strict"),
            locality=_locality("eu", "eu-1"),
        ),
        _workload(
            "same-region",
            ips=["10.0.0.22"],
            services=_of("near", "abroad"),
            locality=_locality("eu", "eu-2"),
        ),
        _workload(
            "abroad",
            ips=["10.0.0.23"],
            services=_of("near", "abroad", "strict", "none", "home"),
            locality=_locality("us", "us-1"),
        ),
        _workload(
            "remote",
            services=_of("home"),
            network="far",
            locality=_locality("eu", "eu-1"),
            networkGateway=_gateway("/10.0.0.40"),
        ),
        _workload(
            "weightless", ips=["10.0.0.24"], services=_of("weightless"), capacity=0
        ),
        _workload(
            "named", ips=["10.0.0.25"], services=_of("named", ports="{80: 9090}")
        ),
        _workload("picked", ips=["10.0.0.26"]),
        _workload(
            "waypoint",
            ips=["10.0.0.30"],
            services=_of("waypoint", ports="{15008: 15008}"),
        ),
        _workload(
            "sandwich",
            ips=["10.0.0.31"],
            services=_of("sandwich"),
            applicationTunnel="{protocol: PROXY, port: 15088}",
        ),
        _workload("gateway", ips=["10.0.0.40"]),
        _workload(
            "tunnelled",
            ips=["10.0.0.41"],
            protocol="HBONE",
            applicationTunnel="{protocol: PROXY, port: 15088}",
        ),
    )
)
SERVICES = "".join(
    (
        _service("plain", "/10.96.0.11"),
        _service("web", "/10.96.0.12", subjectAltNames="['spiffe://a/ns/b/sa/c']"),
        _service("ill", "/10.96.0.13"),
        _service(
            "any", "/10.96.0.14", loadBalancer=_balancer("Standard", health="AllowAll")
        ),
        _service("guarded", "/10.96.0.15"),
        _service(
            "behind", "/10.96.0.16", waypoint=_gateway("default/waypoint.default")
        ),
        _service(
            "canary",
            "/10.96.0.17",
            waypoint=_gateway("/10.9.9.9"),
            weightedWaypoints=f"[{{destination: {_gateway('/10.0.0.30')}, weight: 5}},"
            f" {{destination: {_gateway('/10.9.9.9')}, weight: 0}}]",
        ),
        _service("stuck", "/10.96.0.18", waypoint=_gateway("default/nobody.default")),
        _service(
            "tunnel", "/10.96.0.19", waypoint=_gateway("default/sandwich.default")
        ),
        _service("six", "/10.96.0.20", ipFamilies="IPv6"),
        _service("both", '/10.96.0.21, "/fd96::21"'),
        _service("far", "/10.96.0.22"),
        _service("farther", "/10.96.0.23"),
        _service(
            "near", "/10.96.0.24", loadBalancer=_balancer("Failover", "Region", "Zone")
        ),
        _service(
            "abroad",
            "/10.96.0.25",
            loadBalancer=_balancer("Failover", "Region", "Zone"),
        ),
        _service("strict", "/10.96.0.26", loadBalancer=_balancer("Strict", "Zone")),
        _service("none", "/10.96.0.27", loadBalancer=_balancer("Strict", "Region")),
        _service(
            "home",
            "/10.96.0.40",
            loadBalancer=_balancer("Failover", "Network", "Region", "Zone"),
        ),
        _service("through", "/10.96.0.28", loadBalancer=_balancer("Passthrough")),
        _service("weightless", "/10.96.0.29"),
        _service("named", "/10.96.0.30", ports="{80: 0}"),
        _service(
            "wide",
            "/10.96.0.31",
            cidrVips="[{network: '', cidr: 10.97.0.0/16}]",
            endpoints="{cluster1//v1/Pod/default/picked: {workloadUid:"
            " cluster1//v1/Pod/default/picked, port: {80: 7070}, status: Unhealthy}}",
        ),
        _service("empty", "/10.96.0.32"),
        _service("elsewhere", "far/10.96.0.33"),
        _service("theirs", "/10.96.0.34", namespace="other", hostname="theirs.other"),
        _service("ours", "/10.96.0.34", ports="{80: 81}"),
        _service("famous", "/10.96.0.35"),
        _service("fame", "/10.96.0.36", namespace="a", hostname="fame.a"),
        _service(
            "fame",
            "/10.96.0.36",
            namespace="b",
            hostname="fame.b",
            canonical="true",
            endpoints="{cluster1//v1/Pod/default/picked: {workloadUid:"
            " cluster1//v1/Pod/default/picked, port: {80: 7171}, status: Healthy}}",
        ),
        _service(
            "secret",
            "/10.96.0.37",
            namespace="other",
            hostname="secret.other",
            visibility="Namespace",
        ),
        _service("waypoint", "/10.96.0.38", ports="{15008: 15008}"),
        _service("sandwich", "/10.96.0.39", ports="{80: 80}"),
    )
)
MESH = f"workloads:\n{WORKLOADS}services:\n{SERVICES}"


@dataclass(frozen=True)
class Case:
    """A destination, and what is made of it."""

    to: str
    addr: str = ""
    hbone: str = ""
    service: str = ""
    workload: str = ""
    refused: str = ""
    """Our reason; nothing is connected to."""


ISTIOS = {
    "no_endpoint": "no healthy upstream",
    "no_waypoint": "unknown waypoint",
    "network": "no valid routing destination",
    "no_address": "no valid routing destination",
}
"""What Istio's ztunnel says for our reasons."""

OUTBOUND = {
    "unknown-ip": Case("192.0.2.1:443", "192.0.2.1:443"),
    "tcp": Case("10.0.0.11:81", "10.0.0.11:81", workload="plain"),
    "hbone": Case("10.0.0.12:81", "10.0.0.12:15008", "10.0.0.12:81", "", "meshed"),
    "vip-tcp": Case("10.96.0.11:80", "10.0.0.11:8080", "", "plain.default", "plain"),
    "vip-hbone": Case(
        "10.96.0.12:80", "10.0.0.12:15008", "10.0.0.12:8080", "web.default", "meshed"
    ),
    "vip-other-port": Case("10.96.0.12:81", refused="no_endpoint"),
    "vip-unhealthy": Case("10.96.0.13:80", refused="no_endpoint"),
    "vip-any-health": Case(
        "10.96.0.14:80", "10.0.0.13:8080", "", "any.default", "sick"
    ),
    "waypoint": Case("10.0.0.14:81", "10.0.0.30:15008", "10.0.0.14:81", "", "waypoint"),
    "waypoint-not-by-vip": Case(
        "10.96.0.15:80",
        "10.0.0.14:15008",
        "10.0.0.14:8080",
        "guarded.default",
        "guarded",
    ),
    "waypoint-unknown": Case("10.0.0.15:80", refused="no_waypoint"),
    "service-waypoint": Case(
        "10.96.0.16:80",
        "10.0.0.30:15008",
        "10.96.0.16:80",
        "behind.default",
        "waypoint",
    ),
    "weighted-waypoint": Case(
        "10.96.0.17:99",
        "10.0.0.30:15008",
        "10.96.0.17:99",
        "canary.default",
        "waypoint",
    ),
    "service-waypoint-unknown": Case("10.96.0.18:80", refused="no_waypoint"),
    "waypoint-application-tunnel": Case(
        "10.96.0.19:80",
        "10.0.0.31:15008",
        "10.96.0.19:80",
        "tunnel.default",
        "sandwich",
    ),
    "host-network": Case("10.0.0.16:80", "10.0.0.16:80"),
    "ip-families": Case("10.96.0.20:80", "[fd00::17]:8080", "", "six.default", "dual"),
    "family-of-the-vip-4": Case(
        "10.96.0.21:80", "10.0.0.17:8080", "", "both.default", "dual"
    ),
    "family-of-the-vip-6": Case(
        "[fd96::21]:80", "[fd00::17]:8080", "", "both.default", "dual"
    ),
    "gateway": Case(
        "10.96.0.22:80", "10.0.0.40:15008", "far.default:80", "far.default", "gateway"
    ),
    "no-gateway": Case("10.96.0.23:80", refused="network"),
    "ip-of-another-network": Case("10.5.0.1:80", "10.5.0.1:80"),
    "failover-best": Case(
        "10.96.0.24:80", "10.0.0.21:8080", "", "near.default", "same-zone"
    ),
    "failover-next": Case(
        "10.96.0.25:80", "10.0.0.22:8080", "", "abroad.default", "same-region"
    ),
    "strict": Case(
        "10.96.0.26:80", "10.0.0.21:8080", "", "strict.default", "same-zone"
    ),
    "network-first": Case(
        "10.96.0.40:80", "10.0.0.23:8080", "", "home.default", "abroad"
    ),
    "strict-nobody": Case("10.96.0.27:80", refused="no_endpoint"),
    "passthrough": Case("10.96.0.28:80", "10.96.0.28:80"),
    "no-capacity": Case("10.96.0.29:80", refused="no_endpoint"),
    "endpoints-own-port": Case(
        "10.96.0.30:80", "10.0.0.25:9090", "", "named.default", "named"
    ),
    "named-endpoint": Case(
        "10.96.0.31:80", "10.0.0.26:7070", "", "wide.default", "picked"
    ),
    "cidr": Case("10.97.3.4:80", "10.0.0.26:7070", "", "wide.default", "picked"),
    "no-endpoint": Case("10.96.0.32:80", refused="no_endpoint"),
    "vip-of-another-network": Case("10.96.0.33:80", "10.96.0.33:80"),
    "vip-of-two-namespaces": Case("10.96.0.34:80", refused="no_endpoint"),
    "canonical": Case("10.96.0.36:80", "10.0.0.26:7171", "", "fame.b", "picked"),
    "invisible": Case("10.96.0.37:80", "10.96.0.37:80"),
    "application-tunnel": Case(
        "10.0.0.41:80", "10.0.0.41:15008", "10.0.0.41:80", "", "tunnelled"
    ),
}
