"""TSI, outbound: real programs in one microVM against servers on the host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi import service
from fastpath.tsi.protocol import Welcome
from tests.support.limits import wait_until
from tests.vm import programs
from tests.vm.forms import by_agents
from tests.vm.world import (
    ECHO,
    HOST4,
    HOST6,
    HTTP,
    LATE,
    POD4,
    SILENT,
    SLOW,
    open_world,
)
from vhost_user.engine import EventKind

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
TSI_CLIENT = ("python3", "-m", "tests.vm.tsi_client", HOST4)
C_CHECKS = programs.checks("client")
SHORT_S = 8.0
"""What the host lets a connect take: less than it takes itself at LATE."""
FEW, FEWER = 1024, 64
"""Tokens of a stream, and those that can be connected to: the checks need more."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The clients, compiled: path in the guest -> file."""
    out = tmp_path_factory.mktemp("clients")
    found = {
        "/bin/tsi_client": programs.compile_c(out / "c", *programs.c_files("client")),
        **programs.python_checks("tsi_client.py"),
    }
    if shutil.which("go"):
        go = programs.compile_go(out / "go", HERE / "tsi_client.go")
        found["/bin/tsi_client_go"] = go
    return found


def welcome(**fields):
    return Welcome(**(fields | {"token_count": FEW, "window": FEWER}))


@pytest.fixture(scope="module")
def world(apps_image, accelerator, clients, namespace, form):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "CONNECT_TIMEOUT_S", SHORT_S)
        patch.setattr(service, "Welcome", welcome)
        with open_world(
            apps_image, accelerator, clients, namespace, append=f"tsi={form}"
        ) as there:
            yield there


@pytest.fixture(scope="module")
def c_results(world, form):
    """The C client's line for each check."""
    env = {"POD_IPV4": POD4, "SOCKETS": form}
    _, said = world.run("tsi_client", HOST4, HOST6, env=env)
    return programs.results(said)


@pytest.mark.parametrize("name", C_CHECKS)
def test_the_c_client_sees_what_tcp_does(c_results, name):
    assert c_results.get(name) == f"ok {name}"


def test_the_c_client_sees_the_same_over_native_tcp(world, namespace, clients):
    """Else the checks would state what TSI does, not what TCP does."""
    programs.run_natively(namespace, clients["/bin/tsi_client"], HOST4, HOST6)


def test_go_programs(world, clients):
    if "/bin/tsi_client_go" not in clients:
        pytest.skip("go is not installed (Debian package golang-go)")
    status, said = world.run("tsi_client_go", HOST4)
    assert status == 0, said


def test_python_programs(world):
    status, said = world.run(*TSI_CLIENT)
    assert status == 0, said


@pytest.mark.parametrize(
    "command",
    [
        f"wget -q -O - http://{HOST4}:{HTTP}/",
        f"wget -q -O - http://[{HOST6}]:{HTTP}/",
        f"curl -sS http://{HOST4}:{HTTP}/",
        f"curl -sS http://[{HOST6}]:{HTTP}/",
    ],
)
def test_programs_fetch(world, command):
    assert world.sh(command) == (0, "hello\n")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (f"curl -sS http://{HOST4}:8081/", 7, ""),
        ("curl -sS http://198.51.100.1/", 7, ""),
        (f"curl -sS -m 1 http://{HOST4}:{SILENT}/", 28, "timed out"),
        (f"wget -q -O - http://{HOST4}:8081/", 1, "Connection refused"),
        ("wget -q -O - http://198.51.100.1/", 1, "No route to host"),
        (f"nc -w 1 {HOST4} {SILENT} < /dev/null", 1, "timed out"),
        ("wget -q -O - http://169.254.169.254/", 1, "Connection refused"),
    ],
)
def test_programs_say_why_they_cannot(world, command, status, message):
    found, said = world.sh(command)
    assert found == status
    assert message in said


def test_a_host_that_does_not_answer_times_out(world):
    status, said = world.sh(f"nc {HOST4} {LATE} < /dev/null")
    why = f"nc: can't connect to remote host ({HOST4}): Connection timed out\n"
    assert (status, said) == (1, why)


