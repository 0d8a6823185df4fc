"""What runs in the microVM of node a: sends 1 MiB, ends, and hears the answer."""

from __future__ import annotations

import hashlib
import socket
import sys

data = bytes(range(256)) * 4096
with socket.create_connection((sys.argv[1], 9090)) as sock:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
    said = b""
    while more := sock.recv(4096):
        said += more
print(said.decode())
sys.exit(hashlib.sha256(data).hexdigest() not in said.decode())
