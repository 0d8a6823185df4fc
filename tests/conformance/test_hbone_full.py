"""A tunnel whose socket is full: streams go on once it isn't, whatever windows say."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import h2.events

from tests.conformance.peers import CODES

WINDOW = 15 << 20
CHUNK = bytes(1 << 20)


def test_a_stream_goes_on_when_its_peer_reads_again_and_says_nothing(mesh):
    """All windows are open, so no WINDOW_UPDATE wakes it."""
    pool = mesh.pool()
    client = pool.client()
    peer = pool.accept(settings={CODES.INITIAL_WINDOW_SIZE: WINDOW})
    _, stream = pool.pair(peer, client)

    def send():
        for _ in range(WINDOW >> 20):
            client.sendall(CHUNK)

    with ThreadPoolExecutor(1) as threads:
        sent = threads.submit(send)
        got = 0
        while got < WINDOW:
            event = peer.until(
                h2.events.DataReceived, lambda event: event.stream_id == stream
            )
            got += len(event.data)
        sent.result()
