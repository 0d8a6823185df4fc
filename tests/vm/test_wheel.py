"""What is installed is whole: the wheel of the sdist, without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.support.limits import GUEST_LIMIT_S
from tests.support.pages import ROOT

pytestmark = pytest.mark.vm

SDIST = "import sys; from setuptools import build_meta as b; b.build_sdist(sys.argv[1])"


def call(*argv, **options):
    return subprocess.run(
        argv,
        check=True,
        capture_output=True,
        text=True,
        timeout=GUEST_LIMIT_S,
        **options,
    ).stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Made of a copy of what git has, so that nobody else's build is in the way."""
    tree = tmp_path_factory.mktemp("tree")
    listed = call("git", "ls-files", "-z", "-c", "-o", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, tree / name)
    out = tmp_path_factory.mktemp("sdist")
    call(sys.executable, "-c", SDIST, str(out), cwd=tree)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """A folder with the wheel's files, and a way to run its programs elsewhere."""
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
    call(*pip, "wheel", *options, "-w", str(out), str(sdist))
    (wheel,) = out.iterdir()
    there = tmp_path_factory.mktemp("installed")
    call(*pip, "install", "-q", "--no-deps", "--target", str(there), str(wheel))

    def run(*args):
        env = os.environ | {"PYTHONPATH": str(there)}
        return call(sys.executable, "-m", *args, env=env, cwd=there.parent)

    return wheel, there, run


def test_the_sdist_has_what_tests_and_documents_it(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "Makefile",
        "docs/compare.md",
        "tests/conftest.py",
        "bench/bench_tsi.py",
    ):
        assert name in names
    assert not [n for n in names if n.endswith((".so", ".o", ".pyc", "_maker"))]


def test_the_wheel_has_types_sources_and_recipes_and_is_for_any_python(installed):
    wheel, _, _ = installed
    assert "-abi3-" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        *("fastpath/py.typed", "vhost_user/py.typed", "vhost_user/_maker"),
        *("fastpath/data/guest/Makefile", "fastpath/data/guest/kernel/Kbuild"),
        *("fastpath/data/vm-images/base/recipe.yaml",),
        *(
            "fastpath/data/lib/ring/fastpath_ring.c",
            "fastpath/datapath/bpf/geneve.bpf.c",
        ),
    ):
        assert name in names


def test_the_installed_program_is_the_one_that_runs(installed):
    _, there, run = installed
    said = run("fastpath", "policy", "check", "--help")
    assert "usage: fastpath policy check" in said
    where = "import fastpath.data; print(fastpath.data.GUEST)"
    env = os.environ | {"PYTHONPATH": str(there)}
    said = call(sys.executable, "-c", where, env=env, cwd=there)
    assert said == f"{there}/fastpath/data/guest\n"


def test_it_boots_a_guest_without_a_checkout(installed):
    _, _, run = installed
    assert run("fastpath", "run", "--", "echo", "hello") == "hello\n"
    assert "base" in run("fastpath", "image", "list")


@pytest.mark.nightly
def test_it_compares_paths_without_a_checkout(installed):
    _, _, run = installed
    said = run("fastpath", "compare", "--quick", "--paths", "tsi,tsi+unix")
    assert "tsi+unix" in said


def test_its_back_end_is_there(installed):
    _, _, run = installed
    assert "--guest-cid" in run("vhost_user.vsock.cli", "--help")
