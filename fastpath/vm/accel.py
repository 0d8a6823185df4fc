"""Which accelerator runs the guest: kvm where it works, else tcg."""

from __future__ import annotations

from fastpath.vm.spec import Accelerator

__all__ = ["Accelerator", "choose"]


def choose(want: str, *, qemu: str = "qemu-system-x86_64") -> Accelerator:
    """Decide between kvm and tcg.

    Blocks for up to 10 s the first time on a host with /dev/kvm; call it
    through `asyncio.to_thread` from a coroutine.

    Args:
        want: "auto", "kvm" or "tcg"; kvm and tcg are taken at their word.
        qemu: the QEMU program.

    Raises:
        FastpathError: QEMU is missing, or kvm is asked for without /dev/kvm.
    """
    raise NotImplementedError
