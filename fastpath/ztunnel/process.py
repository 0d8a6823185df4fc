"""The ztunnel process: everything put together, started and stopped in order.

    engines                     a thread each, devices and listeners
      sandbox, for each         vsock device, TSI service, vhost-user socket,
                                hybrid unix socket
      pods                      processes in the network namespaces of sandboxes
      capture                   what TPROXY or REDIRECT leads here, if configured
      admin                     metrics and readiness, if configured

What is opened first is closed last. A sandbox's sockets exist before `ready`. Its
policy is read before that too; a policy file is followed from then on, and Istio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fastpath.tsi import keys
from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.policy import ISTIO_PORTS
from fastpath.tsi.policyfile import PolicyWatch
from fastpath.tsi.service import TsiService
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel import configdump, handoffs, listener
from fastpath.ztunnel.access_log import AccessLog
from fastpath.ztunnel.admin import AdminServer, Tools
from fastpath.ztunnel.authorization import Authorizer, announce
from fastpath.ztunnel.capture import Capture
from fastpath.ztunnel.certificates import Certificates
from fastpath.ztunnel.collectors import (
    DatagramCollector,
    EngineCollector,
    GateCollector,
    TsiCollector,
)
from fastpath.ztunnel.dns import Dns
from fastpath.ztunnel.drain import drained
from fastpath.ztunnel.gates import Gates
from fastpath.ztunnel.hbone_metrics import PoolCollector
from fastpath.ztunnel.inbound import SandboxPublisher
from fastpath.ztunnel.loglevel import LogLevel
from fastpath.ztunnel.metrics import Metrics
from fastpath.ztunnel.outbound import Outbound
from fastpath.ztunnel.pods import Pods
from fastpath.ztunnel.pools import Pools
from fastpath.ztunnel.reload import Mesh, MeshWatch
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.sandboxrouter import SandboxRouter
from fastpath.ztunnel.shares import (
    pool_limits,
    raise_file_limit,
    share,
    within_share,
)
from fastpath.ztunnel.workloads import LocalWorkloads
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Ask, Engine, Reset, Unix
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.hybrid import HybridListener
from vhost_user.vsock.placement import place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from fastpath.tsi.datagram_limits import DatagramStats
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.stats import TsiStats
    from fastpath.ztunnel.config import Loaded, MakeError
    from fastpath.ztunnel.model import Config, ListenAddress, Sandbox
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import DeviceStats, EngineStats

END_TIMEOUT_S = 1.0
"""How long the ends of open connections may take when the process stops."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """What runs for one sandbox."""

    device: VsockDevice
    backend: Backend
    service: TsiService
    datagrams: DatagramService
    hybrid: HybridListener | None
    publisher: SandboxPublisher


class Ztunnel:
    """The whole process; an async context manager.

    Args:
        config: built in code or loaded; it is checked here.
        capture: a listening socket in place of the one that the configuration
            asks for; taken over. Its own address is a connection's destination.
        error: makes errors of keys of the configuration.

    Raises:
        FastpathError: the configuration makes no sense.
    """

    def __init__(
        self,
        config: Config,
        *,
        capture: socket.socket | None = None,
        error: MakeError = configuration.error,
    ) -> None:
        configuration.check(config)
        self._pods = Pods(config, error)
        self._certificates = Certificates(config.fastpath.certificates, error)
        self.config = config
        self.metrics = Metrics()
        self.sandboxes: dict[str, RunningSandbox] = {}
        """By name; complete once the context is entered."""
        self.admin: list[AdminServer] = []
        self._capture = capture
        self._outbounds: list[Outbound] = []
        """Of each engine: a connection's number is one of its engine."""
        self._watches: dict[str, PolicyWatch] = {}
        self._mesh_watch: MeshWatch | None = None
        self._ports = set(ISTIO_PORTS)
        """Those that no sandbox may reach on the host: of any ztunnel, and ours."""
        self._clients: LocalWorkloads
        self._mesh: Mesh
        self._routes: Routes
        self._dns: Dns
        self._authorizer: Authorizer
        self._gates: Gates
        self._engines: list[Engine] = []
        self._ready = False
        self._accepting = contextlib.ExitStack()
        """What stops to take connections, before those that there are end."""
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Start everything, or nothing.

        Raises:
            FastpathError: a socket, a port or a right is missing.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        self._ready = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Stop everything and remove the sockets."""
        self._ready = False
        await self._stack.aclose()

    @property
    def live(self) -> Sequence[int]:
        """The outbound connections that have not ended."""
        return [conn for outbound in self._outbounds for conn in outbound.live]

    def stats(self) -> Sequence[EngineStats]:
        """The counters of each engine."""
        return [engine.stats() for engine in self._engines]

    def device_stats(self) -> Mapping[str, DeviceStats]:
        """Each sandbox's device counters."""
        return {
            name: sandbox.device.handle.stats()
            for name, sandbox in self.sandboxes.items()
        }

    def datagram_stats(self) -> Mapping[str, DatagramStats]:
        """Each sandbox's counters of UDP."""
        return {
            name: sandbox.datagrams.stats() for name, sandbox in self.sandboxes.items()
        }

    def tsi_stats(self) -> Mapping[str, TsiStats]:
        """Each sandbox's counters of TSI."""
        return {
            name: sandbox.service.stats() for name, sandbox in self.sandboxes.items()
        }

    def reload(self) -> None:
        """Read all policy files and Istio's again, changed or not."""
        for watch in self._watches.values():
            watch.reload()
        if self._mesh_watch:
            self._mesh_watch.reload()

    async def follow(self, loaded: Loaded) -> None:
        """Follow Istio's file, if there is one.

        Args:
            loaded: what we run with.

        Raises:
            FastpathError: its directory can't be watched.
        """
        if loaded.mesh is None:
            return
        self._mesh_watch = MeshWatch(
            loaded,
            self._set_mesh,
            lambda good: self.metrics.mesh_reloaded(good=good),
        )
        self._stack.push_async_callback(self._mesh_watch.close)
        self._mesh_watch.start()

    async def drain(self, limit_s: float, hurry: asyncio.Event) -> None:
        """Take no new connections, and wait for the end of those that there are.

        Args:
            limit_s: how long, at most.
            hurry: set: wait no longer.
        """
        self._ready = False
        self._accepting.close()
        self._gates.drain(limit_s)
        for outbound in self._outbounds:
            outbound.drain()
        for sandbox in self.sandboxes.values():
            sandbox.service.drain()
        for outbound in self._outbounds:
            outbound.drain_tunnels(limit_s)

        def live() -> int:
            clients = sum(it.service.clients for it in self.sandboxes.values())
            return clients + len(self.live)

        await drained(live, limit_s, hurry)

    async def _start(self) -> None:
        own = self.config.fastpath
        raise_file_limit()
        for sandbox in own.sandboxes:
            if sandbox.policy:
                watch = PolicyWatch(sandbox.policy, name=sandbox.name)
                self._watches[sandbox.name] = watch
                self._stack.callback(watch.close)
                configuration.check_publications(sandbox, watch.policy)
        await self._start_certificates()
        self._stack.callback(self._pods.close)
        await self._pods.start()
        access_log = AccessLog(own.access_log, own.access_log_format)
        self._stack.push_async_callback(access_log.close)
        capture = self._open_capture()
        self._start_mesh(capture)
        await self._start_sandboxes(access_log)
        self._pods.watch(self._judge_again)
        self._stack.callback(self._pods.close)  # before the engines
        self._stack.callback(self._certificates.stop)
        if capture:
            events = Capture(self._engines[0], self._outbounds[0], self._clients)
            self._stack.callback(events.close)
            handle = self._engines[0].add_listener(
                capture, Ask(), on_event=events.handle_event, want=ALL_EVENTS
            )
            self._accepting.callback(handle.close)
        self._stack.callback(self._accepting.close)
        self._stack.push_async_callback(self._end_all)
        self.metrics.register(DatagramCollector(self.datagram_stats, self._dns.stats))
        self._start_admin(access_log)
        announce(self.config, self._mesh.state)

    async def _start_certificates(self) -> None:
        """Have one for each sandbox that this process is the mesh endpoint of."""
        self._stack.push_async_callback(self._certificates.close)
        config = self.config
        await self._certificates.start(
            config.workload(sandbox.workload).identity
            for sandbox in config.fastpath.sandboxes
            if config.meshed(sandbox)
        )

    def _open_capture(self) -> socket.socket | None:
        """Open the listener of captured connections, if there is one."""
        own = self.config.fastpath
        capture = self._capture
        if capture is None and own.outbound:
            tproxy = own.outbound.tproxy is not None
            capture = listener.captured(own.outbound.address, tproxy=tproxy)
            self._ports.add(capture.getsockname()[1])
        self._stack.callback(listener.close, capture)
        return capture

    def _start_mesh(self, capture: socket.socket | None) -> None:
        """Make what is asked about the mesh."""
        own = self.config.fastpath
        address = capture.getsockname()[:2] if capture else None
        self._ports |= {it.port for it in (own.metrics, own.readiness, own.admin) if it}
        self._mesh = Mesh.of(self.config)
        self._dns = Dns(self.config)
        self._stack.push_async_callback(self._dns.close)
        names = self._dns.hostnames
        self._routes = Routes(self.config, listener=address, hostnames=names)
        self._routes.set_mesh(self._mesh.state)
        policies = {name: watch.policy for name, watch in self._watches.items()}
        self._clients = LocalWorkloads(self.config, policies, ports=self._ports)
        self._authorizer = Authorizer(self._mesh.state)
        self._stack.callback(self._authorizer.close)
        self._gates = Gates(self.config, self._certificates, self._authorizer)

    async def _start_sandboxes(self, access_log: AccessLog) -> None:
        """Start the engines, and what runs for each sandbox."""
        sandboxes = self.config.fastpath.sandboxes
        placed = place([frozenset()] * len(sandboxes), self.config.fastpath.threads)
        for at in range(max(placed, default=0) + 1):
            await self._start_engine(placed.count(at), access_log)
        self._stack.callback(self._gates.close)
        for sandbox, at in zip(sandboxes, placed, strict=True):
            client = self._clients.sandbox(sandbox.name)
            client.meshed = self.config.meshed(sandbox)
            client.pod = self._pods.join(sandbox, self._engines[at])
            client.proxy = handoffs.join(sandbox, client.workload, self._engines[at])
            client.policy = self._policy_of(sandbox.name, client.policy)
            publisher = SandboxPublisher(
                sandbox, client, access_log, self.metrics, self._authorizer
            )
            self._stack.callback(publisher.close)
            self.sandboxes[sandbox.name] = await self._start_sandbox(
                sandbox,
                self._engines[at],
                SandboxRouter(self._outbounds[at], client, self._dns),
                publisher,
                client,
            )

    async def _start_engine(self, sandboxes: int, access_log: AccessLog) -> None:
        own = self.config.fastpath
        engine = await self._stack.enter_async_context(
            Engine(
                poll_us=own.poll_us,
                cpu=own.cpu,
                # the sum: what one sandbox has can't be another's
                max_conns=(sandboxes + 1) * share(self.config),
            )
        )
        limits = pool_limits(self.config)
        pools = Pools(engine, self._certificates, self._forget_routes, limits)
        self._stack.callback(pools.close)
        outbound = Outbound(self._routes, access_log, self.metrics, engine.reset, pools)
        self._stack.callback(outbound.close)
        self._engines.append(engine)
        self._outbounds.append(outbound)

    def _policy_of(self, name: str, policy: SandboxPolicy) -> SandboxPolicy:
        """What its file's policy comes to for a sandbox, where it is, by its share."""
        client = self._clients.sandbox(name)
        policy = self._clients.for_client(client, policy)
        return within_share(self.config, name, policy)

    async def _start_sandbox(
        self,
        sandbox: Sandbox,
        engine: Engine,
        router: SandboxRouter,
        publisher: SandboxPublisher,
        client: LocalWorkload,
    ) -> RunningSandbox:
        service: TsiService
        policy, limits = client.policy, client.policy.limits
        device = VsockDevice(
            engine,
            guest_cid=sandbox.cid,
            max_conns=limits.max_conns,
            max_queued_bytes=limits.max_queued_bytes,
            accept_rate=limits.accept_rate,
            on_event=lambda event: service.handle_event(event),
            want=ALL_EVENTS,
        )
        self._stack.callback(device.close)
        addresses = self.config.workload(sandbox.workload).workload_ips
        key = keys.read(sandbox.key_file) if sandbox.key_file else b""
        datagrams = DatagramService(
            engine,
            router,
            policy=policy,
            name=sandbox.name,
            key=key,
            make=client.pod.client if client.pod else socket.socket,
        )
        service = TsiService(
            engine,
            device,
            router,
            addresses=[str(address) for address in addresses],
            name=sandbox.name,
            policy=policy,
            datagrams=datagrams,
            other=Unix(str(sandbox.uds_path)) if sandbox.uds_path else Reset(),
            publisher=publisher,
            key=key,
        )
        self._stack.callback(service.close)
        self._gates.open(sandbox, client, engine, publisher, service.inbound)
        hybrid = None
        if sandbox.uds_path:
            hybrid = HybridListener(device, sandbox.uds_path, access=sandbox.access)
            self._stack.push_async_callback(hybrid.close)
            await listener.listen(hybrid, sandbox.uds_path)
        backend = Backend(
            sandbox.socket, device, name=sandbox.name, access=sandbox.access
        )
        self._stack.push_async_callback(backend.close)
        await listener.listen(backend, sandbox.socket)
        if watch := self._watches.get(sandbox.name):
            watch.start(
                lambda new: self._set_policy(sandbox.name, service, new),
                lambda good: self.metrics.reloaded(sandbox.name, good=good),
            )
        return RunningSandbox(device, backend, service, datagrams, hybrid, publisher)

    def _set_policy(self, name: str, service: TsiService, new: SandboxPolicy) -> None:
        """Let a new policy hold; captured connections are the first engine's."""
        policy = self._policy_of(name, new)
        service.set_policy(policy)
        if len(self._outbounds) > 1:
            self._outbounds[0].set_policy(self._clients.sandbox(name), policy)

    def _forget_routes(self, client: LocalWorkload) -> None:
        """Have a client's next connections decided anew."""
        self._routes.forget(client)
        if client.name in self.sandboxes:
            self.sandboxes[client.name].service.forget_routes()

    def _judge_again(self, name: str) -> None:
        """Ask about all that a sandbox has, as when its policy is another one.

        Its network namespace may be gone, or give sockets again, or its mesh have
        changed.
        """
        service = self.sandboxes[name].service
        self._gates.judge_again(name)
        self._set_policy(name, service, service.policy)

    async def _end_all(self) -> None:
        """End what is left, so that each connection gets its line in the log."""
        for engine, outbound in zip(self._engines, self._outbounds, strict=True):
            for conn in outbound.live:
                engine.reset(conn, errno.ECANCELED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIMEOUT_S):
                for outbound in self._outbounds:
                    await outbound.idle.wait()

    def _start_admin(self, access_log: AccessLog) -> None:
        own = self.config.fastpath
        self.metrics.register(
            EngineCollector(self.stats, self.device_stats, lambda: access_log.dropped)
        )
        self.metrics.register(TsiCollector(self.tsi_stats))
        self.metrics.register(GateCollector(self._gates.stats))
        pools = lambda: [it.tunnels() for it in self._outbounds]  # noqa: E731
        self.metrics.register(PoolCollector(pools))
        tools = Tools(self._dump, LogLevel())
        addresses: dict[ListenAddress | None, Tools | None]
        addresses = {own.metrics: None, own.readiness: None}  # in order, each once
        for address, more in [*addresses.items(), (own.admin, tools)]:
            if address is None:
                continue
            ready = lambda: self._ready  # noqa: E731
            server = AdminServer(address, self.metrics.text, ready, tools=more)
            self._stack.callback(server.close)
            self._ports.add(server.port)  # port 0 was any
            self.admin.append(server)

    def _dump(self) -> bytes:
        """Return `/config_dump`; on any thread."""
        ways = [outbound.connections for outbound in self._outbounds]
        ways += [it.publisher.connections for it in self.sandboxes.values()]
        live = [each for way in ways for each in way()]
        held = self._certificates.dump()
        return configdump.dump(self._mesh.state, self.config, live, held)

    def _set_mesh(self, mesh: Mesh) -> None:
        """Let another content of Istio's file hold, and judge all that is live."""
        self.config, self._mesh = mesh.config, mesh
        self._routes.set_mesh(mesh.state)
        self._clients.set_mesh(mesh.config)
        self._dns.set_names(mesh.names)
        self._authorizer.state = mesh.state
        self.metrics.forget()
        for name in self.sandboxes:
            self._judge_again(name)
        for outbound in self._outbounds:
            outbound.set_mesh(mesh.state)
