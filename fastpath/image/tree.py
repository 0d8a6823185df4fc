"""The files of an image, collected in memory: packages, programs, modules, links.

Debian's directories are merged: /bin, /sbin and /lib are links into /usr. So each
path is moved there before it is kept, wherever its package says that it goes.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError
from fastpath.image import bytecode, cpio, modules, packages

if TYPE_CHECKING:
    from fastpath.image.recipe import File, Recipe

MERGED = ("bin", "sbin", "lib", "lib32", "lib64")
"""Directories that are links into usr/."""
EMPTY = {"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777}
"""Directories that init mounts something on, or programs write to; and modes."""
KERNELS = (
    "linux-image-",
    "linux-base-",
    "linux-binary-",
    "linux-modules-",
    "user-mode-linux_",
)
"""Starts of the file names of packages that are kernels, or a part of one: since 6.19
Debian has the kernel and its modules in packages of their own."""
KERNEL = re.compile(r"^(boot/vmlinuz-.+|lib/modules/[^/]+/vmlinuz|bin/linux\.uml)$")
MODULES = re.compile(r"^(?P<directory>lib/(uml/)?modules/(?P<release>[^/]+))/.")
INTERPRETER = "ld.so"
"""Dynamic loader of a user-mode kernel, in the directory that it is started in. It
cannot be given to another loader: it wants its heap behind itself."""
DEBIANS_INTERPRETER = b"/lib64/ld-linux-x86-64.so.2\0"
ORDER = "order"
"""List of modules beside them, read by guest/init/boot.c."""


def merged(path: str) -> str:
    """Where a path, without a leading slash, is in a merged tree."""
    return f"usr/{path}" if path.partition("/")[0] in MERGED else path


def special(recipe: Recipe) -> set[str]:
    """Paths of an image that are links, or directories with a mode of their own."""
    declared = (each for each in recipe.files if each.link or each.directory)
    return {*MERGED, *EMPTY, *(merged(each.path.strip("/")) for each in declared)}


class Tree:
    """An image's files, as they are collected.

    Args:
        recipe: what goes into the image.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._kernel_files: dict[str, bytes] = {}
        self._own_kernel = False
        self.entries: dict[str, cpio.Entry] = {}
        """Path without a leading slash -> file."""
        self.kernel = b""
        """The kernel; there after `finish`."""
        self.own_modules: dict[str, bytes] = {}
        """name -> ELF file, of those that no package has."""
        for each in MERGED:
            self.entries[each] = cpio.symlink(f"usr/{each}")
            self.entries[f"usr/{each}"] = cpio.directory()
        for each, mode in EMPTY.items():
            self.entries[each] = cpio.directory(mode)
        self.entries["dev/console"] = cpio.character_device(5, 1)

    def add_package(self, deb: Path) -> None:
        """Add a package's files; a kernel's are kept apart."""
        if deb.name.startswith(KERNELS):
            for path, entry in packages.read(deb):
                self._kernel_files[path.removeprefix("usr/")] = entry.data
        else:
            for path, entry in packages.read(deb):
                self.entries.setdefault(merged(path), entry)

    def add_kernel(self, folder: Path) -> None:
        """Have a kernel that is in no package, and of our modules those it brings.

        Args:
            folder: files as a package has them.
        """
        self._own_kernel = True
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._kernel_files[str(path.relative_to(folder))] = path.read_bytes()

    def finish(self, programs: Path) -> str:
        """Add what does not come from packages.

        Args:
            programs: directory with the guest programs of the recipe.

        Returns:
            The kernel's release.

        Raises:
            FastpathError: the packages lack what the recipe needs of them.
        """
        declared = {each.path: self._declared(each) for each in self._recipe.files}
        for pattern in self._recipe.exclude:
            for path in fnmatch.filter(self.entries, pattern.lstrip("/")):
                del self.entries[path]
        for path, entry in declared.items():
            self._put(path, entry)
        for name, path in self._recipe.programs.items():
            self._put(path, cpio.file((programs / name).read_bytes(), 0o755))
        self.entries |= dict(bytecode.of(self.entries))
        if self._recipe.applets:
            self._add_applets(self._recipe.applets)
        return self._add_kernel()

    def _put(self, path: str, entry: cpio.Entry) -> None:
        self.entries[merged(path.strip("/"))] = entry

    def _declared(self, each: File) -> cpio.Entry:
        if each.directory:
            return cpio.directory(0o755 if each.mode is None else each.mode)
        if each.link is not None:
            return cpio.symlink(each.link)
        mode = 0o644 if each.mode is None else each.mode
        if each.join is None:
            return cpio.file((each.content or "").encode(), mode)
        parts = fnmatch.filter(sorted(self.entries), each.join.lstrip("/"))
        if not parts:
            raise FastpathError(
                f"{self._recipe.source}: {each.path}", f"no file matches {each.join}"
            )
        return cpio.file(b"".join(self.entries[part].data for part in parts), mode)

    def _add_applets(self, path: str) -> None:
        """Link each applet to busybox, which is asked for their names."""
        busybox = self.entries.get(merged(path.strip("/")))
        if busybox is None:
            raise FastpathError(
                f"{self._recipe.source}: applets", f"no package has {path}"
            )
        with tempfile.TemporaryDirectory() as name:
            binary = Path(name) / "busybox"
            binary.write_bytes(busybox.data)
            binary.chmod(0o700)
            command = [str(binary), "--list-full"]
            listing = subprocess.run(
                command, capture_output=True, text=True, check=True
            )
        for applet in listing.stdout.split():
            self.entries.setdefault(merged(applet), cpio.symlink(path))

    def _add_kernel(self) -> str:
        images = [path for path in self._kernel_files if KERNEL.match(path)]
        found = {MODULES.match(path) for path in self._kernel_files} - {None}
        modules = {(each["directory"], each["release"]) for each in found if each}
        if len(images) != 1 or len(modules) != 1:
            raise FastpathError(
                f"{self._recipe.source}: kernel",
                f"{self._recipe.kernel} brings {len(images)} kernels and modules of "
                f"{len(modules)}",
            )
        own = INTERPRETER.encode().ljust(len(DEBIANS_INTERPRETER), b"\0")
        # There is none in a kernel that is not an ELF program.
        self.kernel = self._kernel_files[images[0]].replace(DEBIANS_INTERPRETER, own, 1)
        ((directory, release),) = modules
        self._add_modules(directory, f"lib/modules/{release}")
        return release

    def _add_modules(self, directory: str, to: str) -> None:
        """Add the recipe's modules, and the list that init loads them by, in `to`."""
        packed = {
            name: path
            for path in self._kernel_files
            if path.startswith(directory) and (name := modules.name_of(path))
        }
        elf = {
            name: modules.unpack(path, self._kernel_files[path])
            for name, path in packed.items()
        }
        elf |= self.own_modules
        builtin = self._kernel_files.get(f"{directory}/modules.builtin", b"").decode()
        ours = self._recipe.own_modules
        if self._own_kernel:
            ours = tuple(name for name in ours if name in elf)
        order = modules.in_load_order(
            (*self._recipe.modules, *ours),
            elf,
            filter(None, map(modules.name_of, builtin.splitlines())),
        )
        for name in order:
            self._put(f"{to}/{name}.ko", cpio.file(elf[name]))
        lines = "".join(f"{name}.ko\n" for name in order)
        self._put(f"{to}/{ORDER}", cpio.file(lines.encode()))
