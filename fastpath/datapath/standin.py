"""Stand-ins at a path's two ends: a guest without a VM, a ztunnel that only answers.

The guest is a network namespace whose eth0 is a tap of its own. A thread carries frames
between that tap and the path's, as QEMU does, so packets take the same way as a VM's.
passt takes frames from a stream here, each behind its length: QEMU's -netdev stream.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import threading
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fastpath.datapath import links, sidecar
from fastpath.datapath.build import apply
from fastpath.datapath.declared import GUEST, OUTBOUND_PORT, SERVER, Capture
from fastpath.datapath.links import Links
from fastpath.datapath.netns import Namespace, sysctl
from fastpath.errors import FastpathError
from fastpath.vm.spec import Tap
from vhost_user.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastpath.datapath.build import Built
    from fastpath.datapath.declared import Datapath, Sandbox
    from fastpath.vm.spec import Nic

TIMEOUT_S: Final = 10.0
SERVER_PORT: Final = 7007
"""Of the server behind."""
ZTUNNEL_MARK: Final = 0x539
"""Istio's: of what ztunnel sends itself."""

_FRAME: Final = 1 << 17
_IP_TRANSPARENT: Final = 19
_SO_ORIGINAL_DST: Final = 80
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_LENGTH: Final = struct.Struct("!I")
_NO_OFFLOADS: Final = bytes(10)
"""A virtio-net header, which a tap has before each frame."""


