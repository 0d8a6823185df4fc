"""Runs in a guest, whose kernel has vsock_loopback: the back-end with --forward-cid 1.

The guest of that back-end is the driver in user space; this machine is its host.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path

from vhost_user.driver import TIMEOUT_S
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Shutdown, Type

SOCKET = Path("/tmp/vhost")
LOCAL, ECHO, CLOSED, LISTENING, REFUSING = 1, 9000, 9100, 9001, 9002
DATA = bytes(range(256)) * 2000


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def echo(listener):
    while True:
        client, _ = listener.accept()
        with client:
            while data := client.recv(65536):
                client.sendall(data)


def guest_to_host(guest):
    conn = guest.connect(ECHO)
    got = b""
    sent = 0
    while len(got) < len(DATA):
        room = min(conn.credit, 16384, len(DATA) - sent, 131072 - (sent - len(got)))
        if room > 0:
            conn.say(Op.RW, DATA[sent : sent + room])
            sent += room
        else:
            got += conn.expect(Op.RW, Op.CREDIT_UPDATE).payload
    assert got == DATA
    conn.shutdown(Shutdown.SEND)
    while (packet := conn.receive()).op == Op.CREDIT_UPDATE:
        pass
    assert packet.op == Op.SHUTDOWN
    guest.request(CLOSED).expect(Op.RST)
    guest.request(ECHO, kind=Type.SEQPACKET).expect(Op.RST)


def host_to_guest(guest):
    with socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(TIMEOUT_S)
        client.connect((LOCAL, LISTENING))
        conn = guest.accept()
        assert (conn.cid, conn.guest_port) == (2, LISTENING)
        conn.send(b"from the guest")
        assert client.recv(100) == b"from the guest"
        client.sendall(DATA[:100000])
        assert conn.receive_bytes(100000) == DATA[:100000]
        client.shutdown(socket.SHUT_WR)
        while (packet := conn.receive()).op == Op.CREDIT_UPDATE:
            pass
        assert packet.header.flags == Shutdown.SEND
        conn.send(b"bye")
        assert client.recv(100) == b"bye"
    with socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(TIMEOUT_S)
        client.connect((LOCAL, REFUSING))
        header = guest.receive().header
        assert (header.op, header.dst_port) == (Op.REQUEST, REFUSING)
        guest.send(guest.header(Op.RST, REFUSING, header.src_port))
        with contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""


def main():
    options = ["--socket", str(SOCKET), "--forward-cid", "1"]
    options += ["--forward-listen", f"{LISTENING}+{REFUSING}"]
    backend = subprocess.Popen(
        [sys.executable, "-m", "vhost_user.vsock.cli", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, ECHO))
    listener.listen()
    threading.Thread(target=echo, args=(listener,), daemon=True).start()
    try:
        assert backend.stderr is not None
        say(backend.stderr.readline().strip())
        with VsockGuest(SOCKET) as guest:
            guest_to_host(guest)
            say("guest to host")
            host_to_guest(guest)
            say("host to guest")
    finally:
        backend.terminate()
    say(f"status {backend.wait(TIMEOUT_S)}")


main()
