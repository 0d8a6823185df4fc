"""The host's resolv.conf: what is taken of it, and what is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.resolvconf import ResolvConf, kernel_parameters, parse, read


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ResolvConf()),
        (
            "nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\n",
            ResolvConf(nameservers=("192.0.2.1", "fe80::1%eth0")),
        ),
        (
            "nameserver 1.1.1.1\n" * 4,
            ResolvConf(nameservers=("1.1.1.1",) * 3),
        ),
        (
            "search a.example b.example.\n# search c\n",
            ResolvConf(search=("a.example", "b.example.")),
        ),
        ("search a\ndomain b c\n", ResolvConf(search=("b",))),
        ("domain a\nsearch b c\n", ResolvConf(search=("b", "c"))),
        ("search a;reboot $x -b . _c.d\n", ResolvConf(search=("_c.d",))),
        (
            "options ndots:5 edns0\noptions timeout:1 ndots:99 attempts:x attempts:3\n",
            ResolvConf(options=("ndots:15", "timeout:1", "attempts:3")),
        ),
    ],
)
def test_reads_a_file(text, found):
    assert parse(text) == found


def test_a_search_list_has_bounds():
    assert len(parse("search " + " ".join(f"d{i}" for i in range(9))).search) == 6
    long = "a" * 60 + ".example"
    assert len(parse(f"search {' '.join([long] * 6)}").search) == 3


def test_a_file_that_is_not_there_says_nothing(tmp_path):
    assert read(tmp_path / "resolv.conf") == ResolvConf()


@given(st.text(st.sampled_from("search options nameserver ndots:1\n\t.-")))
def test_any_file_is_read(text):
    found = parse(text)
    assert not any(set(each) & set(" \t\n") for each in found.search + found.options)


def test_what_a_guest_is_told_are_kernel_parameters():
    conf = parse("search a.example b\noptions ndots:2 attempts:1\n")
    words = kernel_parameters(conf).split()
    assert words == ["resolv_search=a.example,b", "resolv_options=ndots:2,attempts:1"]
    assert kernel_parameters(ResolvConf()) == ""


@given(st.text(st.sampled_from("search options timeout:1 \n\"',=.-;x")))
def test_no_file_adds_a_kernel_parameter_of_its_own(text):
    words = kernel_parameters(parse("search x\n" + text)).split()
    assert [word.partition("=")[0] for word in words] in (
        [],
        ["resolv_search"],
        ["resolv_options"],
        ["resolv_search", "resolv_options"],
    )
    assert not any(set(word) & set("\"'") for word in words)
