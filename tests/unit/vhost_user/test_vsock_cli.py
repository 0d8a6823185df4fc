"""`vhost-user-vsock`: options, one line an error, and a process that ends clean."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_user.options import MisuseError
from vhost_user.vsock.cli import main, parse
from vhost_user.vsock.config import ConfigError, VmConfig

ROOT = Path(__file__).parents[3]


def vm(**fields):
    return VmConfig(socket=Path("/run/a"), **fields)


# ---- options ----


def test_the_defaults():
    options = parse(["--socket", "/run/a"])
    assert options.vms == [vm()]
    assert (options.vms[0].guest_cid, options.vms[0].tx_buffer_size) == (3, 1 << 20)
    assert (options.poll_us, options.echo_port, options.stats_socket) == (
        200,
        None,
        None,
    )


def test_one_vm_by_options():
    argv = [
        "--guest-cid=4",
        "--socket=/run/a",
        "--uds-path=/run/b",
        "--tx-buffer-size=65536",
        "--queue-size=256",
        "--groups=x+y",
        "--poll-us=0",
        "--echo-port=7",
        "--stats-socket=/run/s",
    ]
    options = parse(argv)
    assert options.vms == [
        vm(
            guest_cid=4,
            uds_path=Path("/run/b"),
            tx_buffer_size=65536,
            queue_size=256,
            groups=frozenset({"x", "y"}),
        )
    ]
    assert (options.poll_us, options.echo_port) == (0, 7)
    assert options.stats_socket == Path("/run/s")


def test_one_vm_that_is_forwarded():
    options = parse(["--socket=/a", "--forward-cid=1", "--forward-listen=9001+9002"])
    assert options.vms == [
        VmConfig(socket=Path("/a"), forward_cid=1, forward_listen=(9001, 9002))
    ]


def test_several_vms_with_either_spelling_of_a_key():
    options = parse(
        [
            "--vm=guest-cid=3,socket=/a",
            "--vm=guest_cid=4,socket=/b,uds-path=/c,groups=x+y",
        ]
    )
    assert [v.guest_cid for v in options.vms] == [3, 4]
    assert [v.groups for v in options.vms] == [{"default"}, {"x", "y"}]
    assert options.vms[1].uds_path == Path("/c")


def test_limits_by_options_and_by_keys():
    argv = ["--socket=/run/a", "--max-conns=10", "--max-queued-bytes=65536"]
    limits = {"max_conns": 10, "max_queued_bytes": 65536, "accept_rate": 100}
    assert parse([*argv, "--accept-rate=100"]).vms == [vm(**limits)]
    keys = ",".join(f"{key}={value}" for key, value in limits.items())
    assert parse([f"--vm=socket=/run/a,{keys}"]).vms == [vm(**limits)]


def test_vms_from_a_file(tmp_path):
    file = tmp_path / "vms.yaml"
    file.write_text(
        "vms:\n"
        "    - guest_cid: 3\n"
        "      socket: /run/a\n"
        "      uds_path: /run/b\n"
        "      tx_buffer_size: 65536\n"
        "      queue_size: 1024\n"
        "      groups: x+y\n"
        "    - guest_cid: 4\n"
        "      socket: /run/c\n"
    )
    options = parse(["--config", str(file)])
    assert options.vms == [
        vm(
            uds_path=Path("/run/b"),
            tx_buffer_size=65536,
            queue_size=1024,
            groups=frozenset({"x", "y"}),
        ),
        VmConfig(socket=Path("/run/c"), guest_cid=4),
    ]


@pytest.mark.spec("vhost-user:conventions/fail-early")
@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        pytest.param([], "no VM", id="nothing"),
        pytest.param(["--bogus"], "no such option: --bogus", id="unknown"),
        pytest.param(["--sock=/a"], "no such option: --sock", id="short"),
        pytest.param(["--socket=/a", "--"], "no such option: --", id="dashes"),
        pytest.param(["--socket=/a", "--socket=/b"], "twice", id="socket-twice"),
        pytest.param(["--config=/a", "--config=/b"], "twice", id="config-twice"),
        pytest.param(
            ["--socket=/a", "--poll-us=200", "--poll-us=200"], "twice", id="poll-twice"
        ),
        pytest.param(["--config="], "Is a directory", id="config-empty"),
        pytest.param(["--vm="], "not KEY=VALUE", id="vm-empty"),
        pytest.param(["--socket="], "1..107 bytes", id="socket-empty"),
        pytest.param(["--socket=/a", "--echo-port="], "not a number", id="echo-empty"),
        pytest.param(["--socket=/a", "--metrics="], "IP:PORT", id="metrics-empty"),
        pytest.param(
            ["--socket=/a", "--stats-socket="], "--stats-socket: a s", id="stats-empty"
        ),
        pytest.param(["--socket=/a", "--guest-cid=٣"], "not a number", id="cid-arabic"),
        pytest.param(["--socket=/a", "--guest-cid=1_0"], "not a number", id="cid-1_0"),
        pytest.param(
            ["--socket=/a", "--guest-cid=" + "9" * 5000], "not a number", id="cid-long"
        ),
        pytest.param(
            ["--socket=/a", "--stats-socket=/a"], "/a is used twice", id="stats-path"
        ),
        pytest.param(
            ["--socket=/a", "--uds-path=/b", "--stats-socket=/b_seqpacket"],
            "/b_seqpacket is used twice",
            id="seqpacket-path",
        ),
        pytest.param(
            ["--socket=/b_7", "--uds-path=/b"],
            "path /b_7 is port 7 of uds_path /b",
            id="a-ports-path",
        ),
        pytest.param(["--guest-cid=3"], "socket is missing", id="no-socket"),
        pytest.param(["--socket=/a", "--guest-cid=2"], "--guest-cid", id="cid-2"),
        pytest.param(["--socket=/a", "--guest-cid=x"], "not a number", id="cid-x"),
        pytest.param(
            ["--socket=/a", "--guest-cid=4294967295"], "not in 3..", id="cid-any"
        ),
        pytest.param(["--socket=/a", "--queue-size=100"], "power of two", id="queue"),
        pytest.param(
            ["--socket=/a", "--queue-size=65536"], "2..32768", id="queue-65536"
        ),
        pytest.param(["--socket=/a", "--tx-buffer-size=0"], "4096", id="window-0"),
        pytest.param(["--socket=/a", "--poll-us=-1"], "--poll-us", id="poll"),
        pytest.param(["--socket=/a", "--metrics=9090"], "IP:PORT", id="metrics"),
        pytest.param(
            ["--socket=/a", "--metrics=host:9090"], "IP:PORT", id="metrics-name"
        ),
        pytest.param(
            ["--socket=/a", "--metrics=127.0.0.1:x"], "not a number", id="metrics-port"
        ),
        pytest.param(["--socket=/a", "--echo-port=-1"], "--echo-port", id="echo"),
        pytest.param(["--socket=/a", "--uds-path=/a"], "used twice", id="same-path"),
        pytest.param(["--socket=" + "x" * 108], "1..107 bytes", id="long-socket"),
        pytest.param(
            ["--socket=/a", "--uds-path=" + "x" * 97], "at most 96", id="long-uds-path"
        ),
        pytest.param(["--socket=/a", "--vm=socket=/b"], "give one of", id="two-ways"),
        pytest.param(["--vm=socket"], "not KEY=VALUE", id="vm-no-value"),
        pytest.param(["--vm=socket=/a,cid=3"], "unknown key 'cid'", id="vm-key"),
        pytest.param(["--vm=socket=/a,socket=/b"], "twice", id="vm-key-twice"),
        pytest.param(["--vm=socket=/a", "--vm=socket=/b"], "CID 3 is used", id="cids"),
        pytest.param(["--socket=/a", "--groups=x++y"], "--groups", id="group-none"),
        pytest.param(
            ["--socket=/a", "--uds-path=/b", "--forward-cid=1"],
            "give one of uds_path and forward_cid",
            id="uds-and-cid",
        ),
        pytest.param(
            ["--vm=socket=/a,forward-listen=1"], "needs forward_cid", id="listen-alone"
        ),
        pytest.param(
            ["--socket=/a", "--forward-cid=4294967295"], "--forward-cid", id="cid-any"
        ),
        pytest.param(
            ["--vm=socket=/a,forward-cid=1,forward-listen=1+x"], "'x'", id="listen-x"
        ),
        pytest.param(
            ["--vm=socket=/a,forward-cid=1,forward-listen=1+1"], "twice", id="listen-2"
        ),
        pytest.param(
            [
                "--vm=socket=/a,guest-cid=3,forward-cid=1,forward-listen=1",
                "--vm=socket=/b,guest-cid=4,forward-cid=1,forward-listen=2+1",
            ],
            "forward_listen port 1 is used twice",
            id="listen-both",
        ),
        pytest.param(["--config=/nonexistent"], "No such file", id="no-file"),
        pytest.param(["--socket=/a", "--max-conns=0"], "not in 1..", id="conns-0"),
        pytest.param(["--socket=/a", "--accept-rate=-1"], "not in 0..", id="rate"),
        pytest.param(
            ["--socket=/a", "--max-queued-bytes=4096"],
            "command line: max_queued_bytes 4096 is less than 2048 for each of 65536",
            id="bytes-below-conns",
        ),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_2(argv, reason, capsys):
    with pytest.raises((ConfigError, MisuseError), match=r"^[^\n]*$") as info:
        parse(argv)
    assert reason in str(info.value)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("vhost-user-vsock: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param(
            "vms:\n  - socket: /a\n    cid: 3\n", 3, "].cid: unknown field", id="key"
        ),
        pytest.param(
            "vms:\n  - socket: /a\n    guest_cid: 1\n", 3, "guest_cid", id="value"
        ),
        pytest.param("vms:\n  - guest_cid: 3\n", 2, "socket: is missing", id="missing"),
        pytest.param("vms: 3\n", 1, "vms: must be a list", id="no-list"),
        pytest.param("vms:\n  - 3\n", 2, "must be a mapping", id="no-mapping"),
        pytest.param(
            "vms:\n  - socket: [1]\n", 2, "must be a single value", id="list-value"
        ),
        pytest.param("vms: []\nvm: []\n", 2, "vm: unknown field", id="top-key"),
        pytest.param("- 1\n", 1, "must be a mapping", id="top-list"),
        pytest.param("", 1, "the file is empty", id="empty"),
        pytest.param("vms:\n  - {\n", 3, "", id="not-yaml"),
        pytest.param("vms:\n  - socket: ~\n", 2, "must not be empty", id="null"),
        pytest.param(
            "vms:\n  - socket: /a\n    uds_path:\n",
            3,
            "uds_path: must not",
            id="no-value",
        ),
        pytest.param(
            "vms:\n  - socket: /a\n    socket: /b\n", 3, "given twice", id="key-twice"
        ),
        pytest.param(
            "vms:\n  - socket: /a\n    max-conns: 9\n    max_conns: 9\n",
            4,
            "max_conns: is given twice",
            id="key-in-both-spellings",
        ),
        pytest.param("vms: []\n---\nvms: []\n", 2, "another document", id="documents"),
        pytest.param("vms: &a [*a]\n", 1, "must be a mapping", id="itself"),
    ],
)
def test_a_bad_file_is_named_with_line_and_key(tmp_path, text, line, reason):
    file = tmp_path / "vms.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{file}:{line}: [^\n]*$") as info:
        parse(["--config", str(file)])
    assert reason in str(info.value)


def test_a_file_that_is_no_text_is_an_error(tmp_path):
    file = tmp_path / "vms.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=str(file)):
        parse(["--config", str(file)])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("[" * 100_000, ":1: is nested too deeply", id="deep"),
        pytest.param("#" * 2_000_000, ": more than 1048576 bytes", id="long"),
    ],
)
def test_a_file_that_nobody_would_write_is_an_error(tmp_path, text, reason):
    file = tmp_path / "vms.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"^{file}{reason}$"):
        parse(["--config", str(file)])
