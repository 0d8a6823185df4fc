"""Log lines of a fuzzed process."""

from __future__ import annotations

import logging


class Errors(logging.Handler):
    """Whatever our code logs as an error is a finding: takes the root logger's."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.ERROR)

    def emit(self, record):
        self.lines.append(self.format(record))