class Guest(Closing):
    """A namespace that is attached where the microVM would be.

    Args:
        nic: the path's, borrowed.
        sandbox: the guest's addresses.
    """

    def __init__(self, nic: Nic, sandbox: Sandbox) -> None:
        with ExitStack() as stack:
            self.netns = stack.enter_context(Namespace())
            fd = self.netns.run(_interface, sandbox)
            stack.callback(os.close, fd)
            ours, self._end = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, ours)
            there: _End
            if isinstance(nic, Tap):
                there = _TapEnd(nic.fd)
            else:
                stream = stack.enter_context(socket.socket(socket.AF_UNIX))
                stream.connect(str(nic.socket))
                there = _StreamEnd(stream.fileno())
            args = (there, _TapEnd(fd), ours)
            thread = threading.Thread(target=_carry, args=args, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(os.close, self._end)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Carry nothing any more, and drop the namespace."""
        self._stack.close()

    def connect(self, address: tuple[str, int]) -> socket.socket:
        """Open a TCP connection.

        Raises:
            OSError: it can't be.
        """
        sock = self.netns.socket()
        try:
            sock.settimeout(TIMEOUT_S)
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    def listen(self) -> socket.socket:
        """Listen at `SERVER_PORT`."""
        sock = self.netns.socket()
        sock.settimeout(TIMEOUT_S)
        sock.bind(("", SERVER_PORT))
        sock.listen()
        return sock


class Sidecar(Closing):
    """A guest's rules, and the proxy that they lead to; it takes one connection.

    Args:
        guest: where.
        path: whose rules.

    Raises:
        FastpathError: the kernel refuses a rule, or the proxy's user isn't there.
    """

    def __init__(self, guest: Guest, path: Datapath) -> None:
        self._netns = guest.netns
        _check_user(sidecar.USER)
        with ExitStack() as stack:
            apply(path.inside, {GUEST: guest.netns}, stack, what=path.name)
            self._listener = stack.enter_context(guest.netns.socket())
            self._listener.settimeout(TIMEOUT_S)
            self._listener.bind(("", OUTBOUND_PORT))
            self._listener.listen()
            thread = threading.Thread(target=self._serve, daemon=True)
            thread.start()
            stack.callback(thread.join)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Take none any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._stack.close()

    def _serve(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            with client, self._netns.run(_socket_of, sidecar.USER) as onward:
                client.settimeout(TIMEOUT_S)
                onward.settimeout(TIMEOUT_S)
                onward.connect(original_destination(client))
                onward.sendall(client.recv(_FRAME))
                client.sendall(onward.recv(_FRAME))
                client.recv(1)  # its end


class Accepted(NamedTuple):
    """A connection that ztunnel's stand-in took."""

    sock: socket.socket
    client: tuple[str, int]
    destination: tuple[str, int]
    """Where the client wanted to go."""


class Listener(Closing):
    """What listens where the path ends: ztunnel, or the server where there is no mesh.

    Args:
        path: built.
        port: of ztunnel's listener.
    """

    def __init__(self, path: Built, port: int = OUTBOUND_PORT) -> None:
        self._capture = path.path.capture
        without = self._capture is Capture.NONE
        role = SERVER if without else path.path.ztunnel
        self._sock = path.netns[role].socket()
        try:
            self._sock.settimeout(TIMEOUT_S)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._capture is Capture.TPROXY:
                self._sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            self._sock.bind(("", SERVER_PORT if without else port))
            self._sock.listen()
        except OSError:
            self.close()
            raise

    def accept(self) -> Accepted:
        """Take the next connection.

        Raises:
            TimeoutError: none comes.
        """
        sock, client = self._sock.accept()
        sock.settimeout(TIMEOUT_S)
        return Accepted(sock, client, self._destination(sock))

    def _destination(self, sock: socket.socket) -> tuple[str, int]:
        if self._capture is not Capture.REDIRECT:
            host, port = sock.getsockname()
            return str(host), int(port)
        return original_destination(sock)

    def close(self) -> None:
        """Listen no more."""
        self._sock.close()


def onward(path: Built, accepted: Accepted) -> socket.socket:
    """Connect to where an inbound client wanted to go, with its IP, as ztunnel does.

    Raises:
        OSError: it can't be.
    """
    sock = path.netns[path.path.ztunnel].socket()
    try:
        sock.settimeout(TIMEOUT_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, ZTUNNEL_MARK)
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        sock.bind((accepted.client[0], 0))
        sock.connect(accepted.destination)
    except OSError:
        sock.close()
        raise
    return sock


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """Where a connection went before NAT.

    Raises:
        OSError: there was none.
    """
    got = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
    port, host = _SOCKADDR_IN.unpack(got)
    return str(IPv4Address(host)), port


def _check_user(user: int) -> None:
    """Check that a user is one of those of our user namespace.

    Raises:
        FastpathError: it isn't.
    """
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= user < first + count:
            return
    why = "there is root alone in a user namespace that a user may make"
    raise FastpathError(f"no user {user}, the sidecar's, here", why, "run as root")


def _socket_of(user: int) -> socket.socket:
    """Open a socket of a user's; so is the calling thread from then on."""
    ctypes.CDLL(None).setfsuid(user)
    return socket.socket()


def _interface(sandbox: Sandbox) -> int:
    """In the guest: its eth0, a tap whose descriptor is ours to close."""
    for scope in ("all", "default"):
        with suppress(FileNotFoundError):
            sysctl(f"ipv6/conf/{scope}/disable_ipv6", 1)
    fd = links.tap("eth0")
    try:
        with Links() as ip:
            ip.up("lo")
            ip.set_mac("eth0", sandbox.mac)
            ip.address("eth0", sandbox.address)
            ip.up("eth0", mtu=sandbox.mtu)
            ip.route("default", dev="eth0", via=sandbox.gateway)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _End(Protocol):
    """What frames come from and go to, each with a virtio-net header."""

    fd: int

    def read(self) -> Iterator[bytes]:
        """Take what is there: at least once called, it doesn't wait."""

    def write(self, frame: bytes) -> None:
        """Give one."""


class _TapEnd:
    """A tap."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self) -> Iterator[bytes]:
        """As `_End`."""
        yield os.read(self.fd, _FRAME)

    def write(self, frame: bytes) -> None:
        """As `_End`."""
        os.write(self.fd, frame)


class _StreamEnd:
    """A stream socket, where a frame is behind its length and without that header."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._came = bytearray()

    def read(self) -> Iterator[bytes]:
        """As `_End`."""
        self._came += os.read(self.fd, _FRAME)
        while len(self._came) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._came)
            end = _LENGTH.size + length
            if len(self._came) < end:
                return
            yield _NO_OFFLOADS + self._came[_LENGTH.size : end]
            del self._came[:end]

    def write(self, frame: bytes) -> None:
        """As `_End`."""
        own = frame[len(_NO_OFFLOADS) :]
        left = memoryview(_LENGTH.pack(len(own)) + own)
        while left:
            left = left[os.write(self.fd, left) :]


def _carry(one: _End, other: _End, end: int) -> None:
    """Pass frames between two ends, each way, until `end` closes."""
    with selectors.DefaultSelector() as selector:
        for source, target in ((one, other), (other, one)):
            selector.register(source.fd, selectors.EVENT_READ, (source, target))
        selector.register(end, selectors.EVENT_READ, None)
        while True:
            for key, _ in selector.select():
                if key.data is None:
                    return
                source, target = key.data
                # a device that is down refuses, and loses the frame as a wire would
                with suppress(OSError):
                    for frame in source.read():
                        target.write(frame)
