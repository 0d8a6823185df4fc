"""Certificates of a service mesh: who issues them, who keeps them fresh, who checks.

    material      a workload's key, its certificate chain and the roots it trusts
    signing       certificate requests: made, and judged by the CA
    authority     the embedded CA, a root in a directory
    tokens        whom the embedded CA knows, a file
    issuing       what it answers to a request
    wire, service, client   Istio's IstioCertificateService: messages, server, caller
    sources       where else a workload's material comes from
    issued        material as those have it who only use it, without the extra
    fetcher, fetching   sources in another process, which is there only meanwhile
    rotation      keeps it fresh
    feed          the same with revocation lists, as PEM, for a TLS stack in C
    contexts      as TLS contexts of Python's, and as PEM files
    revocation, peers       revocation lists; whose certificate a peer has shown

Needs the extra `mesh` (cryptography, grpcio, protobuf): import it where it is used.
"""

from __future__ import annotations

import os

# gRPC reads it when it is imported; else whoever connects fills our stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
