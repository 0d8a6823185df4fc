"""TSI reaches every process of a container, whatever it is linked with or runs as."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.vm.programs import MUSL_INCLUDE, MUSL_LIB, unpack_musl
from tests.vm.world import ECHO, HOST4, HOST6, HTTP, open_world

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
SOURCE = HERE / "tsi_setuid.c"
FETCH = f"wget -q -O - http://{HOST4}:{HTTP}/"
BECOME = "import os, sys; os.setuid(65534); os.execv(sys.argv[1], sys.argv[1:])"
NOBODY = f"python3 -c '{BECOME}'"
BUNDLE = "/tmp/bundle"
"""Where an engine finds a container in the guest."""
OWN_ROOT = """
mkdir -p /own
mount -t cgroup2 cgroup /sys/fs/cgroup
mount --rbind / /own
cd /own
mount --move . /
exec chroot . sh -ec "$0"
"""
"""What engines find on a machine: a cgroup, a root that pivot_root() can leave."""
SUPERVISOR = """
import fcntl, json, socket, struct, sys
RECV, SEND, CONTINUE = 0xC0502100, 0xC0182101, 1
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
client, _ = listener.accept()
state, fds, _, _ = socket.recv_fds(client, 65536, 4)
fd = fds[json.loads(state)["fds"].index("seccompFd")]
while True:
    call = bytearray(80)
    fcntl.ioctl(fd, RECV, call)
    print(struct.unpack_from("<i", call, 16)[0], flush=True)
    fcntl.ioctl(fd, SEND, call[:8] + struct.pack("<qiI", 0, 0, CONTINUE))
"""
"""Answers what an engine's seccomp filter asks; prints the numbers of the calls."""
CONNECT = 42


@pytest.fixture(scope="module")
def musl(tmp_path_factory):
    """Debian's musl, unpacked."""
    root = tmp_path_factory.mktemp("musl")
    unpack_musl(root)
    return root


@pytest.fixture(scope="module")
def programs(tmp_path_factory, musl):
    """The program in each way it can be linked: path in the guest -> file."""
    out = tmp_path_factory.mktemp("programs")
    lib, libc = musl / MUSL_LIB, musl / "lib/x86_64-linux-musl/libc.so"
    headers = f"-isystem{musl / MUSL_INCLUDE}"
    with_musl: list[str | Path] = [
        "-nostdinc",
        headers,
        "-nostdlib",
        lib / "crt1.o",
        lib / "crti.o",
    ]
    ways: dict[str, list[str | Path]] = {
        "glibc_static": ["-static", SOURCE],
        "glibc_dynamic": [SOURCE],
        "musl_static": ["-static", *with_musl, SOURCE, lib / "libc.a", lib / "crtn.o"],
        "musl_dynamic": [
            *(*with_musl, SOURCE, f"-L{libc.parent}", "-l:libc.so", lib / "crtn.o"),
            "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1",
        ],
    }
    for name, options in ways.items():
        command = ["cc", "-O2", "-w", "-fno-pie", "-no-pie", "-o", out / name, *options]
        subprocess.run(command, check=True)
    found = {f"/bin/{name}": out / name for name in ways}
    return found | {"/lib/ld-musl-x86_64.so.1": libc}


@pytest.fixture(scope="module")
def world(build_image, accelerator, programs, namespace):
    image = build_image("containers")
    switch = "/sys/module/tsi_inet/parameters/namespaces"
    with open_world(image, accelerator, programs, namespace) as there:
        assert there.sh(f"echo 1 > {switch}") == (0, "")
        yield there


LINKED = ("glibc_static", "glibc_dynamic", "musl_static", "musl_dynamic")


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("host", [HOST4, HOST6])
def test_programs_connect_however_they_are_linked(world, name, host):
    assert world.run(name, host, str(ECHO)) == (0, "0 0 ping\n")


@pytest.mark.parametrize("name", LINKED)
def test_a_setuid_program_keeps_its_right_and_connects(world, name):
    there = f"/tmp/{name}_setuid"
    script = f"cp /bin/{name} {there}; chmod 4755 {there}; {NOBODY} {there}"
    assert world.sh(f"{script} {HOST4} {ECHO}") == (0, "65534 0 ping\n")


