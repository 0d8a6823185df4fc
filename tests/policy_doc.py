"""The tables of docs/tsi-policy.md, from the code that decides.

What is denied by default and the forms of IPv4 in IPv6 are the tables of
`fastpath.tsi.addresses`; the decisions are made by policies, when the page is written.

    python -m tests.policy_doc            write them
    python -m tests.policy_doc --check    status 1 if they are out of date
"""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.tsi.addresses import FORMS, SPECIAL, UNREADABLE
from fastpath.tsi.policy import ISTIO_PORTS, EgressPolicy, Rule, Surroundings
from fastpath.ztunnel.routing import format_address

if TYPE_CHECKING:
    from collections.abc import Iterable

DOC: Final = Path(__file__).parents[1] / "docs/tsi-policy.md"
BEGIN: Final = "<!-- decisions: written by `make policy-doc`, do not edit -->\n"
END: Final = "<!-- end of decisions -->\n"

HOST: Final = ip_address("198.51.100.7")
POD: Final = ip_address("10.200.1.2")

CASES: Final = (
    # allow, deny, destination
    ("", "", ("192.0.2.1", 80)),
    ("", "", ("127.0.0.1", 80)),
    ("127.0.0.1:80", "", ("127.0.0.1", 80)),
    ("0.0.0.0/0", "", ("127.0.0.1", 80)),
    ("10.0.0.0/8", "", ("192.0.2.1", 80)),
    ("10.0.0.0/8", "10.1.0.0/16", ("10.1.2.3", 80)),
    ("10.0.0.0/8:443", "", ("10.1.2.3", 80)),
    ("", "", (f"{POD}", 80)),
    (f"{POD}:80", "", (f"{POD}", 80)),
    ("", "", (f"{HOST}", 15008)),
    (f"{HOST}:15008", "", (f"{HOST}", 15008)),
    ("", "", ("::ffff:127.0.0.1", 80)),
    ("", "::ffff:10.0.0.0/104", ("10.1.2.3", 80)),
    ("", "10.0.0.0/8", ("64:ff9b::a01:203", 80)),
    ("", "64:ff9b::/96", ("64:ff9b::808:808", 80)),
    ("8.8.8.8:53", "", ("64:ff9b::808:808", 53)),
    ("", "", ("64:ff9b:1::a9fe:a9fe", 80)),
    ("", "", ("2002:7f00:1::1", 80)),
    ("192.0.2.0/24", "", ("2002:c000:201::1", 80)),
    ("2002:c000:201::/48", "", ("2002:c000:201::1", 80)),
    ("", "", ("fd00:ec2::254", 80)),
)


def tables() -> str:
    """All tables, with what stands between them."""
    ports = ", ".join(map(str, sorted(ISTIO_PORTS)))
    special = [
        (f"{it.network}", f"`{it.reason}`", it.what) for it in (*SPECIAL, UNREADABLE)
    ]
    special += [
        (
            "addresses of the sandbox's workload",
            "`own_address`",
            "the guest's business",
        ),
        (
            (
                f"the host's own, ports {ports}, those of `metrics`, `readiness`,"
                " `outbound`"
            ),
            "`ztunnel_port`",
            "ztunnel's own",
        ),
    ]
    forms = [
        (
            it.name,
            f"{it.network}",
            ", ".join(map(str, it.octets)) + (" (inverted)" if it.inverted else ""),
            "yes" if it.same_host else "no",
            it.spec,
        )
        for it in FORMS
    ]
    return "\n".join(
        (
            _table(("denied by default", "`reason`", "what it is"), special),
            _table(("form", "prefix", "IPv4 is octets", "one host", "from"), forms),
            f"What comes of it, where the host has {HOST} and the sandbox {POD}:\n",
            _table(("allow", "deny", "destination", "decision"), map(_row, CASES)),
        )
    )


def render(page: str) -> str:
    """Return the page with its tables as they are now."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def _row(case: tuple[str, str, tuple[str, int]]) -> tuple[str, ...]:
    allow, deny, destination = case
    policy = EgressPolicy(
        allow=[Rule.parse(allow)] if allow else (),
        deny=[Rule.parse(deny)] if deny else (),
        own=lambda address: address == HOST,
        around=Surroundings(addresses=frozenset({POD})),
    )
    denial = policy.check(destination)
    decision = f"{denial.reason}: {denial.text}" if denial else "allowed"
    return allow, deny, format_address(destination), decision


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> int:
    """Write the tables, or check them; return the exit status."""
    page = DOC.read_text(encoding="utf-8")
    text = render(page)
    if argv != ["--check"]:
        DOC.write_text(text, encoding="utf-8")
    elif text != page:
        sys.stderr.write("docs/tsi-policy.md is out of date: make policy-doc\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
