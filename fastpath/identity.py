"""SPIFFE identities in Istio's form.

Spec: SPIFFE ID, sections 2.1 "Trust Domain" and 2.2 "Path"; Istio's form of the
path, `/ns/<namespace>/sa/<service account>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

TRUST_DOMAIN = r"[a-z0-9._-]{1,255}"
NAMESPACE = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
SERVICE_ACCOUNT = r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_SPIFFE = re.compile(
    rf"spiffe://({TRUST_DOMAIN})/ns/({NAMESPACE})/sa/({SERVICE_ACCOUNT})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Identity:
    """`spiffe://<trust domain>/ns/<namespace>/sa/<service account>`."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the URI form.

        Raises:
            ValueError: it is none, or not of Istio's form.
        """
        match = _SPIFFE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT, not {text!r}"
            )
        return cls(match[1], match[2], match[3])

    def __str__(self) -> str:
        return (
            f"spiffe://{self.trust_domain}"
            f"/ns/{self.namespace}/sa/{self.service_account}"
        )
