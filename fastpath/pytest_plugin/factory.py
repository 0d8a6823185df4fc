"""Boots microVMs, each with a ztunnel in this process, and ends them.

settings.py says what leads to a microVM and from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fastpath.image import images
from fastpath.pytest_plugin import settings
from fastpath.pytest_plugin.microvm import MicroVm
from fastpath.scratch import CONSOLE, scratch
from fastpath.tsi import keys
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.config import load_with_lines
from fastpath.ztunnel.process import Ztunnel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from fastpath.image.images import Image
    from fastpath.pytest_plugin.loop import LoopThread
    from fastpath.vm.spec import Accelerator

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to boot."""

    name: str
    image: Image
    files: Mapping[str, Path]
    policy: Path | None
    sockets: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """As of `VmSpec`."""


class VmFactory:
    """Makes microVMs; a context manager that ends them.

    Args:
        loop: what they run in.
        accelerator: what runs their instructions.
    """

    def __init__(self, loop: LoopThread, accelerator: Accelerator) -> None:
        self.vms: list[MicroVm] = []
        """In the order in which they booted."""
        self._loop = loop
        self._accelerator = accelerator
        self._ends: list[tuple[asyncio.Event, Future[None]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for end, living in reversed(self._ends):
            self._loop.soon(end.set)
            living.result()
        self._ends.clear()
        self.vms.clear()

    def __call__(
        self,
        *,
        image: str = "base",
        kernel: Path | None = None,
        memory_mib: int = 512,
        cpus: int = 1,
        files: Mapping[str, Path] | None = None,
        policy: Path | None = None,
        sockets: str = "auto",
        append: str = "",
    ) -> MicroVm:
        """Boot a microVM; return once programs can run in it.

        Args:
            image: as of `fastpath image list`.
            kernel: another one than the image's, with all drivers in it.
            memory_mib: its memory.
            cpus: its virtual CPUs.
            files: absolute path in the guest -> file or directory of the host.
            policy: what programs may reach and publish (docs/tsi-policy.md); None:
                they reach what this process does, and publish everything.
            sockets: who has programs' sockets: auto, module, agent.
            append: more kernel parameters.

        Raises:
            FastpathError: it does not boot.
        """
        wanted = Wanted(
            name=f"vm{next(_numbers)}",
            image=images.build(image),
            files=files or {},
            policy=policy,
            sockets=sockets,
            options={
                "kernel": kernel,
                "memory_mib": memory_mib,
                "cpus": cpus,
                "append": append,
            },
        )
        booted: asyncio.Future[MicroVm]
        end = asyncio.Event()

        async def live() -> None:
            async with self._booted(wanted) as vm:
                booted.set_result(vm)
                await end.wait()

        async def boot() -> MicroVm:
            nonlocal booted
            booted = asyncio.get_running_loop().create_future()
            living = self._loop.begin(live())
            self._ends.append((end, living))
            task = asyncio.wrap_future(living)
            either: set[asyncio.Future[Any]] = {booted, task}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not booted.done():
                await task  # raises why it did not boot
            return await booted

        try:
            vm = self._loop.call(boot())
        except BaseException:
            gone, living = self._ends.pop()
            self._loop.soon(gone.set)
            with contextlib.suppress(Exception):
                living.result()
            raise
        self.vms.append(vm)
        return vm

    @contextlib.asynccontextmanager
    async def _booted(self, wanted: Wanted) -> AsyncIterator[MicroVm]:
        with scratch() as folder:
            image = wanted.image
            if wanted.files:
                image = images.with_files(image, wanted.files, folder / "initramfs")
            address = settings.draw_address()
            key = keys.make(folder / settings.KEY)
            path = settings.write(folder, wanted.name, address, wanted.policy)
            loaded = load_with_lines(path)
            options = dict(wanted.options)
            more = f"{options.pop('append')} tsi={wanted.sockets}"
            spec = VmSpec(
                image=image,
                accel=self._accelerator,
                vsock_socket=folder / settings.VHOST,
                console=folder / CONSOLE,
                qmp=folder / "qmp",
                append=f"{more} guest_name={wanted.name},{settings.POD_IP}",
                **options,
            )
            async with (
                Ztunnel(loaded.config, error=loaded.error) as ztunnel,
                Guest(folder / settings.VSOCK, console=spec.console, key=key) as guest,
                Machine(spec) as machine,
            ):
                await ztunnel.follow(loaded)
                limit_s = self._accelerator.boot_timeout_s
                info = await machine.watch(guest.ready(limit_s))
                yield MicroVm(
                    name=wanted.name,
                    info=info,
                    address=address,
                    folder=folder,
                    loop=self._loop,
                    guest=guest,
                    machine=machine,
                    ztunnel=ztunnel,
                )
