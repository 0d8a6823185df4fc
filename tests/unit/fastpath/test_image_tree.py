"""What becomes of a recipe: modules in load order, merged paths, declared files."""

from __future__ import annotations

import io
import lzma
import subprocess
import sys
import tarfile

import pytest

from fastpath.errors import FastpathError
from fastpath.image import bytecode, cpio, modules, packages
from fastpath.image.recipe import File, Recipe
from fastpath.image.tree import Tree, merged, special

RELEASE = "9.9-test"


def module(*depends):
    return b"\x7fELF\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def make_deb(path, files):
    """A package with `files`, made by Debian's own tool."""
    root = path.parent / path.stem
    (root / "DEBIAN").mkdir(parents=True)
    control = "Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m\n"
    (root / "DEBIAN" / "control").write_text(control + "Description: d\n")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture
def kernel(tmp_path):
    base = f"lib/modules/{RELEASE}"
    return make_deb(
        tmp_path / "linux-image-test.deb",
        {
            f"boot/vmlinuz-{RELEASE}": b"kernel",
            f"{base}/kernel/a/first-one.ko": module("second"),
            f"{base}/kernel/b/second.ko.xz": lzma.compress(module("in_kernel")),
            f"{base}/modules.builtin": b"kernel/c/in-kernel.ko\n",
        },
    )


def recipe(tmp_path, **changes):
    return Recipe(name="x", source=tmp_path / "recipe.yaml", **changes)


def test_modules_come_after_what_they_need():
    files = {"a": module("b", "c"), "b": module("c"), "c": module(), "d": module()}
    assert modules.in_load_order(["a"], files, ()) == ["c", "b", "a"]


def test_a_module_in_the_kernel_itself_is_left_out():
    assert modules.in_load_order(["a"], {"a": module("b")}, ["b"]) == ["a"]


def test_a_missing_module_is_named():
    with pytest.raises(FastpathError, match="kernel module nope"):
        modules.in_load_order(["nope"], {}, ())


def test_the_image_lists_its_modules_for_init(tmp_path, kernel):
    tree = Tree(recipe(tmp_path, modules=("first_one",)))
    tree.add_package(kernel)
    assert tree.finish(tmp_path) == RELEASE
    directory = f"usr/lib/modules/{RELEASE}"
    assert tree.kernel == b"kernel"
    assert tree.entries[f"{directory}/order"].data == b"second.ko\nfirst_one.ko\n"
    assert tree.entries[f"{directory}/second.ko"].data == module("in_kernel")


def test_modules_of_ours_come_last(tmp_path, kernel):
    tree = Tree(recipe(tmp_path, modules=("first_one",), own_modules=("ours",)))
    tree.add_package(kernel)
    tree.own_modules = {"ours": module("first_one")}
    tree.finish(tmp_path)
    directory = f"usr/lib/modules/{RELEASE}"
    order = tree.entries[f"{directory}/order"].data
    assert order == b"second.ko\nfirst_one.ko\nours.ko\n"
    assert tree.entries[f"{directory}/ours.ko"].data == module("first_one")


def test_a_kernel_may_come_in_several_packages(tmp_path):
    """As Debian has it since 6.19: the first one has nothing but its dependencies."""
    base = f"usr/lib/modules/{RELEASE}"
    parts = {
        "linux-image-x": {"usr/share/doc/linux-image-x/changelog": b"text"},
        "linux-binary-x": {f"{base}/vmlinuz": b"kernel"},
        "linux-modules-x": {f"{base}/kernel/first_one.ko": module()},
        "linux-base-x": {f"{base}/modules.builtin": b"kernel/b.ko\n"},
    }
    tree = Tree(recipe(tmp_path, modules=("first_one", "b")))
    for name, files in parts.items():
        tree.add_package(make_deb(tmp_path / f"{name}_1_amd64.deb", files))
    assert tree.finish(tmp_path) == RELEASE
    assert tree.kernel == b"kernel"
    assert tree.entries[f"{base}/order"].data == b"first_one.ko\n"


