"""A guest's program stops reading while its peer goes on writing a little at a time.

Some kernels keep each packet with its overhead: what is in flight has to fit, or the
kernel drops it (6.12.92) or resets the connection (6.12.94): read() says ENOBUFS in
6.12.95. 6.1, 6.12.118, 6.18.15 and 7.3.4 take all that their buffer has bytes for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import termios
from dataclasses import replace
from fcntl import ioctl

import pytest

from fastpath.image import images
from tests.vm.programs import HERE, compile_c

pytestmark = pytest.mark.vm

PORT = 5000
RECORD = 200
WRITES = 1500

KERNELS = [
    pytest.param("base", id="linux-6.1"),
    pytest.param("linux-6.12", id="linux-6.12"),
    pytest.param("linux-7", id="linux-7", marks=pytest.mark.nightly),
]


async def trickle(sock, records, *, taken_s=0.05):
    """Write records one by one until the socket is full; return those that are left.

    Each is taken by the back-end before the next one goes, unless it takes no more: so
    it goes to the guest alone.
    """
    while records:
        try:
            sock.send(records[0])
        except (BlockingIOError, ConnectionError):
            break
        records = records[1:]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(taken_s):
                while any(ioctl(sock, termios.TIOCOUTQ, bytes(4))):  # noqa: ASYNC110
                    await asyncio.sleep(0)
    return records


@pytest.mark.parametrize("image", KERNELS)
def test_nothing_is_lost_while_the_guest_does_not_read(image, in_vm, vm_spec, vm_dir):
    program = {"/bin/reader": compile_c(vm_dir / "reader", HERE / "vsock_reader.c")}
    built = images.with_files(images.build(image), program, vm_dir / "initramfs")
    records = [b"%0*d" % (RECORD, i) for i in range(WRITES)]
    said = bytearray()

    async def work(machine, guest):
        loop = asyncio.get_running_loop()
        goes_on = asyncio.StreamReader()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(str(vm_dir / f"vsock_{PORT}"))
            listener.listen()
            run = asyncio.create_task(
                guest.run(
                    ["/bin/reader", str(PORT)],
                    tsi=False,
                    stdin=goes_on,
                    stdout=said.extend,
                )
            )
            sock, _ = await loop.sock_accept(listener)
        with sock:
            left = await trickle(sock, records)
            goes_on.feed_eof()
            with contextlib.suppress(ConnectionError):
                for record in left:
                    await loop.sock_sendall(sock, record)
            sock.close()
            return await run

    try:
        status = in_vm(replace(vm_spec, image=built), work)
    finally:
        (vm_dir / f"vsock_{PORT}").unlink(missing_ok=True)
    last = said.decode().splitlines()[-1]
    assert (status, last) == (0, f"{WRITES} records and 0 bytes")
