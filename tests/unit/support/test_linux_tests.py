"""What Linux's vsock_test prints, as cases; its output is copied by hand."""

from __future__ import annotations

from tests.support.linux_tests import Case, parse_cases


def test_cases_that_pass_are_ok_whatever_they_wrote():
    said = (
        "Control socket connected to 10.0.2.2:4711.\n"
        "0 - SOCK_STREAM connection reset...ok\n"
        "1 - SOCK_SEQPACKET timeout...a word\nok\n"
        "2 - SOCK_STREAM bind only...skipped\n"
        "All tests have been executed. Waiting other peer...ok\n"
    )
    assert parse_cases(said) == [
        Case(0, "SOCK_STREAM connection reset", "ok"),
        Case(1, "SOCK_SEQPACKET timeout", "ok"),
        Case(2, "SOCK_STREAM bind only", "skipped"),
    ]


def test_a_case_that_fails_is_the_last_and_says_why():
    said = (
        "0 - SOCK_STREAM client close...ok\n"
        "1 - SOCK_STREAM MSG_ZEROCOPY...serr: was copy instead of zerocopy\n"
    )
    assert parse_cases(said)[-1] == Case(
        1, "SOCK_STREAM MSG_ZEROCOPY", "serr: was copy instead of zerocopy"
    )
