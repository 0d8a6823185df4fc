"""vsock header codec (VIRTIO 1.2 section 5.10.6)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user.errors import GuestError
from vhost_user.vsock.packet import HDR_SIZE, Header, Op

U32 = st.integers(0, 2**32 - 1)

# Bytes written out by hand from the struct in section 5.10.6, so that this file
# and packet.py can't share a mistake.
REQUEST = bytes.fromhex(
    "0300000000000000 0200000000000000 00040000 50000000 00000000"
    "0100 0100 00000000 00000400 00000000"
)


@pytest.mark.spec("virtio-1.2:5.10.6/header")
def test_decodes_a_connection_request():
    assert Header.decode(REQUEST) == Header(
        src_cid=3,
        dst_cid=2,
        src_port=1024,
        dst_port=80,
        op=Op.REQUEST,
        buf_alloc=256 * 1024,
    )


@given(port=U32, size=U32, fwd_cnt=U32, op=st.sampled_from(Op))
def test_encode_then_decode_is_identity(port, size, fwd_cnt, op):
    header = Header(
        src_cid=2,
        dst_cid=3,
        src_port=port,
        dst_port=1,
        len=size,
        op=op,
        fwd_cnt=fwd_cnt,
    )
    assert Header.decode(header.encode()) == header


@pytest.mark.parametrize("size", [0, 1, HDR_SIZE - 1])
def test_rejects_a_short_header(size):
    with pytest.raises(GuestError, match=f"{size} bytes, need 44"):
        Header.decode(REQUEST[:size])


@given(st.binary(max_size=2 * HDR_SIZE))
def test_garbage_decodes_or_raises_guest_error(data):
    with contextlib.suppress(GuestError):
        Header.decode(data)
