"""vu.h and the headers that it includes are the manual of the C side.

Each function has a kernel-doc comment: its parameters, what it returns, and the errors,
or why there are none. _vu.pyi has the same names for mypy.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import vhost_user
from vhost_user import targets
from vhost_user._native import ffi, lib

NATIVE = Path(vhost_user.__file__).parent / "native"

_ENTRY = re.compile(
    r"/\*\*\n \* (?P<title>(?:(?!\*/).)*?)\n \*/\n(?P<code>[^;{]*[;{])", re.DOTALL
)
_PROTOTYPE = re.compile(
    r"(?P<type>[\w ]+[ *])(?P<name>vu_\w+)\((?P<args>.*)\);", re.DOTALL
)
_INCLUDE = re.compile(r'^#include "(vu_\w+\.h)"$', re.MULTILINE)
_ERROR = re.compile(r"-(VU_ERR_[A-Z]+)")
_STUB = re.compile(r"^    (?:def )?(vu_\w+|VU_\w+)", re.MULTILINE)
_NO_ERROR = "Never an error: "

GONE = {
    "vu_conn_answer",
    "vu_conn_answer_fd",
    "vu_conn_offer",
    "vu_conn_open",
    "vu_conn_reset",
    "vu_conn_take",
    "vu_dev_conns_from",
    "vu_dev_del",
    "vu_dev_limit",
    "vu_dev_reset",
    "vu_dev_route",
    "vu_dev_set_call",
    "vu_dev_set_mem",
    "vu_dev_join",
    "vu_dev_start_ring",
    "vu_dev_stats",
    "vu_dev_stop_ring",
    "vu_dev_transport_reset",
    "vu_dev_unroute",
    "vu_dev_unroute_from",
    "vu_handoff_del",
    "vu_peer_del",
    "vu_listener_backlog",
    "vu_listener_caller",
    "vu_listener_del",
    "vu_listener_forget",
    "vu_listener_guest",
    "vu_listener_pause",
    "vu_netns_del",
    "vu_netns_renew",
    "vu_hbone_answer",
    "vu_hbone_decide",
    "vu_hbone_drain",
    "vu_hbone_forget",
    "vu_hbone_guest",
    "vu_hbone_listen",
    "vu_hbone_peer",
    "vu_hbone_preface",
    "vu_hbone_request",
    "vu_hbone_respond",
    "vu_hbone_stats",
    "vu_hbone_tls",
    "vu_headers_del",
    "vu_pool_add",
    "vu_pool_del",
    "vu_pool_tls",
    "vu_tls_del",
}
"""Functions about something that may be gone."""


@dataclass(frozen=True)
class Function:
    """A prototype and the comment in front of it."""

    name: str
    type: str
    args: tuple[str, ...]
    comment: str

    @property
    def returns(self):
        """What the comment says from "Returns:" on, in one line."""
        _, _, text = self.comment.partition("Returns:")
        return " ".join(text.replace("*", " ").split())


def headers():
    """Return the text of vu.h and of each header that it includes, by name."""
    found = {"vu.h": (NATIVE / "vu.h").read_text()}
    for name in _INCLUDE.findall(found["vu.h"]):
        found[name] = (NATIVE / name).read_text()
    return found


def functions(text):
    """Yield the prototypes of a header that have a comment."""
    for entry in _ENTRY.finditer(text):
        prototype = _PROTOTYPE.fullmatch(entry["code"].strip())
        if prototype:
            args = re.findall(r"(\w+)(?:,|$)", prototype["args"])
            yield Function(
                prototype["name"],
                prototype["type"].strip(),
                tuple(arg for arg in args if arg != "void"),
                entry["title"],
            )


MANUAL = {each.name: each for text in headers().values() for each in functions(text)}
EACH = pytest.mark.parametrize("function", MANUAL.values(), ids=MANUAL.keys())


def test_each_function_has_a_comment():
    assert set(MANUAL) == {name for name in dir(lib) if callable(getattr(lib, name))}


def test_each_header_is_a_part_of_the_manual():
    assert set(headers()) == {path.name for path in NATIVE.glob("*.h")}


def test_the_stub_has_each_name():
    stub = (NATIVE.parent / "_vu.pyi").read_text()
    assert set(_STUB.findall(stub)) == set(dir(lib))


@EACH
def test_a_comment_names_its_function(function):
    assert re.match(rf"{function.name}\(\) - [A-Z]", function.comment)


@EACH
def test_each_parameter_is_described(function):
    described = re.findall(r"^ \* @(\w+):", function.comment, re.MULTILINE)
    assert tuple(described) == function.args


@EACH
def test_what_is_returned_is_said(function):
    assert bool(function.returns) == (function.type != "void")


@EACH
def test_errors_that_are_named_exist(function):
    assert all(hasattr(lib, error) for error in _ERROR.findall(function.comment))


@pytest.mark.parametrize(
    "function",
    [each for each in MANUAL.values() if each.type in ("int", "int64_t")],
    ids=lambda function: function.name,
)
def test_a_function_lists_its_errors_or_says_why_there_are_none(function):
    assert bool(_ERROR.search(function.returns)) != (_NO_ERROR in function.returns)


def test_functions_about_what_may_be_gone_say_so():
    listed = {
        each.name
        for each in MANUAL.values()
        if "-VU_ERR_GONE" in each.returns and each.args[0] == "engine"
    }
    assert listed == GONE


@pytest.fixture
def engine():
    config = ffi.new("struct vu_engine_config *", {"max_conns": 4})
    engine = lib.vu_engine_new(config)
    yield engine
    lib.vu_engine_free(engine)


NAME = ffi.new("char[]", b"cluster.local")
NAMES = ffi.new("const char *[]", [NAME])
TIMES = {"connect_ms": 1, "ping_ms": 1, "silence_ms": 1}
POOL = {"tls": 1, "names": NAMES, "n_names": 1, "max_streams": 1, "max_tunnels": 1}
GATE = {"tls": 1, "trust_domain": NAME, "max_streams": 1, "max_tunnels": 1}
ADDR = list(targets.sockaddr(("127.0.0.1", 80)))
OWN = {
    "vu_pool_add": {
        "cfg": ffi.new(
            "struct vu_pool_config *",
            POOL | TIMES | {"addr_len": len(ADDR), "addr": ADDR, "idle_ms": 1},
        )
    },
    "vu_hbone_listen": {
        "cfg": ffi.new("struct vu_hbone_config *", GATE | TIMES | {"max_shakes": 1}),
        "fd": os.eventfd(0),
    },
    "vu_hbone_decide": {
        "decision": ffi.new("struct vu_hbone_decision *", {"tag": 1, "target": {}})
    },
    "vu_hbone_stats": {"ret": ffi.new("struct vu_hbone_stats *")},
    "vu_hbone_request": {"ret": ffi.new("struct vu_hbone_request *")},
    "vu_hbone_answer": {"ret": ffi.new("struct vu_hbone_answer *")},
    "vu_hbone_peer": {"ret": ffi.new("char[1]")},
}
"""Arguments of some functions that differ from the others'."""


@pytest.mark.parametrize("name", sorted(GONE))
def test_what_was_never_there_is_gone(engine, name):
    values = {
        "conn": 1 << 32 | 1,
        "max_conns": 0,
        "target": targets.encode(targets.Echo()),
        "cfg": ffi.new("struct vu_ring_config *"),
        "mem": ffi.NULL,
        "caller": ffi.new("struct vu_caller *", {"version": 4}),
        "ret": ffi.new("struct vu_dev_stats *"),
        "data": b"",
        "fd": -1,
        "hybrid": False,
    } | OWN.get(name, {})
    args = (values.get(arg, 1) for arg in MANUAL[name].args[1:])
    assert getattr(lib, name)(engine, *args) == -lib.VU_ERR_GONE