def test_a_user_mode_kernel_is_a_kernel(tmp_path):
    base = "usr/lib/uml/modules/7.2.7"
    files = {
        "usr/bin/linux.uml": b"ELF/lib64/ld-linux-x86-64.so.2\0code",
        f"{base}/kernel/a.ko": module(),
        f"{base}/modules.builtin": b"",
    }
    tree = Tree(recipe(tmp_path, modules=("a",)))
    tree.add_package(make_deb(tmp_path / "user-mode-linux_7.2um1_amd64.deb", files))
    assert tree.finish(tmp_path) == "7.2.7"
    assert tree.kernel == b"ELFld.so".ljust(31, b"\0") + b"code"
    assert tree.entries["usr/lib/modules/7.2.7/order"].data == b"a.ko\n"


def test_a_recipe_without_a_kernel_in_its_package_is_refused(tmp_path):
    with pytest.raises(FastpathError, match="brings 0 kernels"):
        Tree(recipe(tmp_path)).finish(tmp_path)


@pytest.mark.parametrize(
    ("path", "where"),
    [("bin/sh", "usr/bin/sh"), ("usr/bin/sh", "usr/bin/sh"), ("etc/a", "etc/a")],
)
def test_paths_are_merged_into_usr(path, where):
    assert merged(path) == where


def test_files_are_joined_before_their_parts_are_excluded(tmp_path, kernel):
    parts = make_deb(tmp_path / "p.deb", {"share/b": b"2", "share/a": b"1"})
    tree = Tree(
        recipe(
            tmp_path,
            files=(File(path="/etc/all", join="/share/*"),),
            exclude=("/share/*",),
        )
    )
    tree.add_package(kernel)
    tree.add_package(parts)
    tree.finish(tmp_path)
    assert tree.entries["etc/all"].data == b"12"
    assert "share/a" not in tree.entries


def test_a_join_of_nothing_is_refused(tmp_path):
    tree = Tree(recipe(tmp_path, files=(File(path="/etc/all", join="/no/*"),)))
    with pytest.raises(FastpathError, match="no file matches"):
        tree.finish(tmp_path)


def test_special_directories_keep_their_modes_when_files_are_added(tmp_path):
    what = recipe(tmp_path, files=(File(path="/root", directory=True, mode=0o700),))
    assert {"root", "tmp", "bin"} <= special(what)


def test_a_hard_link_in_a_package_becomes_a_file_of_its_own():
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        first = tarfile.TarInfo("./a")
        first.size = 3
        tar.addfile(first, io.BytesIO(b"xyz"))
        second = tarfile.TarInfo("./b")
        second.type, second.linkname = tarfile.LNKTYPE, "./a"
        tar.addfile(second)
    data.seek(0)
    with tarfile.open(fileobj=data) as tar:
        entries = dict(packages._entries(tar))
    assert entries["b"].data == b"xyz"


def test_a_damaged_package_is_named(tmp_path):
    deb = tmp_path / "broken.deb"
    deb.write_bytes(b"!<arch>\n")
    with pytest.raises(FastpathError, match=r"broken\.deb"):
        list(packages.read(deb))


def test_python_finds_the_bytecode_and_does_not_look_at_the_source(tmp_path):
    library = bytecode.LIBRARY
    source = {f"{library}m.py": cpio.file(b"print('compiled')")}
    ((path, entry),) = bytecode.of(source)
    assert path.startswith(f"{library}__pycache__/m.")
    cached = tmp_path / path.removeprefix(library)
    cached.parent.mkdir()
    cached.write_bytes(entry.data)
    (tmp_path / "m.py").write_text("print('from source')")
    done = subprocess.run(
        [sys.executable, "-c", "import m"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"compiled\n"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        pytest.param("usr/lib/python0.1/m.py", b"x = 1", id="other-version"),
        pytest.param(f"{bytecode.LIBRARY}bad.py", b"x = = 1", id="not-python"),
        pytest.param(f"{bytecode.LIBRARY}data.txt", b"x = 1", id="other-file"),
    ],
)
def test_what_is_not_our_pythons_source_has_no_bytecode(path, data):
    assert list(bytecode.of({path: cpio.file(data)})) == []
