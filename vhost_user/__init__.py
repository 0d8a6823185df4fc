"""A vhost-user backend: any device's protocol side in Python, its rings in C.

`message` and `session` speak the protocol without I/O, `backend` puts them on a
unix socket, `engine` owns the C engine thread, `vsock/` is the virtio-vsock
device. `frontend` and `driver` are the other side: a VMM and a guest in user
space, for tests and benchmarks.
"""

from __future__ import annotations