def test_another_user_connects(world):
    assert world.sh(f"{NOBODY} /bin/glibc_dynamic {HOST4} {ECHO}") == (
        0,
        "65534 65534 ping\n",
    )


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("unshare -n", id="network-namespace"),
        pytest.param("unshare -p -f", id="pid-namespace"),
        pytest.param("unshare -p -f unshare -p -f", id="pid-namespaces"),
        pytest.param("unshare -m -n -p -u -i -f", id="all-of-a-container"),
        pytest.param("unshare -U -r", id="user-namespace"),
        pytest.param("unshare -U -r -n -p -f", id="rootless-container"),
        pytest.param("chroot /", id="chroot"),
        pytest.param("setsid", id="session"),
        pytest.param("env -i PATH=/bin:/usr/bin", id="no-environment"),
    ],
)
def test_children_connect_wherever_they_are(world, way):
    assert world.sh(f"{way} {FETCH}; exit $?") == (0, "hello\n")


LOCAL = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
there, address = server.accept()
assert address == client.getsockname()
client.sendall(b"x")
assert there.recv(1) == b"x"
print("local")
"""


def test_loopback_of_another_network_namespace_is_its_own(world):
    script = f"unshare -n sh -c 'ip link set lo up; python3 -c \"$0\"' '{LOCAL}'"
    assert world.sh(script) == (0, "local\n")


def test_a_daemon_that_outlives_the_command_connects(world):
    """A grandchild that no one waits for, after the command has ended."""
    daemon = f"sleep 1; {FETCH} > /tmp/daemon 2>&1"
    script = f"setsid sh -c '{daemon}' > /dev/null 2>&1 < /dev/null & exit 3"
    assert world.sh(script)[0] == 3
    script = "until [ -s /tmp/daemon ]; do sleep 0.1; done"
    assert world.sh(f"{script}; cat /tmp/daemon") == (0, "hello\n")


def in_container(world, engine, namespaces, **linux):
    """Have an engine fetch from the host in a container; return as `World.sh` does."""
    kinds = ["pid", "mount", "ipc", "uts", *namespaces]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": FETCH.split(),
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in kinds], **linux},
    }
    put = f"""
        mkdir -p {BUNDLE}/rootfs/bin {BUNDLE}/rootfs/proc
        cp /bin/busybox {BUNDLE}/rootfs/bin/wget
        cat > {BUNDLE}/config.json
    """
    assert world.sh(put, stdin=json.dumps(config).encode()) == (0, "")
    run = f"cd {BUNDLE}; {engine} run fetching"
    return world.run("unshare", "-m", "sh", "-ec", OWN_ROOT, run)


@pytest.mark.parametrize("engine", ["runc", "crun"])
@pytest.mark.parametrize("namespaces", [[], ["network"]], ids=["host", "own"])
def test_a_container_of_an_engines_connects(world, engine, namespaces):
    assert in_container(world, engine, namespaces) == (0, "hello\n")


@pytest.mark.parametrize("engine", ["runc", "crun"])
def test_a_container_connects_beside_its_engines_own_notifications(world, engine):
    """A seccomp listener, of which a task can have one: TSI has none."""
    path, seen = f"/run/{engine}.sock", f"/tmp/{engine}.seen"
    begin = f"""
        python3 -c "$0" {path} > {seen} 2>&1 & echo $! > {seen}.pid
        until [ -S {path} ]; do sleep 0.1; done
    """
    assert world.run("sh", "-c", begin, SUPERVISOR) == (0, "")
    asked = {"names": ["connect"], "action": "SCMP_ACT_NOTIFY"}
    seccomp = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": path,
        "syscalls": [asked],
    }
    assert in_container(world, engine, [], seccomp=seccomp) == (0, "hello\n")
    assert world.sh(f"kill $(cat {seen}.pid); cat {seen}") == (0, f"{CONNECT}\n")


@pytest.mark.parametrize("network", ["--share-net", "--unshare-net"])
def test_a_sandbox_of_bubblewraps_connects(world, network):
    sandbox = f"bwrap --unshare-all {network} --ro-bind / / --proc /proc --dev /dev"
    command = ["unshare", "-m", "sh", "-ec", OWN_ROOT, f"{sandbox} {FETCH}"]
    assert world.run(*command) == (0, "hello\n")
