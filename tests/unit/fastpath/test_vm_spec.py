"""QEMU's command line: a pure function of what is to be booted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastpath.image.images import Image
from fastpath.vm.spec import (
    GENERIC_VSOCK,
    Accelerator,
    Tap,
    UserNet,
    VhostUserNet,
    VmSpec,
    argv,
)
from tests.support import uml

IMAGE = Image("base", Path("/i/kernel"), Path("/i/initramfs"), "6.1.0")
SPEC = VmSpec(
    image=IMAGE,
    accel=Accelerator("tcg", "asked for", 2_600_000),
    vsock_socket=Path("/t/vu"),
    console=Path("/t/console"),
    qmp=Path("/t/qmp"),
)


def option(line, name):
    """All values of an option."""
    return [line[i + 1] for i, each in enumerate(line) if each == name]


def test_memory_is_shared_with_the_backend():
    line = argv(replace(SPEC, memory_mib=300))
    assert option(line, "-m") == ["300M"]
    assert option(line, "-object") == ["memory-backend-memfd,id=ram,size=300M,share=on"]
    assert option(line, "-M")[0].endswith("memory-backend=ram")


def test_the_vsock_device_is_on_the_backends_socket():
    line = argv(SPEC)
    assert "socket,id=vsock,path=/t/vu" in option(line, "-chardev")
    assert option(line, "-device") == ["vhost-user-vsock-device,chardev=vsock"]


def test_a_tap_is_passed_by_its_number():
    line = argv(replace(SPEC, net=Tap(7, "02:00:00:00:00:01")))
    assert option(line, "-netdev") == ["tap,id=net,fd=7"]
    assert option(line, "-device")[1].endswith("mac=02:00:00:00:00:01")


def test_a_vhost_user_network_is_at_its_socket():
    line = argv(replace(SPEC, net=VhostUserNet(Path("/t/a,b"), "02:00:00:00:00:01")))
    assert "socket,id=net,path=/t/a,,b" in option(line, "-chardev")
    assert option(line, "-netdev") == ["vhost-user,id=net,chardev=net"]
    assert option(line, "-device")[1].endswith("netdev=net,mac=02:00:00:00:00:01")


@pytest.mark.parametrize(
    ("machine", "device", "name"),
    [
        ("microvm", "vhost-user-vsock", "vhost-user-vsock-device,chardev=vsock"),
        ("microvm-pci", "vhost-user-vsock", "vhost-user-vsock-pci,chardev=vsock"),
        ("q35", "vhost-user-vsock,packed=on", "vhost-user-vsock-pci,chardev=vsock,"),
        ("microvm", GENERIC_VSOCK, "vhost-user-test-device,chardev=vsock,virtio-id="),
        ("q35", GENERIC_VSOCK, "vhost-user-test-device-pci,chardev=vsock,virtio-id="),
    ],
)
def test_a_device_is_on_the_machines_bus(machine, device, name):
    line = argv(replace(SPEC, machine=machine, vsock_device=device))
    assert option(line, "-M")[0].startswith(machine.partition("-")[0])
    assert option(line, "-device")[0].startswith(name)


def test_an_entropy_device_has_a_socket_of_its_own():
    line = argv(replace(SPEC, rng_socket=Path("/t/rng")))
    assert "socket,id=rng,path=/t/rng" in option(line, "-chardev")
    assert option(line, "-device")[1] == "vhost-user-rng,chardev=rng"


def test_a_port_of_the_hosts_loopback_leads_into_the_guest():
    line = argv(replace(SPEC, net=UserNet((4000, 22))))
    assert option(line, "-netdev") == ["user,id=net,hostfwd=tcp:127.0.0.1:4000-:22"]
    assert option(argv(replace(SPEC, net=UserNet())), "-netdev") == ["user,id=net"]


def test_memory_can_be_added_up_to_a_limit():
    line = argv(replace(SPEC, machine="q35", memory_mib=300, hotplug_mib=200))
    assert option(line, "-m") == ["300M,slots=4,maxmem=500M"]


def test_a_user_mode_kernel_is_its_own_front_end():
    spec = uml.UmlSpec(
        image=IMAGE,
        start=Path("/p/start"),
        vsock_socket=Path("/t/vu"),
        console=Path("/t/console"),
    )
    start, kernel, *parameters = uml.argv(spec)
    assert (start, kernel) == ("/p/start", "/i/kernel")
    assert "virtio_uml.device=/t/vu:19:1" in parameters


def test_a_panic_ends_qemu():
    line = argv(SPEC)
    assert "-no-reboot" in line
    assert {"panic=-1", "reboot=t"} <= set(option(line, "-append")[0].split())


def test_under_tcg_the_guest_is_told_its_tsc():
    parameters = option(argv(SPEC), "-append")[0].split()
    assert {"clocksource=tsc", "tsc_early_khz=2600000"} <= set(parameters)


def test_under_kvm_the_guest_finds_its_clock_itself():
    line = argv(replace(SPEC, accel=Accelerator("kvm", "asked for")))
    assert "tsc" not in option(line, "-append")[0]
    assert option(line, "-cpu")[0].startswith("host")


def test_own_kernel_and_parameters_come_last():
    line = argv(replace(SPEC, kernel=Path("/my/bzImage"), append="a=1 b"))
    assert option(line, "-kernel") == ["/my/bzImage"]
    assert option(line, "-append")[0].endswith(" a=1 b")


def test_a_comma_in_a_path_is_escaped():
    line = argv(replace(SPEC, console=Path("/t/a,b")))
    assert "file,id=console,path=/t/a,,b" in option(line, "-chardev")


@pytest.mark.parametrize(
    "less",
    [
        pytest.param(replace(SPEC, vsock_socket=None), id="vsock"),
        pytest.param(replace(SPEC, qmp=None), id="qmp"),
    ],
)
def test_what_is_none_is_left_out(less):
    assert len(argv(less)) == len(argv(SPEC)) - 4
