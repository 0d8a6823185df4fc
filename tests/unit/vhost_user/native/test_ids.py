"""Things by ids that are for one thing only (base/ids.c)."""

from __future__ import annotations

import re

import pytest

from tests.unit.vhost_user.native.conftest import NATIVE, declarations

MOST = 65536


@pytest.fixture(scope="module")
def ids(build):
    header = declarations(NATIVE / "base" / "ids.h")
    return build(
        re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL), NATIVE / "base" / "ids.c"
    )


@pytest.fixture
def table(ids):
    ffi, lib = ids
    table = ffi.new("struct ids *")
    yield table
    lib.ids_free(table)


def thing(ids, number):
    return ids[0].cast("void *", number)


def test_an_id_finds_its_thing_until_that_is_gone(ids, table):
    _, lib = ids
    first, second = (lib.ids_add(table, thing(ids, 8 * n)) for n in (1, 2))
    assert first > 0
    assert lib.ids_get(table, first) == thing(ids, 8)
    assert lib.ids_del(table, first) == thing(ids, 8)
    assert not lib.ids_get(table, first)
    assert not lib.ids_del(table, first)
    assert lib.ids_get(table, second) == thing(ids, 16)


def test_the_next_in_a_slot_has_another_id(ids, table):
    _, lib = ids
    seen = set()
    for number in range(1, 1001):
        name = lib.ids_add(table, thing(ids, number))
        assert name not in seen
        assert name < 1 << 30
        seen.add(name)
        lib.ids_del(table, name)
    assert not any(lib.ids_get(table, name) for name in seen)


def test_a_part_of_an_id_finds_the_thing_of_now(ids, table):
    _, lib = ids
    old = lib.ids_add(table, thing(ids, 8))
    lib.ids_del(table, old)
    names = [lib.ids_add(table, thing(ids, 8 * n)) for n in range(2, 70)]
    for number, name in enumerate(names, 2):
        assert lib.ids_short(table, name & 0xFFFFFF) == thing(ids, 8 * number)
    assert not lib.ids_short(table, old & 0xFFFFFF)


def test_there_are_65536_at_most(ids, table):
    _, lib = ids
    names = [lib.ids_add(table, thing(ids, n)) for n in range(1, MOST + 1)]
    assert len(set(names)) == MOST
    assert lib.ids_add(table, thing(ids, 1)) < 0
    lib.ids_del(table, names[77])
    assert lib.ids_add(table, thing(ids, 1)) > 0


def test_what_is_left_can_be_found(ids, table):
    _, lib = ids
    names = {lib.ids_add(table, thing(ids, n)) for n in range(1, 100)}
    while name := lib.ids_any(table):
        names.remove(name)
        lib.ids_del(table, name)
    assert not names


def test_what_was_never_there_is_not_found(ids, table):
    _, lib = ids
    for name in (0, 1, 0xFFFFFFFF, 1 << 16 | 5):
        assert not lib.ids_get(table, name)
