from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

DATA = ("guest", "vm-images", "lib")
"""Folders that fastpath/data.py has in what is installed."""
PRODUCTS = shutil.ignore_patterns("*.o", "*.ko", "*.pyc", "__pycache__", ".*")
NATIVE = "vhost_user/native/build.py"


class Build(build_ext):
    """Builds the program beside the module, too."""

    def run(self) -> None:
        super().run()
        spec = importlib.util.spec_from_file_location("native_build", NATIVE)
        assert spec
        assert spec.loader
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        native.build_maker(Path(self.get_ext_fullpath("vhost_user._vu")).parent)


class Files(build_py):
    """Copies what isn't Python's, too."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            there = Path(self.build_lib) / "fastpath" / "data"
            shutil.rmtree(there, ignore_errors=True)
            for name in DATA:
                shutil.copytree(name, there / name, ignore=PRODUCTS)


# What pyproject.toml has no key for: cffi's API-mode build, and a program.
setup(
    cffi_modules=[f"{NATIVE}:ffibuilder"],
    cmdclass={"build_ext": Build, "build_py": Files},
)
