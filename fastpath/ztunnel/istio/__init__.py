"""Istio's view of the mesh: its local file as data, and what follows from it.

    model       the file: workloads, services, policies
    state       all of it with its indexes; immutable
    services    which endpoint of a service
    outbound    where a workload's connection goes
    inbound     what a connection to a workload is answered
    rbac        which policies hold, and what they say

No I/O, no time, no other state: the same arguments and the same random numbers give the
same answer.
"""
