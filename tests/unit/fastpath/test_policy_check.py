"""`fastpath policy check`: what it says of files and of destinations."""

from __future__ import annotations

import pytest

from fastpath.commands import cli

GOOD = """\
egress:
  allow: ["10.0.0.0/8", "[2001:db8::]/32:443",
    "127.0.0.1:9090"]
  deny: ["10.0.0.99:22"]
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run the command on a file `web.yaml`; return status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def check(text, *options):
        (tmp_path / "web.yaml").write_text(text)
        status = cli.invoke(["policy", "check", "web.yaml", *options])
        out, err = capsys.readouterr()
        return status, out, err

    return check


def test_a_good_file_is_said_to_be_good(check):
    assert check(GOOD) == (0, "web.yaml: good: 3 allow rules, 1 deny rule\n", "")


def test_a_wrong_file_is_exit_status_2_with_its_line(check):
    status, out, err = check("egress:\n  deny:\n  - 10.0.0.1:0\n")
    assert (status, out) == (2, "")
    assert err.startswith("fastpath: web.yaml:3: egress.deny[0]: '10.0.0.1:0': port 0")


def test_a_file_that_is_not_there_is_named(capsys):
    assert cli.invoke(["policy", "check", "/nonexistent/p.yaml"]) == 2
    assert "/nonexistent/p.yaml: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("would", "status", "what", "by"),
    [
        (
            "10.0.0.1:80",
            0,
            "10.0.0.1:80 is allowed: covered by 10.0.0.0/8",
            "web.yaml:2: egress.allow[0]",
        ),
        (
            "10.0.0.99:22",
            1,
            "10.0.0.99:22 is denied: denied by 10.0.0.99/32:22",
            "web.yaml:4: egress.deny[0]",
        ),
        (
            "127.0.0.1:9090",
            0,
            "127.0.0.1:9090 is allowed: covered by 127.0.0.1/32:9090",
            "web.yaml:3: egress.allow[2]",
        ),
        (
            "[64:ff9b::7f00:1]:80",
            1,
            (
                "[64:ff9b::7f00:1]:80 is denied: loopback addresses are denied"
                " (127.0.0.0/8); 64:ff9b::7f00:1 leads to 127.0.0.1 (NAT64)"
            ),
            "default: no allow rule names it in particular",
        ),
        (
            "192.0.2.1:80",
            1,
            "192.0.2.1:80 is denied: no allow rule covers it",
            (
                "web.yaml:2: egress.allow: where there are allow rules,"
                " one has to cover it"
            ),
        ),
    ],
)
def test_a_decision_is_explained_by_what_made_it(check, would, status, what, by):
    result, out, err = check(GOOD, "--would", would)
    assert (result, err) == (status, "")
    assert out.splitlines()[1:] == [what, f"  by {by}"]


def test_port_53_is_ztunnels_whatever_the_policy(check):
    _, out, _ = check("{}", "--would", "192.0.2.1:53")
    assert out.splitlines()[1] == "192.0.2.1:53 is allowed: nothing denies it"
    assert out.splitlines()[3].endswith(
        "ztunnel answers port 53 itself, at any address"
    )


@pytest.mark.parametrize(
    "would", ["example.org:80", "10.0.0.1", "10.0.0.1:0", "::1:80"]
)
def test_what_is_no_destination_is_refused_with_a_hint(check, would):
    status, out, err = check(GOOD, "--would", would)
    assert (status, out) == (2, "")
    assert f"--would {would}: " in err
    assert "192.0.2.1:80 or [2001:db8::1]:80" in err
