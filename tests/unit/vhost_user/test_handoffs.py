"""Hand-offs: what other proxies hear before the bytes, and what they may answer.

The proxies are written by hand; so are their bytes, from the PROXY protocol's section
2.2 and from RFC 1928. Clients come by a listener, so a source is the client's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import struct
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support.limits import LIMIT_S, until
from vhost_user.engine import (
    ALL_EVENTS,
    Dial,
    Engine,
    EventKind,
    Socks5Proxy,
    UnixProxy,
)
from vhost_user.errors import StateError

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IDENTITY = "spiffe://cluster.local/ns/default/sa/client"
THERE4, THERE6 = ("192.0.2.7", 8080), ("2001:db8::7", 8080)
OWN = (ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("fd00::5"))
ASKED4 = bytes.fromhex("050100 05010001 c0000207 1f90")
ASKED6 = bytes.fromhex("050100 05010004 20010db8000000000000000000000007 1f90")
METHOD = bytes([5, 0])
GRANTED = bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
GRANTED6 = bytes([5, 0, 0, 4]) + bytes(18)
GRANTED_NAME = bytes([5, 0, 0, 3, 255]) + bytes(255) + bytes(2)


class World:
    """An engine with a listener whose clients are handed over, and their proxy."""

    def __init__(self, engine, tmp_path):
        self.engine = engine
        self.events = []
        self._path = tmp_path / "proxy"
        self._open = contextlib.ExitStack()

    def proxy(self, family=socket.AF_UNIX, backlog=16):
        """A proxy's listening socket; its address."""
        self.listener = self._open.enter_context(socket.socket(family))
        if family == socket.AF_UNIX:
            self.listener.bind(str(self._path))
        else:
            self.listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.listener.listen(backlog)
        self.listener.setblocking(False)
        return self.listener.getsockname()[:2]

    def serve(self, proxy, there=THERE4, host="127.0.0.1"):
        """Have clients handed to `proxy`."""
        self.handoff = self.engine.add_handoff(proxy)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        ours = socket.create_server((host, 0), family=family)
        self.address = ours.getsockname()[:2]
        self.engine.add_listener(
            ours,
            Dial(there, handoff=self.handoff.id),
            on_event=self.events.append,
            want=ALL_EVENTS,
        )

    def unix(self, **more):
        self.proxy()
        self.serve(UnixProxy(str(self._path), OWN, IDENTITY), **more)

    def socks5(self, family=socket.AF_INET, **more):
        self.serve(Socks5Proxy(self.proxy(family)), **more)

    async def client(self):
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = self._open.enter_context(socket.socket(family))
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError):  # its end may be first
            await loop.sock_connect(sock, self.address)
        return sock

    async def accept(self):
        conn, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self._open.enter_context(conn)
        conn.setblocking(False)
        return conn

    async def failed(self, count=1):
        """The errors of connections that never were."""

        def found():
            return [e.error for e in self.events if e.kind is EventKind.FAILED]

        await until(lambda: len(found()) == count)
        return found()

    async def opened(self, count=1):
        await until(
            lambda: sum(e.kind is EventKind.OPENED for e in self.events) == count
        )

    def close(self):
        self._open.close()


def run(tmp_path, work):
    async def main():
        async with asyncio.timeout(LIMIT_S), Engine() as engine:
            world = World(engine, tmp_path)
            try:
                await work(world)
            finally:
                world.close()

    asyncio.run(main())


