"""HBONE: connections as HTTP/2 CONNECT streams in tunnels of mutual TLS.

C makes the tunnels and moves the bytes (native/vu_hbone.h). Python says with which
certificates, to whom and with which headers, and where a CONNECT of another node goes.
A target `Hbone` in a route needs no answer of Python's.

Threads as for `Engine`.

Spec: RFC 9113, section 8.5; RFC 8446; SPIFFE X.509-SVID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_user import events, targets
from vhost_user._native import check, ffi, lib
from vhost_user.events import ALL_EVENTS, EventKind
from vhost_user.handles import ListenerHandle, Owner
from vhost_user.reasons import Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from vhost_user._vu import CStruct
    from vhost_user.events import Handler
    from vhost_user.handles import DeviceHandle
    from vhost_user.targets import Hbone, SocketAddress, Target

__all__ = [
    "MAX_STREAMS",
    "SERVER_STREAMS",
    "Answer",
    "Gate",
    "Guest",
    "HboneStats",
    "Headers",
    "Pool",
    "Reason",
    "Request",
    "Tls",
    "Tunnels",
    "answer",
]

MAX_STREAMS: Final = 100
"""Streams of a tunnel that we make."""
SERVER_STREAMS: Final = 200
"""Streams of a tunnel that others make."""
_PEER_MAX: Final = 2048  # VU_MAX_PEER


class Tls:
    """Certificates in an engine; those that use them keep them.

    Args:
        engine: whose tunnels use them.
        chain: ours and those above it, PEM.
        key: its private key, PEM.
        roots: what peers' chains end in, PEM.
        crls: revocation lists, PEM; empty: none.

    Raises:
        StateError: a PEM has nothing that fits, or the key is another one's.
        OSError: the thread for handshakes cannot be started.
    """

    def __init__(
        self,
        engine: Owner,
        *,
        chain: bytes,
        key: bytes,
        roots: bytes,
        crls: bytes = b"",
    ) -> None:
        config = ffi.new("struct vu_tls_config *")
        texts = [_text(each) for each in (chain, key, roots, crls)]
        config.chain, config.key, config.roots, config.crls = texts
        self._engine = engine
        self.id = check(lib.vu_tls_add(engine.native, config), "certificates")

    def close(self) -> None:
        """Forget them. Once only."""
        check(lib.vu_tls_del(self._engine.native, self.id), "forget certificates")


class Headers:
    """Headers of requests or responses in an engine.

    Args:
        engine: whose tunnels send them.
        authority: of a request.
        baggage: of a request or a response.
        forwarded: of a request: what is before the client's port and behind it.
        network: of a request: `x-forwarded-network`.

    Raises:
        StateError: a value is no header's, or they are longer than 8 KiB.
    """

    def __init__(
        self,
        engine: Owner,
        *,
        authority: str | None = None,
        baggage: str | None = None,
        forwarded: tuple[str, str] | None = None,
        network: str | None = None,
    ) -> None:
        config = ffi.new("struct vu_headers_config *")
        said = (authority, baggage, *(forwarded or (None, None)), network)
        texts = [_text_of(each) for each in said]
        config.authority, config.baggage = texts[:2]
        config.forwarded_before, config.forwarded_after = texts[2:4]
        config.forwarded_network = texts[4]
        self._engine = engine
        self.id = check(lib.vu_headers_add(engine.native, config), "headers")

    def close(self) -> None:
        """Forget them. Once only."""
        check(lib.vu_headers_del(self._engine.native, self.id), "forget headers")


@dataclass(frozen=True, slots=True)
class HboneStats:
    """Counters of a pool or listener; `struct vu_hbone_stats`."""

    tunnels: int
    streams: int
    opened: int
    failed: int
    shakes: int
    requests: int
    decided: int
    faults: int
    floods: int
    silent: int
    sent_bytes: int
    read_bytes: int


class Tunnels:
    """Tunnels of a pool or a listener."""

    def __init__(self, engine: Owner, source: int) -> None:
        self._engine = engine
        self.id = source
        """`Event`s come from this source; what `Hbone.pool` is."""

    def drain(self, deadline_s: float) -> None:
        """Tell peers to open no more streams; what is left at the deadline is cut."""
        ret = lib.vu_hbone_drain(self._engine.native, self.id, round(deadline_s * 1000))
        check(ret, "drain")

    def stats(self) -> HboneStats:
        """Read the counters."""
        raw = ffi.new("struct vu_hbone_stats *")
        check(lib.vu_hbone_stats(self._engine.native, self.id, raw), "read counters")
        return HboneStats(*(getattr(raw, name) for name in HboneStats.__slots__))

    def failed_peer(self) -> str:
        """Return who was at the other end of the last tunnel that failed, or ""."""
        raw = ffi.new("char[]", _PEER_MAX)
        ret = lib.vu_hbone_peer(self._engine.native, self.id, raw, _PEER_MAX)
        check(ret, "read peer")
        return _str(raw)


class Pool(Tunnels):
    """Tunnels to one address, made as they are needed.

    Args:
        engine: whose connections use them.
        tls: certificates.
        address: where to; `Hbone`: a stream of another pool carries each tunnel, in
            place of TCP, and each is for one connection.
        names: SPIFFE identities of which the peer must have one.
        on_event: hears of tunnels (TUNNEL).
        source: address of ours to come from.
        netns: `NetnsHandle.id` of the network namespace that they are made in, from its
            address, without `source`; 0: our own. One that is closed fails connections
            with ENETUNREACH.
        max_streams: of a tunnel.
        max_tunnels: at a time.
        idle_s: a tunnel without streams ends after so long.
        connect_s: TCP, TLS and HTTP/2 have to be there by then.
        ping_s: a PING each so often.
        silence_s: a tunnel whose PING isn't answered for so long ends.

    Raises:
        StateError: a value is out of range.
    """

    def __init__(
        self,
        engine: Owner,
        tls: Tls,
        address: SocketAddress | Hbone,
        names: Sequence[str],
        *,
        on_event: Handler,
        source: SocketAddress | None = None,
        netns: int = 0,
        max_streams: int = MAX_STREAMS,
        max_tunnels: int = 256,
        idle_s: float = 300.0,
        connect_s: float = 10.0,
        ping_s: float = 10.0,
        silence_s: float = 20.0,
    ) -> None:
        config = ffi.new("struct vu_pool_config *")
        texts = [ffi.new("char[]", name.encode()) for name in names]
        array = ffi.new("const char *[]", texts)
        config.tls, config.netns = tls.id, netns
        config.names, config.n_names = array, len(texts)
        config.max_streams, config.max_tunnels = max_streams, max_tunnels
        _set_times(config, connect_s, ping_s, silence_s)
        config.idle_ms = round(idle_s * 1000)
        if isinstance(address, targets.Hbone):
            config.via.pool, config.via.headers = address.pool, address.headers
        else:
            raw = targets.sockaddr(address)
            ffi.memmove(config.addr, raw, len(raw))
            config.addr_len = len(raw)
        if source is not None:
            raw = targets.sockaddr(source)
            ffi.memmove(config.src, raw, len(raw))
            config.src_len = len(raw)
        super().__init__(engine, check(lib.vu_pool_add(engine.native, config), "pool"))
        engine.hear(self.id, on_event)

    def renew(self, tls: Tls) -> None:
        """Have other certificates for tunnels that are yet to be made.

        One whose peer the new revocation lists name ends (`Reason.REVOKED`).
        """
        check(lib.vu_pool_tls(self._engine.native, self.id, tls.id), "rotate")

    def close(self) -> None:
        """Make no more tunnels; streams go on. Once only.

        The engine forgets the handler after the last of them.
        """
        check(lib.vu_pool_del(self._engine.native, self.id), "remove pool")


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered a CONNECT to another network, and what."""

    peer: str
    """The server's SPIFFE identity, by its certificate."""
    baggage: str
    """Empty: it said none."""


