"""Egress policy: rules as users write them, and what is decided."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.tsi.addresses import FORMS, as_ipv4, special
from fastpath.tsi.policy import (
    EgressPolicy,
    Rule,
    Surroundings,
    is_own_address,
    without_effect,
)


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
        ("10.0.0.1:0", "port 0"),
        ("10.0.0.1:80,0-9", "port 0"),
        ("fe80::1%lo", "scope"),
        ("[fe80::%lo]/64:80", "scope"),
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
        ("fd00:ec2::23", 80, "metadata"),
        ("fd00:ec2::253", 80, "metadata"),
        ("fd20:ce::254", 80, "metadata"),
        ("fd00:c1::a9fe:a9fe", 80, "metadata"),
        ("fd00:42::42", 80, "metadata"),
        ("fd00:a9fe:a9fe::1", 80, "metadata"),
        ("fd00:100::100:200", 80, "metadata"),
        ("192.0.0.192", 80, "metadata"),
        ("ff02::1", 80, "multicast"),
        ("::ffff:127.0.0.1", 80, "loopback"),
        ("::ffff:169.254.169.254", 80, "link_local"),
        ("64:ff9b::7f00:1", 80, "loopback"),
        ("64:ff9b::a9fe:a9fe", 80, "link_local"),
        ("64:ff9b::808:808", 80, None),
        ("64:ff9b:1::7f00:1", 80, "loopback"),
        ("64:ff9b:1:7f00:0:100::", 80, "loopback"),
        ("64:ff9b:1:7f00:0:100:1234:5678", 80, "loopback"),
        ("64:ff9b:1:7f:0:1::", 80, "loopback"),
        ("64:ff9b:1:0:7f:0:100:0", 80, "loopback"),
        ("64:ff9b:1:0:7f00:0:100::", 80, "reserved"),
        ("64:ff9b:1::808:808", 80, None),
        ("2002:7f00:1::1", 80, "loopback"),
        ("2002:808:808::1", 80, None),
        ("2001:0:7f00:1::f7f7:f7f7", 80, "loopback"),
        ("2001:0:808:808::80ff:fffe", 80, "loopback"),
        ("2001:0:808:808::f7f7:f7f7", 80, None),
        ("::127.0.0.1", 80, "loopback"),
        ("::8.8.8.8", 80, None),
        ("::ffff:0:127.0.0.1", 80, "loopback"),
        ("2001:db8::5efe:127.0.0.1", 80, "loopback"),
        ("2001:db8::200:5efe:127.0.0.1", 80, "loopback"),
        ("2001:db8::5eff:127.0.0.1", 80, None),
        ("10.9.9.9", 15000, "ztunnel_port"),
        ("10.9.9.9", 15001, "ztunnel_port"),
        ("10.9.9.9", 15006, "ztunnel_port"),
        ("10.9.9.9", 15008, "ztunnel_port"),
        ("10.9.9.9", 15020, "ztunnel_port"),
        ("10.9.9.9", 15021, "ztunnel_port"),
        ("10.9.9.9", 15053, "ztunnel_port"),
        ("10.9.9.9", 15080, "ztunnel_port"),
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
        pytest.param(["127.0.0.0/8"], "64:ff9b::7f00:1", 80, None, id="nat64"),
        pytest.param(["64:ff9b::7f00:1"], "64:ff9b::7f00:1", 80, None, id="as-ipv6"),
        pytest.param(["64:ff9b::/96"], "64:ff9b::7f00:1", 80, "loopback", id="broad"),
        pytest.param(["::/0"], "64:ff9b::808:808", 80, None, id="outside"),
        pytest.param(
            ["8.0.0.0/8"], "2002:808:808::1", 80, "not_allowed", id="only-a-relay"
        ),
        pytest.param(["2002:808::/32"], "2002:808:808::1", 80, None, id="6to4"),
        pytest.param(["2002:7f00::/24"], "2002:7f00:1::1", 80, None, id="6to4-within"),
        pytest.param(
            ["2002:7e00::/23"], "2002:7f00:1::1", 80, "loopback", id="6to4-broad"
        ),
        pytest.param(["::ffff:10.0.0.0/104"], "10.1.1.1", 80, None, id="mapped-rule"),
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


DENIED = [
    # a rule, and what it denies
    ("64:ff9b::/96", "64:ff9b::808:808"),
    ("::/0", "64:ff9b::808:808"),
    ("::/0", "::ffff:8.8.8.8"),
    ("::ffff:0.0.0.0/96", "::ffff:8.8.8.8"),
    ("::ffff:10.0.0.0/104", "10.1.2.3"),
    ("::ffff:10.0.0.0/104", "::ffff:10.1.2.3"),
    ("10.0.0.0/8", "2002:a01:203::1"),
    ("10.0.0.0/8", "64:ff9b:1::a01:203"),
]


@pytest.mark.parametrize(("rule", "host"), DENIED)
def test_a_deny_rule_holds_in_every_form(rule, host):
    assert reason(policy(deny=[rule]).check((host, 80))) == "deny_rule"


def test_a_sandboxs_own_addresses_are_not_the_hosts_to_answer():
    pod = ipaddress.ip_address("10.200.1.2")
    around = Surroundings(addresses=frozenset({pod}))
    there = policy(allow=["0.0.0.0/0", "::/0"]).within(around)
    denial = there.check((str(pod), 80))
    assert denial is not None
    assert denial.reason == "own_address"
    assert "10.200.1.2 is the sandbox's own address" in denial.text
    assert reason(there.check(("64:ff9b::ac8:102", 80))) == "own_address"
    assert there.check(("10.200.1.3", 80)) is None
    named = policy(allow=["10.200.1.2:80"]).within(around)
    assert named.check((str(pod), 80)) is None


def test_ztunnels_ports_are_those_it_has_now():
    ports = {9000}
    there = policy(own={"10.9.9.9"}).within(Surroundings(ports))
    assert reason(there.check(("10.9.9.9", 9000))) == "ztunnel_port"
    assert there.check(("10.9.9.9", 9001)) is None
    assert there.check(("10.9.9.8", 9000)) is None
    ports.add(9001)
    assert reason(there.check(("10.9.9.9", 9001))) == "ztunnel_port"
    assert there.may_change(9001)
    assert not there.may_change(80)


def test_a_verdict_names_the_rule_and_the_address_that_decided():
    there = policy(allow=["8.0.0.0/8"], deny=["8.8.0.0/16:53"])
    denied = there.judge(("64:ff9b::808:808", 53))
    assert denied.rule == Rule.parse("8.8.0.0/16:53")
    assert str(denied.reading.address) == "8.8.8.8"
    assert denied.denial is not None
    assert "64:ff9b::808:808 leads to 8.8.8.8 (NAT64)" in denied.denial.text
    assert there.judge(("8.8.8.8", 80)).rule == Rule.parse("8.0.0.0/8")
    assert there.judge(("127.0.0.1", 80)).rule is None


def embed(address, form):
    """The IPv6 address of a form that carries an IPv4 one; said in another way."""
    number = int(address)
    high, low = divmod(number, 1 << 16)
    if form.inverted:
        return ipaddress.IPv6Address(0x20010000 << 96 | (number ^ 0xFFFF_FFFF))
    if form.name.startswith("NAT64, /"):
        length = int(form.name.rpartition("/")[2])
        base = 0x0064_FF9B_0001 << 80
        if length == 96:
            return ipaddress.IPv6Address(base | number)
        before, after = 64 - length, 32 - (64 - length)
        shifted = number >> after << 64 | (number & ((1 << after) - 1)) << (56 - after)
        assert before >= 0
        return ipaddress.IPv6Address(base | shifted)
    text = {
        "IPv4-mapped": f"::ffff:{address}",
        "IPv4-compatible": f"::{address}",
        "IPv4-translated": f"::ffff:0:{address}",
        "NAT64": f"64:ff9b::{address}",
        "6to4": f"2002:{high:x}:{low:x}::1",
        "Teredo, server": f"2001:0:{high:x}:{low:x}::f7f7:f7f7",
        "ISATAP": f"2001:db8::5efe:{address}",
    }
    return ipaddress.IPv6Address(text[form.name])


ipv4 = st.one_of(
    st.ip_addresses(v=4),
    st.sampled_from([n.network for n in map(special, map(ipaddress.ip_address, (
        "0.1.2.3", "127.0.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16",
        "192.0.0.192", "224.0.0.1", "255.255.255.255",
    ))) if n]).flatmap(lambda n: st.ip_addresses(network=str(n))),
)  # fmt: skip
ports = st.integers(1, 65535)


@st.composite
def some_rules(draw):
    """Rules near each other, so that they often touch."""
    host = draw(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.1.1", "2002:a00:1::"]))
    address = ipaddress.ip_address(host)
    length = draw(st.integers(20, address.max_prefixlen))
    prefix = ipaddress.ip_network(f"{host}/{length}", strict=False)
    text = f"[{prefix.network_address}]/{length}"
    low, high = sorted((draw(st.integers(1, 9)), draw(st.integers(1, 9))))
    chosen = draw(st.sampled_from(["", f":{low}-{high}", f":{low},{high}"]))
    return Rule.parse(text + chosen)


@given(ipv4, st.sampled_from(FORMS), ports)
def test_what_is_denied_as_ipv4_is_denied_in_every_form(address, form, port):
    plain = policy().check((str(address), port))
    there = policy().check((str(embed(address, form)), port))
    unsure = form.name in ("NAT64, /48", "NAT64, /56", "NAT64, /64")
    if plain is not None and not (unsure and plain.reason == "unspecified"):
        assert there is not None
        other = (str(address), there.reason) == ("0.0.0.1", "loopback")  # ::1
        assert there.reason == plain.reason or unsure or form.inverted or other


@given(st.lists(some_rules(), max_size=3), st.sampled_from(FORMS), ipv4, ports)
def test_what_a_rule_denies_it_denies_in_every_form(deny, form, address, port):
    there = EgressPolicy(deny=deny, own=lambda a: False)
    outer = embed(address, form)
    if any(rule.covers(address, port) or rule.covers(outer, port) for rule in deny):
        if form.name.startswith("NAT64, /") and int(address) < 1 << 24:
            return  # no reading of the local-use prefix
        assert reason(there.check((str(outer), port))) == "deny_rule"


@given(some_rules())
def test_a_rule_is_read_as_it_was_written(rule):
    assert Rule.parse(str(rule)) == rule


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_rule_of_mapped_addresses_is_the_ipv4_rule(address, length):
    plain = ipaddress.ip_network(f"{address}/{length}", strict=False)
    mapped = f"::ffff:{plain.network_address}/{96 + length}"
    assert Rule.parse(mapped).network == plain
    assert as_ipv4(ipaddress.ip_network(mapped)) == plain


@given(st.lists(some_rules(), max_size=4), st.lists(some_rules(), max_size=4))
def test_rules_without_effect_are_those_that_never_match(allow, deny):
    lost = {index for index, _ in without_effect(allow, deny)}
    there = EgressPolicy(deny=deny, own=lambda a: False)
    for index, rule in enumerate(allow):
        # a prefix's corners, and the neighbours of all the others' corners
        edges = {rule.network[0], rule.network[-1]}
        for other in deny:
            for near in (other.network[0], other.network[-1]):
                if near in rule.network:
                    edges |= {near}
                    edges |= {x for x in (near - 1, near + 1) if x in rule.network}
        reached = {
            reason(there.check((str(address), port)))
            for address in edges
            for port in (*range(1, 11), 65535)
            if rule.covers(address, port)
        }
        if index in lost:
            assert reached == {"deny_rule"}
        elif rule.network.version == 4:
            assert reached != {"deny_rule"}


@given(
    st.lists(some_rules(), max_size=3),
    st.lists(some_rules(), max_size=3),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.1.1", "2002:a00:1::", "8.8.8.8"]),
    st.integers(1, 10),
)
def test_a_verdicts_rule_is_one_that_covers_the_destination(allow, deny, host, port):
    verdict = EgressPolicy(allow=allow, deny=deny).judge((host, port))
    if verdict.rule is not None:
        assert verdict.rule in (deny if verdict.denial else allow)
        assert verdict.rule.covers(verdict.reading.address, port)
    elif verdict.denial is None:
        assert not allow
