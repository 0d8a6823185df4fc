"""MicroVM images from the recipes in vm-images/, built once and cached.

The cache, $XDG_CACHE_HOME/vsock-fastpath (or ~/.cache/vsock-fastpath):

    apt/SUITE/              apt's lists and state
    debs/                   packages
    modules/CONTENT/        kernel modules of ours
    kernels/                kernels of our own (`ownkernel.py`)
    images/NAME-CONTENT/    kernel, initramfs, image.json, our programs and modules
    images/NAME.INPUTS      text: the folder that these inputs gave last

INPUTS is a hash of the recipe, the guest programs' sources and the builder;
CONTENT is one of INPUTS and the packages' versions. So an image whose inputs did
not change is found without asking the package archive, and one whose packages
did not change either is not built again.

The initramfs is not compressed: under tcg the guest unpacks 5 MB (base) or 54 MB
(apps) faster than it decompresses them. Until init's first line, best of four:
base raw 1.26 s, gzip 1.34, zstd 1.37, lz4 1.30; apps 1.58, 2.06, 2.12, 1.63.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastpath import files
from fastpath.data import GUEST
from fastpath.errors import FastpathError
from fastpath.image import cpio, kbuild, ownkernel, packages, recipe, sources
from fastpath.image.tree import KERNELS, Tree, merged, special

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fastpath.image.recipe import Recipe

    Progress = Callable[[str, int, int], None]

__all__ = ["Image", "build", "cache_directory", "program", "with_files"]

_T = TypeVar("_T")

HASH_LEN = 16
"""Hexadecimal digits of a hash in a name."""
HASH_PATTERN = "[0-9a-f]" * HASH_LEN
STEPS = 100
BEGUN = ".new-"
"""How a folder's name begins in the cache until it is whole."""
KEPT = 3
"""Builds of one image that stay in the cache, those that were used last."""
IN_USE_S = 2 * 3600
"""A build that was asked for within this time stays, too: a VM may be about to boot it
out of another checkout."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: what `build` returns."""

    name: str
    kernel: Path
    initramfs: Path
    kernel_release: str