async def read(sock, size):
    """Exactly `size` bytes, or fewer and the end."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (more := await loop.sock_recv(sock, size - len(data))):
        data += more
    return data


async def send(sock, data):
    await asyncio.get_running_loop().sock_sendall(sock, data)


def header(family, length):
    return SIGNATURE + bytes([0x21, family]) + struct.pack("!H", length)


def tlv():
    return b"\xd0" + struct.pack("!H", len(IDENTITY)) + IDENTITY.encode()


@pytest.mark.parametrize(
    ("host", "there", "family", "size"),
    [
        pytest.param("127.0.0.1", THERE4, 0x11, 12, id="ipv4"),
        pytest.param("::1", THERE6, 0x21, 36, id="ipv6"),
    ],
)
def test_a_unix_proxy_hears_whose_a_connection_is(tmp_path, host, there, family, size):
    async def work(world):
        world.unix(host=host, there=there)
        client = await world.client()
        proxy = await world.accept()
        port = client.getsockname()[1]
        packed = [ipaddress.ip_address(ip).packed for ip in (host, there[0])]
        expected = header(family, size + len(tlv())) + b"".join(packed)
        expected += struct.pack("!HH", port, there[1]) + tlv()
        assert await read(proxy, len(expected)) == expected
        await send(client, b"ping")
        assert await read(proxy, 4) == b"ping"
        await send(proxy, b"pong")
        assert await read(client, 4) == b"pong"
        proxy.shutdown(socket.SHUT_WR)
        assert await read(client, 1) == b""
        await send(client, b"more")  # the other direction is open still
        assert await read(proxy, 4) == b"more"
        client.close()
        assert await read(proxy, 1) == b""

    run(tmp_path, work)


def test_a_header_without_an_identity_has_no_field_for_it(tmp_path):
    async def work(world):
        world.proxy()
        world.serve(UnixProxy(world.listener.getsockname(), OWN))
        await world.client()
        data = await read(await world.accept(), 28)
        assert data[:16] == header(0x11, 12)
        world.events.clear()

    run(tmp_path, work)


def test_a_source_of_another_ip_version_than_the_destination_is_unreachable(tmp_path):
    async def work(world):
        world.unix(host="::1", there=THERE4)
        await world.client()
        assert await world.failed() == [errno.ENETUNREACH]

    run(tmp_path, work)


@pytest.mark.parametrize("there", ["nothing", "a file", "a folder's file", "datagrams"])
def test_where_nobody_listens_the_connection_is_refused(tmp_path, there):
    async def work(world):
        path = tmp_path / "proxy"
        if there == "datagrams":
            world._open.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            world._open.enter_context(other).bind(str(path))
        elif there != "nothing":
            path.touch()
        path = path / "it" if there == "a folder's file" else path
        world.serve(UnixProxy(str(path), OWN, IDENTITY))
        await world.client()
        assert await world.failed() == [errno.ECONNREFUSED]

    run(tmp_path, work)


def test_a_proxy_that_leaves_without_reading_is_a_reset(tmp_path):
    async def work(world):
        world.unix()
        client = await world.client()
        (await world.accept()).close()
        with pytest.raises(ConnectionResetError):
            await read(client, 1)

    run(tmp_path, work)


def test_a_proxy_hears_its_own_connection_only(tmp_path):
    async def work(world):
        world.unix()
        clients = [await world.client() for _ in range(10)]
        for client in clients:
            await send(client, client.getsockname()[1].to_bytes(2, "big"))
        for _ in clients:
            proxy = await world.accept()
            data = await read(proxy, 16 + 12 + len(tlv()) + 2)
            assert data[24:26] == data[-2:]

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("there", "asked"),
    [pytest.param(THERE4, ASKED4, id="ipv4"), pytest.param(THERE6, ASKED6, id="ipv6")],
)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("granted", [GRANTED, GRANTED6, GRANTED_NAME])
def test_a_socks5_proxy_is_asked_in_one_write(tmp_path, family, there, asked, granted):
    async def work(world):
        world.socks5(family, there=there)
        client = await world.client()
        proxy = await world.accept()
        await send(client, b"ping")
        assert await asyncio.get_running_loop().sock_recv(proxy, 100) == asked
        await send(proxy, METHOD + granted + b"first")
        assert await read(client, 5) == b"first"
        assert await read(proxy, 4) == b"ping"
        client.close()
        assert await read(proxy, 1) == b""

    run(tmp_path, work)


@pytest.mark.parametrize("granted", [GRANTED, GRANTED6, GRANTED_NAME])
def test_an_answer_may_come_byte_by_byte(tmp_path, granted):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        for byte in METHOD + granted:
            assert not world.events
            await send(proxy, bytes([byte]))
            await asyncio.sleep(0)
        await world.opened()
        await send(proxy, b"first")
        assert await read(client, 5) == b"first"

    run(tmp_path, work)


@pytest.mark.parametrize("split", range(1, 12))
def test_an_answer_may_be_split_anywhere(tmp_path, split):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        data = METHOD + GRANTED + b"first"
        await send(proxy, data[:split])
        await send(client, b"ping")  # the engine has turns meanwhile
        await send(proxy, data[split:])
        assert await read(client, 5) == b"first"
        assert await read(proxy, 4) == b"ping"

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (METHOD + bytes([5, 1, 0, 1]), errno.ECONNREFUSED),
        (METHOD + bytes([5, 2, 0, 1]), errno.EACCES),
        (METHOD + bytes([5, 3, 0, 1]), errno.ENETUNREACH),
        (METHOD + bytes([5, 4, 0, 1]), errno.EHOSTUNREACH),
        (METHOD + bytes([5, 5, 0, 1]), errno.ECONNREFUSED),
        (METHOD + bytes([5, 6, 0, 1]), errno.ETIMEDOUT),
        (METHOD + bytes([5, 7, 0, 1]), errno.EOPNOTSUPP),
        (METHOD + bytes([5, 8, 0, 1]), errno.EAFNOSUPPORT),
        (METHOD + bytes([5, 9, 0, 1]), errno.EPROTO),
        (METHOD + bytes([5, 255, 0, 1]), errno.EPROTO),
        (bytes([5, 255]), errno.EACCES),
        (bytes([5, 2]), errno.EPROTO),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", errno.EPROTO),
        (bytes([4]), errno.EPROTO),
        (METHOD + b"H", errno.EPROTO),
        (METHOD + bytes([5, 0, 0, 2]), errno.EPROTO),
        (METHOD + bytes([5, 0, 0, 0]) + bytes(300), errno.EPROTO),
    ],
)
def test_what_a_socks5_proxy_refuses_with_is_the_connects_errno(
    tmp_path, answer, error
):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, answer)
        assert await world.failed() == [error]
        with pytest.raises(ConnectionResetError):
            await read(client, 1)
        assert world.engine.stats().conns == 0

    run(tmp_path, work)


def outcome(answer):
    """What RFC 1928 makes of an answer: the errno of connect(), or the bytes after it.

    A model of its own, by the whole answer and not piece by piece.
    """
    errors = [0, errno.ECONNREFUSED, errno.EACCES, errno.ENETUNREACH]
    errors += [errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT]
    errors += [errno.EOPNOTSUPP, errno.EAFNOSUPPORT]
    for index, byte in enumerate(answer[:6]):
        if index in (0, 2) and byte != 5:
            return errno.EPROTO
        if index == 1 and byte:
            return errno.EACCES if byte == 255 else errno.EPROTO
        if index == 3 and byte:
            return errors[byte] if byte < len(errors) else errno.EPROTO
        if index == 5 and byte not in (1, 3, 4):
            return errno.EPROTO
    if len(answer) < 7:
        return errno.ECONNRESET
    size = {1: 12, 4: 24, 3: 9 + answer[6]}[answer[5]]
    return answer[size:] if len(answer) >= size else errno.ECONNRESET


ANSWERS = st.builds(
    lambda head, kind, size, rest: head + bytes([kind, size]) + rest,
    st.sampled_from([METHOD + b"\5\0\0", METHOD + b"\5\5\0", b"\5\xff\5\0\0", b""]),
    st.sampled_from([1, 3, 4, 2]),
    st.integers(0, 12),
    st.binary(max_size=30),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(ANSWERS, st.lists(st.integers(1, 8), max_size=12))
def test_any_answer_in_any_pieces_is_what_the_rfc_makes_of_it(answer, pieces):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        proxy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await read(proxy, len(ASKED4))
        rest = answer
        for size in pieces:
            with contextlib.suppress(ConnectionError):  # it may be refused by now
                await send(proxy, rest[:size])
            rest = rest[size:]
            await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError):
            await send(proxy, rest)
            proxy.shutdown(socket.SHUT_WR)
        expected = outcome(answer)
        if isinstance(expected, int):
            assert await world.failed() == [expected]
        else:
            assert await read(client, len(expected) + 1) == expected

    run(Path("/nowhere"), work)


@pytest.mark.parametrize("said", [b"", METHOD[:1], METHOD, METHOD + GRANTED[:-1]])
def test_a_socks5_proxy_that_ends_early_is_a_reset(tmp_path, said):
    async def work(world):
        world.socks5()
        await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, said)
        proxy.close()
        assert await world.failed() == [errno.ECONNRESET]

    run(tmp_path, work)


def test_a_socks5_proxy_that_nobody_listens_at_is_refused(tmp_path):
    async def work(world):
        world.socks5()
        world.listener.close()
        await world.client()
        assert await world.failed() == [errno.ECONNREFUSED]

    run(tmp_path, work)


def test_a_socks5_proxy_that_says_nothing_times_out(tmp_path):
    async def main():
        async with asyncio.timeout(LIMIT_S), Engine(dial_timeout_s=0.1) as engine:
            world = World(engine, tmp_path)
            world.socks5()
            await world.client()
            proxy = await world.accept()
            await send(proxy, METHOD)
            assert await world.failed() == [errno.ETIMEDOUT]
            world.close()

    asyncio.run(main())


def test_an_end_right_behind_the_answer_is_an_end_of_the_connection(tmp_path):
    async def work(world):
        world.socks5()
        client = await world.client()
        proxy = await world.accept()
        await read(proxy, len(ASKED4))
        await send(proxy, METHOD + GRANTED + b"bye")
        proxy.close()
        assert await read(client, 4) == b"bye"

    run(tmp_path, work)


def test_clients_that_leave_meanwhile_leave_nothing(tmp_path):
    async def work(world):
        world.socks5()
        clients = [await world.client() for _ in range(8)]
        proxies = [await world.accept() for _ in clients]
        for client in clients:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            client.close()
        for proxy in proxies:
            await read(proxy, len(ASKED4))
            await send(proxy, METHOD + GRANTED)
            with contextlib.suppress(ConnectionResetError):
                assert await read(proxy, 1) == b""
        await until(lambda: not world.engine.stats().conns)

    run(tmp_path, work)


@pytest.mark.parametrize("kind", ["unix", "socks5"])
def test_a_handoff_that_is_closed_refuses(tmp_path, kind):
    async def work(world):
        getattr(world, kind)()
        world.handoff.close()
        await world.client()
        assert await world.failed() == [errno.ENETUNREACH]
        with pytest.raises(StateError):
            world.handoff.close()

    run(tmp_path, work)


def test_an_id_is_not_given_again(tmp_path):
    async def work(world):
        world.unix()
        old = world.handoff.id
        world.handoff.close()
        world.serve(UnixProxy("there", OWN))
        assert world.handoff.id not in (0, old)

    run(tmp_path, work)


@pytest.mark.parametrize(
    "proxy",
    [
        UnixProxy("", OWN),
        UnixProxy("x" * 108, OWN),
        UnixProxy("x" * 113, OWN),
        UnixProxy("x", OWN, "i" * 2049),
        Socks5Proxy(("localhost", 1)),
    ],
)
def test_a_malformed_handoff_is_refused(tmp_path, proxy):
    async def work(world):
        with pytest.raises(StateError):
            world.engine.add_handoff(proxy)
        world.unix()  # others are served

    run(tmp_path, work)


def test_there_may_be_so_many_and_no_more(tmp_path):
    async def work(world):
        for _ in range(1024):
            world.engine.add_handoff(UnixProxy("there", OWN))
        with pytest.raises(StateError):
            world.engine.add_handoff(UnixProxy("there", OWN))

    run(tmp_path, work)
