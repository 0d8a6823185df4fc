from __future__ import annotations

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

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


# What pyproject.toml has no key for: cffi's API-mode build, and a program.
setup(cffi_modules=[f"{NATIVE}:ffibuilder"], cmdclass={"build_ext": Build})