def cache_directory() -> Path:
    """Where images, packages and answers are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vsock-fastpath"


def build(
    name: str,
    *,
    refresh: bool = False,
    own_kernel: Sequence[Path] | None = None,
    progress: Progress | None = None,
) -> Image:
    """Build image `name`, or return the cached one when no input changed.

    Blocks; call it through `asyncio.to_thread` from a coroutine. Concurrent
    calls, also of other processes, wait for each other.

    Args:
        name: a folder of vm-images/.
        refresh: ask the package archive for newer versions first. Without it
            an image whose recipe and sources did not change needs no network.
        own_kernel: fragments of a configuration, for a kernel of our own (see
            `ownkernel.py`) in place of Debian's; none is fine, too.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        FastpathError: a recipe, package or tool is missing or broken.
    """
    what = recipe.load(name)
    tell = progress or (lambda _what, _done, _total: None)
    try:
        builder = _Builder(what, tell, own_kernel)
        if not refresh and (image := builder.cached()):
            return image
        tell("waiting for another build", 0, STEPS)
        with locked(cache_directory() / "lock"):
            if not refresh and (image := builder.cached()):
                return image
            if own_kernel is None:
                return builder.build(refresh=refresh)
            source = builder.source(refresh=refresh)
        kernels = cache_directory() / "kernels"
        with locked(kernels / "lock"):  # for long: others may build images
            tell(f"compiling {source.stem}", 30, STEPS)
            kernel = ownkernel.build(GUEST, source, own_kernel, kernels)
        with locked(cache_directory() / "lock"):
            return builder.build(refresh=False, own_kernel=kernel)
    except OSError as error:
        raise FastpathError(
            f"image {name}",
            str(error),
            "free some space, or set XDG_CACHE_HOME to a directory you can write to",
        ) from error


def cached(name: str) -> Image | None:
    """Image `name` as `fastpath run` would boot it now, or None: it is to be built.

    Raises:
        FastpathError: there is no such recipe, or it is broken.
    """
    return _Builder(recipe.load(name), lambda _what, _done, _total: None, None).cached()


def program(name: str) -> Path:
    """A guest program of guest/, as the newest "base" image has it, on the host.

    Raises:
        FastpathError: as `build`.
    """
    return build("base").initramfs.parent / name


def with_files(image: Image, added: Mapping[str, Path], out: Path) -> Image:
    """`image` with host files added, as a new initramfs at `out`.

    Args:
        image: left as it is.
        added: absolute guest path -> host file or directory.
        out: initramfs to write; the caller removes it.

    Raises:
        FastpathError: a host file cannot be read, or a guest path is relative.
    """
    entries: dict[str, cpio.Entry] = {}
    for guest_path, source in added.items():
        if not guest_path.startswith("/") or ".." in guest_path.split("/"):
            raise FastpathError(
                f"file {guest_path}",
                "not an absolute path in the guest",
                "--file SRC:/DST",
            )
        try:
            entries.update(_host_files(merged(guest_path.strip("/")), source))
        except OSError as error:
            raise FastpathError(
                f"file {source}", error.strerror or str(error), f"ls -l {source}"
            ) from error
    _append(image, entries, out)
    return replace(image, initramfs=out)


def _append(image: Image, entries: Mapping[str, cpio.Entry], out: Path) -> None:
    there = special(recipe.load(image.name))
    try:
        shutil.copyfile(image.initramfs, out)
        with out.open("ab") as archive:
            archive.write(bytes(-archive.tell() % cpio.ALIGN))
            cpio.write(entries, archive, existing=there)
    except cpio.SourceError as error:
        raise FastpathError(
            f"file {error.path}", str(error), f"ls -l {error.path}"
        ) from error
    except OSError as error:
        raise FastpathError(
            f"{out}",
            error.strerror or str(error),
            "set TMPDIR to where there is space for the image and these files",
        ) from error


class _Builder:
    """One image, from its recipe to its folder in the cache."""

    def __init__(
        self, what: Recipe, tell: Progress, own_kernel: Sequence[Path] | None
    ) -> None:
        self._recipe = what
        self._tell = tell
        self._images = cache_directory() / "images"
        self._images.mkdir(parents=True, exist_ok=True)
        self._own = own_kernel is not None
        self._inputs = _hash_of_inputs(what, own_kernel)
        self._pointer = self._images / f"{what.name}.{self._inputs[:HASH_LEN]}"

    def cached(self) -> Image | None:
        """The image that these inputs gave last."""
        try:
            return self._open(self._images / self._pointer.read_text().strip())
        except (FileNotFoundError, ValueError, KeyError):  # damaged: built again
            return None

    def build(self, *, refresh: bool, own_kernel: Path | None = None) -> Image:
        found, headers = self._from_archive(self._fetch, refresh=refresh)
        versions = "".join(f"{deb.name}\n" for deb in sorted([*found, *headers]))
        versions += "" if own_kernel is None else own_kernel.name
        content = hashlib.sha256((self._inputs + versions).encode()).hexdigest()
        folder = self._images / f"{self._recipe.name}-{content[:HASH_LEN]}"
        if not self._is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            self._make(folder, found, headers, own_kernel)
        files.replace(self._pointer, folder.name + "\n")
        self._forget_old(folder)
        self._tell(f"image {self._recipe.name} is ready", STEPS, STEPS)
        return self._open(folder)

    def source(self, *, refresh: bool) -> Path:
        """Download the source of the recipe's kernel."""
        return self._from_archive(self._fetch_source, refresh=refresh)

    def _from_archive(
        self, fetch: Callable[[packages.Archive], _T], *, refresh: bool
    ) -> _T:
        """Download something, if need be after fetching newer lists."""
        archive = packages.Archive(cache_directory(), self._recipe.suite)
        if refresh or not archive.has_lists():
            self._update(archive)
        try:
            return fetch(archive)
        except FastpathError:
            if refresh:
                raise
            self._update(archive)  # old lists name packages that are gone
            return fetch(archive)

    def _fetch_source(self, archive: packages.Archive) -> Path:
        source = ownkernel.source_of(archive.resolve([self._recipe.kernel]))
        found = archive.resolve([f"{source.name}={source.version}"])
        self._tell(f"downloading {source.name}", 10, STEPS)
        wanted = [each for each in found if each.name == source.name]
        (deb,) = archive.fetch(wanted, lambda _share: None)
        return deb

    def _is_whole(self, folder: Path) -> bool:
        """Whether an image is there that can be used."""
        try:
            self._open(folder)
        except (OSError, ValueError, KeyError):
            return False
        return True

    def _update(self, archive: packages.Archive) -> None:
        self._tell("fetching package lists", 0, STEPS)
        archive.update()

    def _fetch(self, archive: packages.Archive) -> tuple[list[Path], list[Path]]:
        """Download what the recipe names, and headers if it has modules of ours."""
        self._tell("resolving packages", 10, STEPS)
        kernel = () if self._own else archive.resolve([self._recipe.kernel])
        wanted = [each for each in kernel if each.file.startswith(KERNELS)]
        rest = archive.resolve(self._recipe.packages)
        headers: list[packages.Package] = []
        if self._recipe.own_modules and not self._own:
            named = kbuild.headers_of(each.name for each in wanted)
            headers = [*archive.resolve([*named, *kbuild.TOOLS])]
            if sources.is_hosts(self._recipe.suite):
                headers = [each for each in headers if _is_headers(each)]
        wanted += [each for each in rest if each.name not in self._recipe.omit]
        self._tell("downloading packages", 15, STEPS)
        debs = archive.fetch(
            [*wanted, *headers],
            lambda share: self._tell(
                "downloading packages", 15 + int(share * 45), STEPS
            ),
        )
        return debs[: len(wanted)], debs[len(wanted) :]

    def _make(
        self,
        folder: Path,
        debs: list[Path],
        headers: list[Path],
        own_kernel: Path | None,
    ) -> None:
        """Write the image's folder; it appears whole or not at all."""
        with tempfile.TemporaryDirectory(dir=self._images, prefix=BEGUN) as name:
            new = Path(name) / "image"
            new.mkdir()
            self._tell("compiling guest programs", 60, STEPS)
            _compile(self._recipe.programs, new)
            tree = Tree(self._recipe)
            if own_kernel is not None:
                tree.add_kernel(own_kernel)
            elif self._recipe.own_modules:
                modules = cache_directory() / "modules"
                names = self._recipe.own_modules
                tree.own_modules = kbuild.build(GUEST, names, headers, modules)
            for done, deb in enumerate(debs):
                self._tell(f"unpacking {deb.name}", 65 + 25 * done // len(debs), STEPS)
                tree.add_package(deb)
            self._tell("writing the initramfs", 90, STEPS)
            release = tree.finish(new)
            with (new / "initramfs").open("wb") as out:
                cpio.write(tree.entries, out)
            (new / "kernel").write_bytes(tree.kernel)
            (new / "kernel").chmod(0o755)  # a user-mode one is a program
            for each, data in tree.own_modules.items():
                (new / f"{each}.ko").write_bytes(data)
            facts = {"release": release, "packages": [deb.name for deb in debs]}
            (new / "image.json").write_text(json.dumps(facts, indent=1) + "\n")
            new.rename(folder)

    def _forget_old(self, current: Path) -> None:
        name = self._recipe.name
        folders = self._images.glob(f"{name}-{HASH_PATTERN}")
        used = {each: each.stat().st_mtime for each in folders}
        by_age = sorted(used, key=lambda each: used[each], reverse=True)
        for folder in by_age[KEPT:]:
            if folder != current and used[folder] < time.time() - IN_USE_S:
                shutil.rmtree(folder, ignore_errors=True)
        for pointer in self._images.glob(f"{name}.{HASH_PATTERN}"):
            if not (self._images / pointer.read_text().strip()).exists():
                pointer.unlink()

    def _open(self, folder: Path) -> Image:
        facts = json.loads((folder / "image.json").read_text())
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)
        return Image(
            name=self._recipe.name,
            kernel=folder / "kernel",
            initramfs=folder / "initramfs",
            kernel_release=facts["release"],
        )


