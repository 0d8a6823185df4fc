"""`fastpath image list` tells what is built without building it."""

from __future__ import annotations

import json

import pytest

from fastpath.commands import image as command
from fastpath.image import images
from fastpath.image.images import Image


@pytest.fixture(autouse=True)
def one_is_built(monkeypatch, tmp_path):
    for name, size in ("kernel", 1_000_000), ("initramfs", 2_500_000):
        (tmp_path / name).write_bytes(bytes(size))
    built = Image("base", tmp_path / "kernel", tmp_path / "initramfs", "6.1.0-9")
    monkeypatch.setattr(command, "_known", lambda: ["apps", "base"])
    monkeypatch.setattr(images, "cached", {"apps": None, "base": built}.get)
    return built


def test_the_list_has_kernels_and_sizes(capsys):
    assert command.show(None, as_json=False) == 0
    out = capsys.readouterr().out
    assert out == "apps  not built\nbase     3.5 MB  Linux 6.1.0-9\n"


def test_for_programs_it_is_json(capsys, one_is_built):
    assert command.show("base", as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "base",
            "kernel_release": "6.1.0-9",
            "bytes": 3_500_000,
            "kernel": f"{one_is_built.kernel}",
            "initramfs": f"{one_is_built.initramfs}",
        }
    ]
