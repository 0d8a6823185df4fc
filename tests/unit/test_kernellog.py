"""What of a guest's console says that its kernel has found something wrong."""

from __future__ import annotations

import pytest

from tests.vm import kernellog

WRONG = [
    "WARNING: CPU: 0 PID: 61 at net/core/stream.c:212 sk_stream_kill_queues+0x6b/0x80",
    "WARNING: possible circular locking dependency detected",
    "WARNING: suspicious RCU usage",
    "WARNING: bad unlock balance detected!",
    "INFO: trying to register non-static key.",
    "BUG: KASAN: slab-use-after-free in tsi_recvmsg+0x11/0x20",
    "BUG: KFENCE: out-of-bounds read in inner_put+0x11/0x20",
    "BUG kmalloc-256 (Tainted: G           OE     ): Poison overwritten",
    "BUG: scheduling while atomic: nc/61/0x00000002",
    "BUG: sleeping function called from invalid context at net/core/sock.c:3485",
    "BUG: MAX_LOCKDEP_CHAINS too low!",
    "BUG: unable to handle page fault for address: ffffed1000000000",
    "general protection fault, probably for non-canonical address 0xdffffc0000000001",
    "UBSAN: shift-out-of-bounds in net/tsi/kernel/inet/stream.c:11:2",
    "ODEBUG: free active (active state 0) object type: timer_list",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "refcount_t: underflow; use-after-free.",
    "list_del corruption. prev->next should be ffff88800abcd000",
    "unregister_netdevice: waiting for eth0 to become free. Usage count = 2",
    "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    " Call Trace:",
]
RIGHT = [
    "INFO: task tsi:41 blocked for more than 241 seconds.",
    "tsi: control stream: -111",
    "tsi: datagram stream: the host closed it",
    "kasan: KernelAddressSanitizer initialized",
    "kfence: initialized - using 2097152 bytes for 255 objects",
    "random: crng init done",
    "kmemleak: Kernel memory leak detector disabled",
    "RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable",
    "Run /init as init process",
]


@pytest.mark.parametrize("line", WRONG)
def test_a_report_is_seen(line):
    log = f"[    3.100000] {line}\n"
    assert kernellog.reports(f"[    0.000000] Linux\n{log}") == [log.strip()]


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_no_report_is_left(line):
    assert kernellog.reports(f"[    3.100000] {line}\n") == []