def test_a_destination_is_decided_once(world, form):
    """For an agent's command, or for all that the guest does by the module."""
    fetch = f"wget -q -O - http://{HOST4}:{HTTP}/"
    assert world.sh(fetch) == (0, "hello\n")
    world.router.asked.clear()
    status, said = world.sh("; ".join([fetch] * 5))
    assert (status, said) == (0, "hello\n" * 5)
    assert world.router.asked == ([] if form == "module" else [(HOST4, HTTP)])


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_the_agents_exit_status_is_the_commands(world, script, status):
    assert world.sh(script)[0] == status


def test_a_command_that_is_not_there(world):
    status, said = world.run("no-such-program")
    assert status == 127
    assert "no-such-program" in said
    assert world.run("/etc/passwd")[0] == 126


@by_agents
def test_signals_reach_the_command(world):
    script = "trap 'echo got it; exit 5' TERM; kill -TERM $PPID; sleep 60 & wait"
    assert world.sh(script) == (5, "got it\n")


@by_agents
def test_a_second_agent_above_the_first_says_so(world):
    status, said = world.sh("tsi-agent -- true; echo $?")
    assert status == 0
    assert "tsi-agent: another agent" in said
    assert said.endswith("\n125\n")


def test_what_the_command_leaves_behind_still_connects(world, form):
    until = "until [ -s /tmp/ended ]; do sleep 0.1; done"
    fetch = f"wget -q -O /tmp/later http://{HOST4}:{HTTP}/; echo $? > /tmp/ended"
    assert world.sh(f"(sleep 1; {fetch}) > /dev/null 2>&1 &")[0] == 0
    # Without an agent beside it; by the module, no command without TSI, which has init
    # take the guest's interface away meanwhile.
    by_module = form == "module"
    status, said = world.sh(f"{until}; cat /tmp/ended /tmp/later", tsi=by_module)
    assert (status, said) == (0, "0\nhello\n")


SHORT = f"""
import asyncio

async def one(gate):
    async with gate:
        reader, writer = await asyncio.open_connection("{HOST4}", {ECHO})
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
        await writer.wait_closed()

async def main():
    gate = asyncio.Semaphore(64)
    await asyncio.gather(*(one(gate) for _ in range(1000)))

asyncio.run(main())
"""
HELPER_KIB = 24
"""What an agent's thread takes; there are as many as were needed at once."""
SHORT_TWICE = """
cat > /tmp/short.py
agent=$(cut -d' ' -f4 /proc/$$/stat)
fds() { ls /proc/$agent/fd | wc -l; }
measure() { awk '/RssAnon|Threads/ {print $2}' /proc/$agent/status; }
python3 /tmp/short.py
most=$(fds)
measure
python3 /tmp/short.py
python3 /tmp/short.py
until [ $(fds) -le $most ]; do sleep 0.1; done
measure
"""


@by_agents
def test_short_connections_leave_nothing(world):
    before = world.stats()[0].conns  # init's own, and dials that never end
    status, said = world.sh(SHORT_TWICE, stdin=SHORT.encode())
    assert status == 0, said
    rss_kib, threads, rss_later_kib, threads_later = map(int, said.split())
    helpers = max(0, threads_later - threads)
    assert rss_later_kib <= rss_kib + 64 + HELPER_KIB * helpers

    def ended():
        device, service = world.stats()
        return service.streams == 0 and device.conns <= before

    wait_until(ended, what="the end of each connection")


def test_the_log_has_every_connection(world):
    world.router.events.clear()
    script = "; ".join([f"wget -q -O /dev/null http://{HOST4}:{HTTP}/"] * 20)
    assert world.sh(script)[0] == 0

    def kinds():
        return [kind for kind, _ in list(world.router.events)]

    wait_until(lambda: kinds().count(EventKind.CLOSED) >= 20, what="their ends")
    assert kinds().count(EventKind.OPENED) == kinds().count(EventKind.CLOSED) == 20


KILL = programs.KILL_AGENT
SURVIVOR = f"""
import os, signal, socket, threading, time

def connect(port):
    there = socket.create_connection(("{HOST4}", port))
    there.sendall(b"x")
    assert there.recv(1) == b"x"
    return there

before = connect({ECHO})
slow = threading.Thread(target=connect, args=[{SLOW}])
slow.start()
time.sleep(0.2)
os.kill(os.getppid(), signal.SIGKILL)
slow.join()
connect({ECHO})
before.sendall(b"y")
assert before.recv(1) == b"y"
assert before.getpeername() == ("{HOST4}", {ECHO})
print("survived")
"""


