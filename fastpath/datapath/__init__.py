"""The standard paths from a sandbox to ztunnel, built in namespaces of their own.

The fast path is compared with what a mesh does today, so each standard path is
built as its project builds it and left as the kernel runs it: nothing here
makes one slower. One module a path; each is a context manager that offers the
guest's tap and addresses, and the namespaces for ztunnel and a server behind it.

    netns             network namespaces held by descriptors
    links             devices, addresses, routes, rules, filters: over netlink
    rules             iptables rules
    features          kernel features, and how to get a missing one
    bpf               compiles and loads BPF programs
    geneve            tunnel devices, the kernel's or our tc-eBPF ones
    ambient_geneve    Istio ambient 1.18 to 1.20: ipset, policy routing, Geneve

Namespaces, devices and rules all go with the process that made them. Only
`links` uses pyroute2; only `rules` runs iptables.
"""

from __future__ import annotations
