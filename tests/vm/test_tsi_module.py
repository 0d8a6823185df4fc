"""Sockets of tsi_inet: TCP to the program, vsock underneath, and no agent at all.

The cases of docs/tsi-compat.md, as in test_tsi_differential.py.
"""

from __future__ import annotations

import subprocess

import pytest

from fastpath.image import images
from tests.vm import tsi_compat
from tests.vm.programs import compile_c
from tests.vm.world import HOST4, HOST6, POD4, open_world

pytestmark = pytest.mark.vm

PORT = "7100"
CASES = {case.name: case for section in tsi_compat.load() for case in section.cases}
OWN = "own"
KERNELS = [
    pytest.param("base", id="linux-6.1"),
    *(
        pytest.param(name, id=name, marks=pytest.mark.nightly)
        for name in ("linux-6.12", "linux-7", "linux-sid", OWN)
    ),
]
SWITCH = "/sys/module/tsi_inet/parameters/enabled"
NATIVE = f"""
echo 0 > {SWITCH}
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo
ip route add unreachable 198.51.100.0/24
tsi_trace serve {PORT} {HOST4} > /tmp/serving &
until [ -s /tmp/serving ]; do sleep 0.1; done
tsi_trace {HOST4} {HOST6} {PORT} {" ".join(CASES)}
kill $!
ip addr del {HOST4}/32 dev lo
ip addr del {HOST6}/128 dev lo
echo 1 > {SWITCH}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("trace") / "tsi_trace"
    return compile_c(out, *sorted(tsi_compat.TRACE.glob("*.c")))


@pytest.fixture(scope="module", params=KERNELS)
def image(request, build_image):
    """Of a kernel: Debian's with the module, or our own with TSI in it."""
    if request.param == OWN:
        return images.build("base", own_kernel=())
    return build_image(request.param)


@pytest.fixture(scope="module")
def world(image, accelerator, program, namespace):
    files = {"/bin/tsi_trace": program}
    with open_world(image, accelerator, files, namespace) as there:
        yield there


@pytest.fixture(scope="module")
def native(world):
    status, said = world.sh(NATIVE)
    assert status == 0, said
    return tsi_compat.parse(said)


@pytest.fixture(scope="module")
def tsi(world, native, program, namespace):
    command = namespace.command([str(program), "serve", PORT, POD4])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n"
            status, said = world.run(
                *("tsi_trace", HOST4, HOST6, PORT, *CASES), env={"DEVICE": "tsi0"}
            )
            assert status == 0, said
            return tsi_compat.parse(said)
        finally:
            server.kill()


@pytest.mark.parametrize("name", CASES)
def test_a_socket_is_like_tcps(native, tsi, name, image, kernel_cases):
    faults = tsi_compat.faults(CASES[name].module, native[name], tsi[name])
    kernel_cases.setdefault(image.kernel_release, []).append(not faults)
    assert faults == []
