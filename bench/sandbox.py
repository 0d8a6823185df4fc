"""A guest in a sandbox of a ztunnel of this process: for what times programs in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from fastpath.image import images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.config import for_sandbox
from fastpath.ztunnel.process import RunningSandbox, Ztunnel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastpath.vm.spec import Accelerator
    from fastpath.ztunnel.model import Config

ECHO: Final = ("198.18.0.1", 7)
"""ztunnel answers it itself."""
POD: Final = ip_address("10.200.1.2")
NAME: Final = "bench"


@dataclass(frozen=True, slots=True)
class Booted:
    """A guest that is ready, and what runs for it."""

    ztunnel: Ztunnel
    guest: Guest
    machine: Machine

    @property
    def sandbox(self) -> RunningSandbox:
        """Its side of the ztunnel."""
        return self.ztunnel.sandboxes[NAME]

    async def run(self, *argv: str, tsi: bool = True, **streams: Any) -> int:
        """Run a command in the guest; return its status."""
        return await self.machine.watch(self.guest.run(argv, tsi=tsi, **streams))


def config(folder: Path, **options: Any) -> Config:
    """One sandbox, whose sockets are in `folder`; `options` as of `for_sandbox`."""
    return for_sandbox(
        socket=folder / "vhost",
        cid=3,
        addresses=(POD,),
        name=NAME,
        uds_path=folder / "vsock",
        echo=ip_address(ECHO[0]),
        access_log=Path(os.devnull),
        **options,
    )


@contextlib.asynccontextmanager
async def booted(
    accelerator: Accelerator,
    configure: Callable[[Path], Config] = config,
    *,
    image: str = "base",
    program: Path | None = None,
    sockets: Literal["agent", "module"] = "agent",
    **options: Any,
) -> AsyncIterator[Booted]:
    """Boot an image.

    Args:
        accelerator: the guest's.
        configure: as `config`.
        image: which, a folder of vm-images/.
        program: a C file; compiled, it is `/bin/NAME` in the guest.
        sockets: who has the programs' TCP sockets.
        options: as of `VmSpec`.
    """
    with tempfile.TemporaryDirectory(prefix="fp-bench-") as name:
        folder = Path(name)
        booted = images.build(image)
        if program is not None:
            files = {f"/bin/{program.stem}": _compiled(program, folder)}
            booted = images.with_files(booted, files, folder / "initramfs")
        spec = VmSpec(
            image=booted,
            accel=accelerator,
            vsock_socket=folder / "vhost",
            console=folder / "console",
            qmp=folder / "qmp",
            append=f"tsi={sockets}",
            **options,
        )
        async with (
            Ztunnel(configure(folder)) as ztunnel,
            Guest(folder / "vsock", console=spec.console) as guest,
            Machine(spec) as machine,
        ):
            await machine.watch(guest.ready())
            yield Booted(ztunnel, guest, machine)


def _compiled(source: Path, folder: Path) -> Path:
    out = folder / source.stem
    command = ["cc", "-std=gnu11", "-O2", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(out), str(source)], check=True)
    return out
