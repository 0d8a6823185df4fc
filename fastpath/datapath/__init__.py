"""The standard paths from a sandbox to ztunnel, built in namespaces of their own.

The fast path is compared with what a mesh does today, so each standard path is
built as its project builds it and left as the kernel runs it: nothing here
makes one slower. A path is data, one module each; one engine builds all of them.

    netns             network namespaces held by descriptors
    links             devices, addresses, routes, rules, filters: over netlink
    rules             iptables rules
    features          kernel features, and how to get a missing one
    bpf               compiles and loads BPF programs
    geneve            tunnel devices, the kernel's or our tc-eBPF ones
    tunnels           those of other kinds
    steps             what a path is built of: a command each, and how it is done
    attach            what a guest can be attached to
    declared          a path as data
    build             builds one, in namespaces without names or with them
    wires, plan       what paths have in common: veth pairs, Kata's tcfilter
    inpod_l3forwarding  Istio's in-pod rules, Kata's l3forwarding: what there is today
    ambient_geneve    Istio ambient 1.18 to 1.20: ipset, policy routing, Geneve
    ambient_ebpf      its other mode: redirects by BPF programs
    sidecar           Istio's older mode: rules and a proxy in the guest
    plain, macvtap    no mesh, by Kata's two older models
    passt             no mesh, no tap
    catalogue         all of them by name
    show, probe       `fastpath path`: what a path is, and whether it works
    standin           a guest without a VM, and who listens, for probe and tests
    pods, inpod       pods' namespaces for hand-offs, and Istio's rules in them

Namespaces, devices and rules all go with the process that made them, but those that
`build.up` gave names. Only `links` uses pyroute2; only `rules` and `inpod` run
iptables.
"""

from __future__ import annotations