def answer(engine: Owner, number: int) -> Answer | None:
    """Return the answer of an event; None if it is kept no more."""
    raw = ffi.new("struct vu_hbone_answer *")
    ret = lib.vu_hbone_answer(engine.native, number, raw)
    if ret == -lib.VU_ERR_GONE:
        return None
    check(ret, "read answer")
    return Answer(_str(raw.peer), _str(raw.baggage))


@dataclass(frozen=True, slots=True)
class Request:
    """What a CONNECT said; what it didn't is empty."""

    peer: str
    """The client's SPIFFE identity, by its certificate."""
    authority: str
    baggage: str
    forwarded: str
    traceparent: str
    network: str | None
    """`x-forwarded-network`, which may be empty; None: it said none."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A program in a guest, for `Gate.decide()`."""

    device: DeviceHandle
    guest_port: int
    """Where the program listens."""
    first_port: int
    """Of 65536 on our side: a connection comes from the one that is further by the
    client's port in `forwarded`, or from another one if that is taken or unknown."""


class Gate(Tunnels):
    """Tunnels that others make; each CONNECT is a REQUEST event, until it is decided.

    Args:
        engine: whose connections they become.
        sock: listening, taken over; set to non-blocking.
        tls: certificates.
        trust_domain: of which a client must be.
        on_event: hears of connections and tunnels.
        want: which events to post besides REQUEST and TUNNEL.
        max_tunnels: at a time; one more is closed.
        max_shakes: of them, such as shake hands; others wait in the backlog.
        max_streams: of a tunnel; one more is refused.
        connect_s: TLS and HTTP/2 have to be there by then.
        ping_s: a PING each so often.
        silence_s: a tunnel whose PING isn't answered for so long ends.

    Raises:
        StateError: a value is out of range, or the engine has 65536 listeners.
        OSError: the socket cannot be watched.
    """

    def __init__(
        self,
        engine: Owner,
        sock: socket.socket,
        tls: Tls,
        trust_domain: str,
        *,
        on_event: Handler,
        want: frozenset[EventKind] = ALL_EVENTS,
        max_tunnels: int = 4096,
        max_shakes: int = 64,
        max_streams: int = SERVER_STREAMS,
        connect_s: float = 10.0,
        ping_s: float = 10.0,
        silence_s: float = 20.0,
    ) -> None:
        config = ffi.new("struct vu_hbone_config *")
        domain = ffi.new("char[]", trust_domain.encode())
        config.tls, config.trust_domain = tls.id, domain
        config.want = events.want_bits(want)
        config.max_tunnels, config.max_shakes = max_tunnels, max_shakes
        config.max_streams = max_streams
        _set_times(config, connect_s, ping_s, silence_s)
        sock.setblocking(False)
        ret = lib.vu_hbone_listen(engine.native, sock.fileno(), config)
        super().__init__(engine, check(ret, "listen for HBONE"))
        sock.detach()
        self.listener = ListenerHandle(engine, self.id)
        engine.hear(self.id, on_event)

    def renew(self, tls: Tls) -> None:
        """Have other certificates for tunnels that are yet to come.

        One whose peer the new revocation lists name ends (`Reason.REVOKED`).
        """
        check(lib.vu_hbone_tls(self._engine.native, self.id, tls.id), "rotate")

    def request(self, conn: int) -> Request | None:
        """Return what a CONNECT said; None if the connection has ended meanwhile."""
        raw = ffi.new("struct vu_hbone_request *")
        ret = lib.vu_hbone_request(self._engine.native, conn, raw)
        if ret == -lib.VU_ERR_GONE:
            return None
        check(ret, "read request")
        texts = {name: _str(getattr(raw, name)) for name in Request.__slots__}
        network = texts.pop("network")
        return Request(**texts, network=network if raw.has_network else None)

    def respond(self, conn: int, headers: Headers) -> bool:
        """Say which headers the answer has; before `Engine.answer()`.

        Returns:
            False if the connection, or the headers, are gone.
        """
        ret = lib.vu_hbone_respond(self._engine.native, conn, headers.id)
        if ret == -lib.VU_ERR_GONE:
            return False
        check(ret, "respond")
        return True

    def preface(self, conn: int, data: bytes) -> bool:
        """Have the far side get bytes before those of the peer; before the answer.

        Events count them as the peer's.

        Returns:
            False if the connection is gone.

        Raises:
            StateError: it was answered, is on offer or has some already.
        """
        ret = lib.vu_hbone_preface(self._engine.native, conn, data, len(data))
        if ret == -lib.VU_ERR_GONE:
            return False
        check(ret, "bytes before the peer's")
        return True

    def decide(
        self,
        conn: int,
        where: Target | Guest,
        *,
        tag: int,
        headers: Headers | None = None,
    ) -> bool:
        """Have all CONNECTs that say what this one says go one way, without REQUEST.

        The same is said by whom has the same identity, by a tunnel from the same IP to
        the same address of ours, with the same authority, baggage, network and
        forwarded, but for the client's port in that. Events of theirs, OPENED or
        FAILED, have the tag; those of a guest's are its device's. This one is still to
        be answered.

        Args:
            conn: of a REQUEST that isn't answered.
            where: what they are answered by.
            tag: not 0; FORGOT, from the same source, is the last event with it.
            headers: of their answers.

        Returns:
            False if the connection, the device, the headers or the gate are gone.

        Raises:
            StateError: it was answered, or a value is out of range.
        """
        raw = ffi.new("struct vu_hbone_decision *")
        raw.tag, raw.headers = tag, headers.id if headers else 0
        if isinstance(where, Guest):
            raw.dev, raw.guest_port = where.device.id, where.guest_port
            raw.first_port = where.first_port
        else:
            raw.target = targets.encode(where)[0]
        ret = lib.vu_hbone_decide(self._engine.native, conn, raw)
        if ret == -lib.VU_ERR_GONE:
            return False
        check(ret, f"decide {where}")
        return True

    def forget(self) -> None:
        """Hear of all CONNECTs again; what was decided stays for those that are open.

        A closed gate has forgotten.
        """
        check(lib.vu_hbone_forget(self._engine.native, self.id), "forget decisions")

    def offer(
        self, conn: int, device: DeviceHandle, guest_port: int, *, port: int
    ) -> int | None:
        """Offer a CONNECT to a program in a guest; 200 once that takes it.

        The device's handler hears the rest. After FAILED with ECONNREFUSED the guest
        had no room, and the CONNECT can be offered again, or answered. After another
        error it is 503. FAILED of the gate's own says that its time is over.

        Args:
            conn: of a REQUEST.
            device: the guest's.
            guest_port: where the program listens.
            port: on our side, not 0.

        Returns:
            The connection's new id; None if it, or the device, is gone.

        Raises:
            StateError: too many connections, the two ports have one, or it is on offer.
        """
        ret = lib.vu_hbone_guest(self._engine.native, conn, device.id, guest_port, port)
        if ret == -lib.VU_ERR_GONE:
            return None
        return check(ret, f"offer a CONNECT to guest port {guest_port}")

    def close(self) -> None:
        """Take no more tunnels; those that there are go on."""
        self.listener.close()


def _set_times(
    config: CStruct, connect_s: float, ping_s: float, silence_s: float
) -> None:
    config.connect_ms = round(connect_s * 1000)
    config.ping_ms = round(ping_s * 1000)
    config.silence_ms = round(silence_s * 1000)


def _text(data: bytes) -> CStruct:
    """Return bytes with a NUL, as C has them while this is referred to."""
    return ffi.new("char[]", data) if data else ffi.NULL


def _text_of(text: str | None) -> CStruct:
    return ffi.NULL if text is None else ffi.new("char[]", text.encode())


def _str(raw: CStruct) -> str:
    """Return a text of C's; bytes that are no UTF-8 are escaped."""
    return ffi.string(raw).decode(errors="backslashreplace")
