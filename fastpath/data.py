"""What comes with the package and isn't Python's: the guest's sources, recipes, lib/.

In a checkout they are beside the package, in what is installed (setup.py) within it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_INSTALLED: Final = Path(__file__).parent / "data"
_ROOT: Final = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]

GUEST: Final = _ROOT / "guest"
IMAGES: Final = _ROOT / "vm-images"
RINGS: Final = _ROOT / "lib" / "ring"
