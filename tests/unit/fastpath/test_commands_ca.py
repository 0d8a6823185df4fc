"""`fastpath ca` as a process, and what it says of wrong options."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.commands import cli
from fastpath.mesh.client import ServiceSource
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.mesh_pki import HOUR, WEB

TOKEN = "web-" + "0" * 28
READY = re.compile(
    r"fastpath ca: ready: (https://127\.0\.0\.1:\d+) for trust domain cluster\.local,"
    r" root (\S+/root-cert\.pem) until 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\n"
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ca"
    path.mkdir(mode=0o700)
    tokens = path / "tokens.yaml"
    tokens.touch(0o600)
    tokens.write_text(f"tokens:\n- token: {TOKEN}\n  identity: default/web\n")
    (tmp_path / "token").write_text(TOKEN)
    return path


class Process:
    """A running `fastpath ca`."""

    def __init__(self, folder, *options):
        command = [sys.executable, "-m", "fastpath", "ca", "--dir", folder]
        self._process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", *options],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr
        line = self._process.stderr.readline()
        found = READY.fullmatch(line)
        assert found, line
        self.address, self.root = found[1], found[2]
        self._token = folder.parent / "token"

    def fetch(self):
        source = ServiceSource(
            address=self.address,
            roots=Path(self.root),
            token=self._token,
            identity=WEB,
            impersonate=False,
            life=HOUR,
            call_s=LIMIT_S,
        )
        return asyncio.run(source.fetch(dt.datetime.now(dt.UTC)))

    def end(self, signo=signal.SIGTERM):
        self._process.send_signal(signo)
        rest = self._process.communicate(timeout=LIMIT_S)[1]
        return self._process.returncode, rest


def test_it_issues_until_sigterm_and_a_restart_has_the_same_root(folder):
    first = Process(folder)
    material = first.fetch()
    status, said = first.end()
    assert status == 0
    assert "INFO fastpath.mesh.service: ipv4:127.0.0.1:" in said
    assert f": {WEB} until " in said
    second = Process(folder)
    assert second.fetch().roots == material.roots
    assert second.end(signal.SIGINT)[0] == 0


def test_the_ttl_is_the_longest_life(folder):
    process = Process(folder, "--ttl", "600")
    leaf = process.fetch().chain[0]
    process.end()
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert life == dt.timedelta(seconds=660)  # it begins a tenth earlier than now


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "ca.example:1"], "--listen ca.example:1: 'ca.example' does not"),
        (["--listen", "127.0.0.1"], "hint: write 127.0.0.1:15012 or [::1]:15012"),
        (["--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0: Cannot assign"),
        (["--trust-domain", "Not One"], "hint: Istio's default is cluster.local"),
        (["--name", "a b"], "--name a b: is no name; hint: write what stands in"),
        (["--ttl", "9"], "--ttl: 9 is not 10 to 315360000; hint: fastpath ca --help"),
        (["--token-file", "/nonexistent"], "/nonexistent: no such file; hint: write"),
        (["--token-file", "/dev/null"], "/dev/null: is no regular file; hint: write"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_exit_status_2(options, words, folder, capfd):
    assert cli.invoke(["ca", "--dir", str(folder), *options]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("fastpath: ")
    assert words in err


def test_without_a_directory_it_says_so(tmp_path, capsys):
    assert cli.invoke(["ca"]) == 2
    assert "--dir" in capsys.readouterr().err
    assert cli.invoke(["ca", "--dir", "/proc/nothing/ca"]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_root_of_another_trust_domain_is_said(folder, capsys):
    Process(folder).end()
    options = ["--trust-domain", "prod.example", "--listen", "127.0.0.1:0"]
    assert cli.invoke(["ca", "--dir", str(folder), *options]) == 2
    words = "not of trust domain prod.example; hint: give each trust domain a --dir"
    assert words in capsys.readouterr().err


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()


def test_other_commands_do_not_import_grpc():
    code = (
        "import sys, fastpath.commands.cli, fastpath.commands.run,"
        " fastpath.commands.ztunnel\n"
        "print(*(n for n in ('grpc', 'cryptography', 'google.protobuf')"
        " if n in sys.modules))"
    )
    assert run_python(code) == []


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['grpc'] = None\n"
        "from fastpath.commands import cli\n"
        "sys.stderr = sys.stdout\n"
        "print(cli.invoke(['ca', '--dir', '/nonexistent']))"
    )
    words = " ".join(run_python(code))
    assert "fastpath ca: the module grpc is not installed; hint: pip install" in words
    assert words.endswith("2")
