"""Rings up to VIRTIO's limit of 32768 entries, of both kinds."""

from __future__ import annotations

import os
import select

import pytest

from tests.conformance.conftest import DISCARD, ECHO
from tests.conformance.test_rng import Guest, RngProcess
from tests.conformance.threads import TIMEOUT_S
from vhost_user.driver import DESC_NEXT, Virtqueue
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES, Frontend
from vhost_user.message import Feature, Request, VringState
from vhost_user.vsock.driver import GUEST_FEATURES, TX, VsockGuest
from vhost_user.vsock.packet import Op

LARGEST = 32768
BYTES = bytes(range(256)) * 12
KINDS = [
    pytest.param(GUEST_FEATURES, id="split"),
    pytest.param(GUEST_FEATURES | Feature.RING_PACKED, id="packed"),
]


@pytest.fixture
def make_large(host):
    guests = []

    def make(features=GUEST_FEATURES, **options):
        guest = VsockGuest(
            host.path, features=features, queue_size=LARGEST, rx_buffers=64, **options
        )
        guests.append(guest)
        return guest

    yield make
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("features", KINDS)
def test_a_ring_of_32768_entries_works(make_large, features):
    guest = make_large(features)
    conn = guest.connect(ECHO)
    conn.say(Op.RW, BYTES)
    assert conn.receive_bytes(len(BYTES)) == BYTES


@pytest.mark.parametrize("features", KINDS)
def test_a_ring_of_32768_entries_goes_round(make_large, features):
    guest = make_large(features, first=LARGEST - 50)
    conn = guest.connect(DISCARD)
    for _ in range(500):
        conn.say(Op.RW, b"x")
    conn.say(Op.CREDIT_REQUEST)
    while conn.expect(Op.CREDIT_UPDATE).header.fwd_cnt != 500:
        pass


@pytest.mark.parametrize("features", KINDS)
def test_a_ring_of_32768_entries_stops_and_goes_on(make_large, features):
    guest = make_large(features)
    conn = guest.connect(ECHO)
    for _ in range(3):
        guest.stop()
        guest.start()
        conn.say(Op.RW, b"again")
        assert conn.receive_bytes(5) == b"again"


@pytest.mark.parametrize("features", KINDS)
def test_a_ring_of_32768_entries_has_an_in_flight_log(host, features):
    with VsockGuest(
        host.path, features=features, queue_size=LARGEST, rx_buffers=64
    ) as guest:
        conn = guest.connect(ECHO)
        guest.stop()
        inflight = guest.vmm.get_inflight(2, LARGEST)
        assert inflight.area.queue_size == LARGEST
        guest.start()
        conn.say(Op.RW, b"kept")
        assert conn.receive_bytes(4) == b"kept"
        os.close(inflight.fd)


@pytest.mark.parametrize("num", [LARGEST + 1, 65536, 2**31])
def test_no_ring_is_larger(host, num):
    with Frontend(host.path) as vmm:
        vmm.negotiate(ALL_FEATURES)
        with pytest.raises(StateError, match="SET_VRING_NUM: back-end refuses"):
            vmm.tell(Request.SET_VRING_NUM, VringState(0, num).encode())
        assert vmm.hung_up()


def test_a_chain_of_more_segments_than_one_call_takes_breaks_its_ring_alone(
    host, make_large
):
    """A message to a socket has 1024 parts at most (IOV_MAX)."""
    guest = make_large()
    conn = guest.connect(ECHO)
    guest.drain()
    err = os.eventfd(0)
    guest.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
    assert isinstance(guest.tx, Virtqueue)
    header = guest.header(Op.RW, conn.guest_port, ECHO, len=4096)
    at = guest.ram.alloc(8192)
    guest.ram.write(at, header.encode())
    guest.tx.write_desc(0, at, 44, DESC_NEXT, 1)
    for i in range(1, 4096):
        guest.tx.write_desc(i, at + 44 + i, 1, DESC_NEXT, i + 1)
    guest.tx.write_desc(4096, at + 44, 1, 0, 0)
    guest.tx.publish(0)
    guest.tx.kick(force=True)
    assert select.select([err], [], [], TIMEOUT_S)[0]
    os.close(err)
    guest.close()
    echo_of_a_new_guest(host)


def echo_of_a_new_guest(host):
    with VsockGuest(host.path) as guest:
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"hi")
        assert conn.receive_bytes(2) == b"hi"


def test_a_device_in_python_has_a_ring_of_32768_entries(tmp_path):
    process = RngProcess(str(tmp_path / "rng"))
    guest = Guest(process.path, num=LARGEST)
    assert len(guest.take(guest.ask(64))) == 64
    guest.close()
    assert process.stop()[0] == 0
