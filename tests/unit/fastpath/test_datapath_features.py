"""A missing kernel feature names its module and the command that brings it."""

from __future__ import annotations

import errno
import os

import pytest
from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped]
    NetlinkError,
)

from fastpath.datapath import features, geneve, links
from fastpath.errors import FastpathError


class Kernel:
    """A netlink socket to a kernel that answers every request with an error."""

    def __init__(self, code):
        self.code = code

    def link(self, *args, **kwargs):
        raise NetlinkError(self.code)

    def close(self):
        pass


@pytest.fixture
def kernel(monkeypatch):
    def make(code):
        monkeypatch.setattr(links, "IPRoute", lambda: Kernel(code))
        return links.Links()

    return make


def test_an_unknown_kind_of_device_names_the_module(kernel):
    with (
        kernel(errno.EOPNOTSUPP) as ip,
        pytest.raises(FastpathError, match=r"lacks ifb devices: .*module ifb"),
    ):
        ip.ifb("ifb")


def test_another_refusal_keeps_its_errno(kernel):
    with kernel(errno.EPERM) as ip, pytest.raises(PermissionError):
        ip.ifb("ifb")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where the running kernel's modules are said to be listed."""
    monkeypatch.setattr(features, "_MODULES", tmp_path)
    index = tmp_path / os.uname().release / "modules.dep"
    index.parent.mkdir()
    return index


def test_a_module_that_is_there_is_loaded(modules):
    modules.write_text("kernel/drivers/net/geneve.ko.xz: kernel/net/udp_tunnel.ko.xz\n")
    assert features.GENEVE.hint() == "sudo modprobe -a geneve"


def test_a_module_that_is_not_there_needs_another_package(modules):
    modules.write_text("kernel/net/sched/cls_u32.ko:\n")
    assert "linux-image-amd64" in features.TCFILTER.hint()


def test_a_kernel_without_geneve_gets_the_bpf_tunnel(monkeypatch):
    def lacks(_):
        raise features.GENEVE.missing("Operation not supported")

    monkeypatch.setattr(geneve, "Namespace", lacks_run(lacks))
    assert geneve.choose("auto") == "bpf"
    with pytest.raises(FastpathError, match="lacks Geneve tunnels"):
        geneve.choose("kernel")


def lacks_run(run):
    class Scratch:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def run(self, function):
            return run(function)

    return Scratch