@by_agents
def test_an_agents_death_is_survived(world):
    """By connections, by a connect() that waits, and by those that come after."""
    assert world.run("python3", "-c", SURVIVOR) == (0, "survived\n")


@by_agents
def test_the_commands_status_survives_its_agent(world):
    fetch = f"wget -q -O - http://{HOST4}:{HTTP}/"
    assert world.sh(f"kill -9 $PPID; {fetch}; exit 7") == (7, "hello\n")
    assert world.sh("kill -9 $PPID; kill -TERM $$")[0] == 143


LATE_AGENT = """
import os, socket, subprocess

init, agents = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
agents.setblocking(False)
try:
    while True:
        agents.send(b"full")
except BlockingIOError:
    agents.setblocking(True)

def waits_in(pid, call):
    return open(f"/proc/{pid}/syscall").read().startswith(f"{call} ")

agent = subprocess.Popen(
    ["tsi-agent", "-k", str(agents.fileno()), "--", "sleep", "1000"],
    pass_fds=[agents.fileno()],
)
while not waits_in(agent.pid, 46):  # sendmsg()
    pass
command = open(f"/proc/{agent.pid}/task/{agent.pid}/children").read().strip()
while True:
    name = open(f"/proc/{command}/comm").read().strip()
    if name != "tsi-agent" or waits_in(command, 0):  # read()
        break
print(name)
agent.kill()
"""


@by_agents
def test_no_command_runs_before_its_agents_successor_could_have_it(world):
    """Or one that kills its agent at once ends without a status, and unserved."""
    assert world.run("python3", "-c", LATE_AGENT, tsi=False) == (0, "tsi-agent\n")


@pytest.mark.parametrize("address", [HOST4, POD4])
def test_what_is_the_guests_own_stays_inside(world, address):
    """Else a program reaches the host by an address that it takes for its own."""
    own, asked = f"{address}/32", len(world.router.asked)
    status, said = world.sh(
        f"ip addr add {own} dev lo 2> /dev/null;"
        f"nc -w 30 {address} {ECHO} < /dev/null 2>&1; echo $?;"
        f"[ {address} = {POD4} ] || ip addr del {own} dev lo"
    )
    assert (status, said.splitlines()[-1]) == (0, "1")
    assert "refused" in said
    assert len(world.router.asked) == asked


GREETED_LATE = f"""
import os, signal, socket, threading

def waits_in(tid, call):
    return open(f"/proc/self/task/{{tid}}/syscall").read().startswith(f"{{call}} ")

os.kill(os.getppid(), signal.SIGKILL)
there = ("{HOST4}", {ECHO})
waits = threading.Thread(target=socket.create_connection, args=[there])
waits.start()
while not waits_in(waits.native_id, 42):  # connect()
    pass
with socket.socket() as inside:
    inside.bind(("127.0.0.1", 0))
print("waits" if waits.is_alive() else "does not wait", flush=True)
waits.join()
"""


@by_agents
def test_a_host_that_greets_late_keeps_only_those_waiting_that_need_it(world):
    """The agent's successor has to open a stream."""
    world.service.greetings = 1

    def said(data):
        heard.extend(data)
        world.service.release()

    heard = bytearray()
    machine, guest = world.vm()
    argv = ("python3", "-c", GREETED_LATE)
    work = guest.run(argv, tsi=True, stdout=said, stderr=said)
    assert world.call(machine.watch(work)) == 0
    assert heard == b"waits\n"


@by_agents
def test_one_agent_after_another(world):
    fetch = f"wget -q -O - http://{HOST4}:{HTTP}/"
    status, said = world.sh("; ".join([f"{KILL}; {fetch}"] * 4))
    assert (status, said) == (0, "hello\n" * 4)


@by_agents
def test_a_connect_that_its_agent_died_in_ends(world):
    """The call may be what the agent died of, so that it isn't tried again."""
    never = f"nc -w 3 {HOST4} {SILENT} < /dev/null 2> /dev/null; echo $?"
    status, said = world.sh(f"({never}) & sleep 1; {KILL}; wait")
    assert status == 0
    assert said.endswith("1\n")


@by_agents
def test_agents_that_end_again_and_again_end_the_command(world):
    script = f"while :; do {KILL}; done"
    with pytest.raises(FastpathError, match="tsi-agent: killed by signal 9"):
        world.sh(script)
    assert world.sh("echo well") == (0, "well\n")
