"""Hand-offs: how a sandbox's connections get to a proxy that is not this process.

`pod`: they are made in the network namespace of the sandbox's pod, where the rules that
redirect any pod's connections wait for them. `namespace` is our side of the process in
there, `maker` that process.
"""
