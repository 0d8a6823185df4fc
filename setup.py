from __future__ import annotations

from setuptools import setup

# The one thing pyproject.toml has no key for: cffi's API-mode build.
setup(cffi_modules=["vhost_user/native/build.py:ffibuilder"])
