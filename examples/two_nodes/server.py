"""What runs in the microVM of node b: HTTP on 8080, and a count of bytes on 9090."""

from __future__ import annotations

import hashlib
import http.server
import socketserver
import threading


class Hello(http.server.BaseHTTPRequestHandler):
    """Says who asks."""

    def do_GET(self) -> None:
        """Answer whatever the path is."""
        body = b"hello %s, this is node b\n" % self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class Count(socketserver.StreamRequestHandler):
    """Reads until its client ends, and answers then: half-close."""

    def handle(self) -> None:
        """Serve one client."""
        data = self.rfile.read()
        said = f"{len(data)} bytes of {self.client_address[0]}, sha256 "
        self.wfile.write(said.encode() + hashlib.sha256(data).hexdigest().encode())


hello = http.server.ThreadingHTTPServer(("", 8080), Hello)
threading.Thread(target=hello.serve_forever).start()
count = socketserver.ThreadingTCPServer(("", 9090), Count)
print("ready", flush=True)
count.serve_forever()
