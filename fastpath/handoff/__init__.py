"""Hand-offs: how a sandbox's connections get to a proxy that is not this process.

`pod`: they are made in the network namespace of the sandbox's pod, where the rules that
redirect any pod's connections wait for them. `namespace` starts the process in there,
which is C (vhost_user/native/maker), and `control` asks it for sockets.
"""
