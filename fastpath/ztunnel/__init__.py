"""The ztunnel process: identities, routing, policy and observation on the host.

`process.Ztunnel` puts the parts together; `serving.serve` is the command. The
parts know nothing of each other beyond what their arguments say: `config`
(the file), `identity` (who asks), `routing` (where to), `outbound` (one
connection's life), `access_log`, `metrics` and `admin` (what is left of it).
"""
