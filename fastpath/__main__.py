"""`python -m fastpath`: the program where no console script is installed."""

from __future__ import annotations

from fastpath.entry import main

main()
