"""Hand-off `inpod`: Istio's ztunnel in the pods' namespaces of sandboxes, no Istio.

On a Kubernetes node istio-cni tells ztunnel of pods and writes the rules that lead a
pod's connections to it. Here we do both: sandboxes are told of by ZDS (`handoff.zds`),
on the socket that their `handoff.inpod` names, and the rules (`datapath.inpod`) are
written when the process starts, before a sandbox can be attached to. A sandbox that
has `socks5`, too, asks ztunnel by that, so it needs no rules.

A sandbox whose namespace is gone is taken back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastpath.datapath import inpod as rules
from fastpath.handoff.zds import MAX_MESSAGE, Server, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastpath.handoff.namespace import PodNamespace
    from fastpath.ztunnel.config import MakeError
    from fastpath.ztunnel.model import Config, Handoff, Sandbox
    from vhost_user.decode import KeyPath


class Inpod:
    """The ztunnels that are told of sandboxes.

    Args:
        config: checked.
        error: makes the errors.
    """

    def __init__(self, config: Config, error: MakeError) -> None:
        self._config = config
        self._error = error
        self._servers: dict[Path, Server] = {}
        self._told: dict[str, tuple[Server, str]] = {}
        """By sandbox: who tells of it, and its uid."""

    async def start(self, namespaces: Mapping[Path, PodNamespace]) -> None:
        """Write the rules, and tell of all sandboxes from now on.

        Args:
            namespaces: of all sandboxes that have one, entered.

        Raises:
            FastpathError: the rules or a socket can't be had.
        """
        served: list[tuple[Sandbox, Handoff, int, KeyPath]] = []
        for index, sandbox in enumerate(self._config.fastpath.sandboxes):
            handoff, path = sandbox.handoff, sandbox.netns
            if handoff and handoff.inpod and path:
                here: KeyPath = ("fastpath", "sandboxes", index)
                served.append((sandbox, handoff, namespaces[path].fileno(), here))
        installs = (self._install(*each) for each in served)
        results = await asyncio.gather(*installs, return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        for each in served:
            await self._add(*each)

    def leave(self, name: str) -> None:
        """Take a sandbox back, if it was told of."""
        server, uid = self._told.pop(name, (None, ""))
        if server is not None:
            server.remove(uid)

    def close(self) -> None:
        """Tell nobody any more; again: nothing."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        self._told.clear()

    async def _install(
        self, sandbox: Sandbox, handoff: Handoff, namespace: int, here: KeyPath
    ) -> None:
        """Write a sandbox's rules, if it needs any; some at a time."""
        if handoff.socks5:
            return
        ips = self._config.workload(sandbox.workload).workload_ips
        versions = {ip.version for ip in ips}
        try:
            await asyncio.to_thread(rules.install, namespace, versions)
        except rules.RulesError as error:
            why = f"{sandbox.netns}: {error.why}"
            raise self._error((*here, "netns"), why, error.hint) from error

    async def _add(
        self, sandbox: Sandbox, handoff: Handoff, namespace: int, here: KeyPath
    ) -> None:
        """Tell of a sandbox from now on."""
        workload = self._config.workload(sandbox.workload)
        who = Workload(
            uid=workload.uid or workload.key,
            name=workload.name,
            namespace=workload.namespace,
            service_account=workload.service_account,
        )
        if (size := len(who.add())) > MAX_MESSAGE:
            why = f"has names too long for ZDS: {size} bytes of {MAX_MESSAGE}"
            raise self._error((*here, "workload"), why, "shorten its uid")
        assert handoff.inpod
        server = await self._server(handoff.inpod, (*here, "handoff", "inpod"))
        server.add(who, namespace)
        self._told[sandbox.name] = server, who.uid

    async def _server(self, path: Path, where: KeyPath) -> Server:
        if path not in self._servers:
            server = Server(path)
            try:
                await server.start()
            except OSError as error:
                hint = "name a path in a directory of yours, used by no other process"
                why = f"cannot listen on {path}: {error.strerror}"
                raise self._error(where, why, hint) from error
            self._servers[path] = server
        return self._servers[path]
