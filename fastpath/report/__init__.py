"""The report of `fastpath compare`: figures in, terminal, JSON and HTML out.

`model` holds what was measured, `stats` does the arithmetic, `table`,
`jsonfile` and `html` show it. Nothing here measures or does I/O but writing a
file that it is told to write.
"""

from __future__ import annotations
