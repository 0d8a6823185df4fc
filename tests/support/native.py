"""What the native module is made of, for programs that are made of the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "native_build", ROOT / "vhost_user" / "native" / "build.py"
)
assert _SPEC
assert _SPEC.loader
_build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_build)

SOURCES: Final[tuple[Path, ...]] = tuple(_build.SOURCES)
"""Its C files, those of lib/ring among them."""
LINKS: Final[tuple[str, ...]] = tuple(f"-l{name}" for name in _build.LIBRARIES)
"""The libraries that it needs, after whoever uses them."""
