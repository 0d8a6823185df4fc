"""What a fuzzer in Python gets: bytes that are taken for steps; and how it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris


def fuzz(target, seeds):
    """Run libFuzzer by its command line; a corpus begins with `seeds`."""
    corpus = Path(sys.argv[-1])
    if corpus.is_dir():
        for i, seed in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


class Input:
    """libFuzzer's bytes, taken from the front; zeros once they are used up."""

    def __init__(self, data):
        self._data = data
        self._at = 0

    def __bool__(self):
        return self._at < len(self._data)

    def take(self, size):
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece + bytes(size - len(piece))

    def byte(self):
        return self.take(1)[0]

    def u32(self):
        return int.from_bytes(self.take(4), "little")

    def u64(self):
        return int.from_bytes(self.take(8), "little")

    def pick(self, items):
        return items[self.byte() % len(items)]
