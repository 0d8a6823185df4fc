"""`/logging`: the level of our log, asked for and changed while the process runs.

    POST /logging                       say it
    POST /logging?level=debug           for all
    POST /logging?level=NAME=debug      for a logger and those below it
    POST /logging?reset=                as at the start; then `level`, if it is there

Spec: istio/ztunnel, admin server; its names of levels.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs

from vhost_user.pages import Page

LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
USAGE: Final = """usage: POST /logging                       what the level is
usage: POST /logging?level=LEVEL           change it for all
usage: POST /logging?level=NAME=LEVEL,...  change it for some loggers
usage: POST /logging?reset=[&level=...]    as it was at the start
hint: LEVEL is off, error, warn, info, debug or trace; NAME as fastpath.ztunnel.dns
"""
MAX_NAMES: Final = 64
"""Loggers that have a level of their own: each name that is asked for stays."""

_NAME: Final = re.compile(r"(?:fastpath|vhost_user)(?:\.[a-z_]+)*", re.ASCII)


class LogLevel:
    """The level of the root logger, and of others that have their own."""

    def __init__(self) -> None:
        self._at_start = logging.getLogger().level
        self._own: dict[str, str] = {}

    def page(self, query: str) -> Page:
        """Answer a request; change what it asks for.

        Args:
            query: what follows `?`.
        """
        asked = parse_qs(query, keep_blank_values=True)
        level = asked.get("level", [""])[0]
        changes = [clause.partition("=") for clause in level.split(",") if clause]
        wrong = [it for it in changes if not self._is_known(*it)]
        if wrong or len(self._own) + len(changes) > MAX_NAMES:
            text = f"Invalid level provided: {level}\n{USAGE}"
            return Page(text.encode(), status=HTTPStatus.BAD_REQUEST)
        if "reset" in asked:
            self._reset()
        for name, equals, value in changes:
            self._set(name if equals else "", value if equals else name)
        return Page(f"current log level is {self}\n".encode())

    def __str__(self) -> str:
        root = logging.getLogger().level
        names = {number: name for name, number in reversed(LEVELS.items())}
        own = [f"{name}={level}" for name, level in self._own.items()]
        return ",".join([*own, names.get(root, f"{root}")])

    def _is_known(self, name: str, equals: str, level: str) -> bool:
        if not equals:
            return name in LEVELS
        return level in LEVELS and bool(_NAME.fullmatch(name))

    def _reset(self) -> None:
        for name in self._own:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._own.clear()
        logging.getLogger().setLevel(self._at_start)

    def _set(self, name: str, level: str) -> None:
        logging.getLogger(name or None).setLevel(LEVELS[level])
        if name:
            self._own[name] = level
