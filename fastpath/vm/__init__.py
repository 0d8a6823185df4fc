"""MicroVMs: accelerators, QEMU, and the program's life inside.

The pieces in the order in which a run uses them:

    accel.choose(want)       kvm or tcg, and why
    spec.VmSpec, spec.argv   what to boot, and QEMU's command line for it
    guest.Guest              listens for init, then runs programs in the VM
    machine.Machine          QEMU as a child of ours

What is booted is an image of `fastpath.image`. Nothing here knows of TSI, ztunnel or
Istio; the vsock device that a machine is attached to is another process's or
object's, reached by its unix socket.
"""

from __future__ import annotations
