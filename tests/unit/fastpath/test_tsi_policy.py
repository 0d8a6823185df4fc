"""Egress policy: rules as users write them, and what is decided."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.tsi.policy import EgressPolicy, Rule, is_own_address


def rules(*texts):
    return [Rule.parse(text) for text in texts]


def policy(allow=(), deny=(), own=()):
    return EgressPolicy(
        allow=rules(*allow),
        deny=rules(*deny),
        own=lambda address: str(address) in own,
    )


def reason(decided):
    return None if decided is None else decided.reason


@pytest.mark.parametrize(
    ("text", "network", "ports"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", ((0, 65535),)),
        ("192.0.2.1", "192.0.2.1/32", ((0, 65535),)),
        ("192.0.2.1:80", "192.0.2.1/32", ((80, 80),)),
        ("10.0.0.0/8:80,443", "10.0.0.0/8", ((80, 80), (443, 443))),
        ("10.0.0.0/8:1-1023,8080", "10.0.0.0/8", ((1, 1023), (8080, 8080))),
        ("2001:db8::/32", "2001:db8::/32", ((0, 65535),)),
        ("::1", "::1/128", ((0, 65535),)),
        ("[2001:db8::1]:443", "2001:db8::1/128", ((443, 443),)),
        ("[2001:db8::]/32:443", "2001:db8::/32", ((443, 443),)),
        ("[2001:db8::]/32", "2001:db8::/32", ((0, 65535),)),
        ("0.0.0.0/0", "0.0.0.0/0", ((0, 65535),)),
    ],
)
def test_reads_a_rule_and_writes_it_back(text, network, ports):
    rule = Rule.parse(text)
    assert (str(rule.network), rule.ports) == (network, ports)
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "''"),
        ("example.com", "example.com"),
        ("10.0.0.1/8", "host bits"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("10.0.0.0/8:", "''"),
        ("10.0.0.0/8:http", "'http'"),
        ("10.0.0.0/8:80,", "''"),
        ("10.0.0.0/8:65536", "'65536'"),
        ("10.0.0.0/8:-1", "'-1'"),
        ("10.0.0.0/8:90-80", "'90-80'"),
        ("10.0.0.0/8:80-", "'80-'"),
        ("[::1", "']' is missing"),
        ("[::1]x", "'x' after"),
    ],
)
def test_a_rule_that_cannot_be_read_names_the_bad_text(text, wrong):
    with pytest.raises(ValueError, match=re.escape(wrong)) as caught:
        Rule.parse(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("192.0.2.1", 80, None),
        ("10.0.0.1", 15001, None),
        ("2001:db8::1", 80, None),
        ("0.0.0.0", 80, "unspecified"),
        ("127.0.0.1", 80, "loopback"),
        ("127.255.255.255", 80, "loopback"),
        ("169.254.169.254", 80, "link_local"),
        ("100.100.100.200", 80, "metadata"),
        ("168.63.129.16", 80, "metadata"),
        ("224.0.0.1", 80, "multicast"),
        ("255.255.255.255", 80, "reserved"),
        ("::", 80, "unspecified"),
        ("::1", 80, "loopback"),
        ("fe80::1", 80, "link_local"),
        ("fd00:ec2::254", 80, "metadata"),
        ("ff02::1", 80, "multicast"),
        ("::ffff:127.0.0.1", 80, "loopback"),
        ("::ffff:169.254.169.254", 80, "link_local"),
        ("64:ff9b::7f00:1", 80, "loopback"),
        ("64:ff9b::a9fe:a9fe", 80, "link_local"),
        ("10.9.9.9", 15000, "ztunnel_port"),
        ("10.9.9.9", 15001, "ztunnel_port"),
        ("10.9.9.9", 15006, "ztunnel_port"),
        ("10.9.9.9", 15008, "ztunnel_port"),
        ("10.9.9.9", 15020, "ztunnel_port"),
        ("10.9.9.9", 15021, "ztunnel_port"),
        ("10.9.9.9", 15053, "ztunnel_port"),
        ("::ffff:10.9.9.9", 15008, "ztunnel_port"),
        ("10.9.9.9", 80, None),
    ],
)
def test_denies_by_default_what_is_the_hosts(host, port, why):
    assert reason(policy(own={"10.9.9.9"}).check((host, port))) == why


@pytest.mark.parametrize(
    ("allow", "host", "port", "why"),
    [
        pytest.param(["10.0.0.0/8"], "10.1.1.1", 80, None, id="covered"),
        pytest.param(["10.0.0.0/8"], "192.0.2.1", 80, "not_allowed", id="elsewhere"),
        pytest.param(["10.0.0.0/8:80"], "10.1.1.1", 81, "not_allowed", id="port"),
        pytest.param(["0.0.0.0/0"], "127.0.0.1", 80, "loopback", id="too-broad"),
        pytest.param(["127.0.0.0/8"], "127.0.0.1", 80, None, id="in-particular"),
        pytest.param(["127.0.0.1:80"], "127.0.0.1", 80, None, id="one-port"),
        pytest.param(["127.0.0.1:80"], "127.0.0.1", 81, "loopback", id="not-that-port"),
        pytest.param(["127.0.0.1:80"], "::ffff:127.0.0.1", 80, None, id="v4-mapped"),
        pytest.param(["::/0"], "192.0.2.1", 80, "not_allowed", id="other-family"),
        pytest.param(["10.0.0.0/8"], "10.9.9.9", 15001, "ztunnel_port", id="own-port"),
        pytest.param(["10.9.9.9:15001"], "10.9.9.9", 15001, None, id="own-port-named"),
    ],
)
def test_allow_rules(allow, host, port, why):
    assert reason(policy(allow=allow, own={"10.9.9.9"}).check((host, port))) == why


def test_deny_comes_before_allow():
    decided = policy(allow=["10.0.0.0/8"], deny=["10.1.0.0/16"])
    assert decided.check(("10.1.0.1", 80)).reason == "deny_rule"
    assert "10.1.0.0/16" in decided.check(("10.1.0.1", 80)).text
    assert decided.check(("10.2.0.1", 80)) is None


def test_the_errno_is_configured():
    decided = EgressPolicy(deny=rules("10.0.0.0/8"), error=errno.EACCES)
    denial = decided.check(("10.0.0.1", 1))
    assert denial is not None
    assert denial.error == errno.EACCES
    denial = EgressPolicy().check(("127.0.0.1", 1))
    assert denial is not None
    assert denial.error == errno.ECONNREFUSED


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_v4_mapped_addresses_are_judged_as_ipv4(address, port):
    decided = policy()
    plain = decided.check((str(address), port))
    assert decided.check((f"::ffff:{address}", port)) == plain


def test_own_addresses_are_those_of_the_host():
    assert is_own_address(ipaddress.ip_address("127.0.0.1"))
    assert not is_own_address(ipaddress.ip_address("192.0.2.77"))