def _is_headers(package: packages.Package) -> bool:
    return package.name.startswith(kbuild.NEEDED)


def _compile(programs: Mapping[str, str], out: Path) -> None:
    """Compile guest programs into `out`."""
    if not programs:
        return  # make without a goal makes everything
    for tool, package in (("make", "make"), ("cc", "gcc libc6-dev")):
        if shutil.which(tool) is None:
            raise FastpathError(
                "guest programs", f"{tool} is missing", f"apt-get install {package}"
            )
    command = ["make", "-s", "-C", str(GUEST), f"OUT={out}", *programs]
    kbuild.run(command, "guest programs", f"make -C {GUEST} shows all of it")


def _hash_of_inputs(what: Recipe, own_kernel: Sequence[Path] | None) -> str:
    """Hash all that decides an image's content but the packages' versions."""
    digest = hashlib.sha256(what.text.encode())
    found = [path for path in GUEST.rglob("*") if path.suffix in {".c", ".h"}]
    builder = Path(__file__).parent.glob("*.py")
    makefiles = [GUEST / "Makefile", GUEST / "kernel" / "Kbuild", *GUEST.rglob("*.def")]
    if own_kernel is not None:
        makefiles += [GUEST / ownkernel.BASE, GUEST / "kernel" / "Kconfig"]
    for path in (*sorted([*found, *makefiles, *builder]), *(own_kernel or ())):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _host_files(path: str, source: Path) -> Iterator[tuple[str, cpio.Entry]]:
    """What is at `source` on the host, to be at `path` in the guest."""
    mode = source.stat().st_mode & 0o777
    if source.is_dir():
        yield path, cpio.directory(mode)
        for child in sorted(source.iterdir()):
            yield from _host_files(f"{path}/{child.name}", child)
    else:
        yield path, cpio.host_file(source, mode)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the cache's lock, which the kernel drops when we die.

    What a build has begun that was killed is removed: nobody else works here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in path.parent.glob(f"*/{BEGUN}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
