"""TSI, the host's side: the agent's protocol, egress policy, the service.

Spec: docs/tsi-protocol.md.
"""
