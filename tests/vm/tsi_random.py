"""Random sequences of system calls, over TCP and over TSI, compared call by call.

`random/` makes them; a sequence is named by its seed, or by its seed and the steps of
it that are made. Both runs are in one guest: over TCP in a network namespace of its
own, with the peer there. A difference that `tsi_compat.toml` doesn't declare is looked
at again, with rests that no delay outlasts, and made as small as it gets.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.vm import programs, tsi_compat
from tests.vm.world import HOST4, HOST6, POD4

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PORT: Final = "7100"
STEPS: Final = 40
REST_MS: Final = 30
"""Of a second look, after each step that something may come of."""
NATIVE: Final = f"""
ip link set lo up
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo
tsi_random serve {PORT} {HOST4} > /tmp/serving &
until [ -s /tmp/serving ]; do sleep 0.1; done
tsi_random {HOST4} {HOST6} {PORT} "$@"
kill $!
rm /tmp/serving
"""

Calls = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Found:
    """Calls that gave another result over TSI."""

    sequence: str
    call: str
    native: str
    tsi: str
    before: Calls

    def __str__(self) -> str:
        """Say what was called, and how to see it again."""
        calls = "\n".join(f"    {call}: {result}" for call, result in self.before)
        return (
            f"{self.sequence}: {self.call}: {self.native} over TCP, {self.tsi} over "
            f"TSI, after\n{calls}"
        )


def compile_program(out: Path) -> Path:
    """Compile tsi_random; return `out`."""
    trace = [tsi_compat.TRACE / name for name in ("helpers.c", "peer.c")]
    programs.compile_c(out, *programs.c_files("random"), *trace)
    return out


@contextlib.contextmanager
def serving(program: Path, namespace) -> Iterator[None]:
    """Have the peer of what runs over TSI on the host."""
    command = namespace.command([str(program), "serve", PORT, POD4])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n"
            yield
        finally:
            server.kill()


class Runner:
    """Runs sequences both ways in a world's VM.

    Args:
        world: with the program as /bin/tsi_random.
        form: what TSI is here, as the table of rules calls it.
        steps: of a sequence.
    """

    def __init__(self, world, form: str, steps: int = STEPS) -> None:
        self._world = world
        self._rules = [each for each in tsi_compat.rules() if form in each.forms]
        self._steps = steps

    def cpu_s(self) -> float:
        """CPU time that the VM has taken."""
        machine, _ = self._world.vm()
        stat = Path(f"/proc/{machine.pid}/stat").read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def look(self, sequences: Sequence[str], rest_ms: int = 0) -> list[Found]:
        """Run sequences both ways; return the first difference of each that has one."""
        argv = (str(self._steps), str(rest_ms), *sequences)
        native = self._parse(
            self._world.run(
                *("unshare", "-n", "sh", "-ec", NATIVE, "sh", *argv), tsi=False
            )
        )
        tsi = self._parse(self._world.run("tsi_random", HOST4, HOST6, PORT, *argv))
        assert native.keys() == tsi.keys()
        found = (
            self._compare(name, calls, tsi[name]) for name, calls in native.items()
        )
        return [each for each in found if each]

    def hunt(self, sequences: Sequence[str]) -> list[Found]:
        """Run sequences; return differences that stay, as small as they get."""
        suspects = [each.sequence for each in self.look(sequences)]
        stay = self.look(suspects, REST_MS) if suspects else []
        return [self._shrink(each) for each in stay]

    def _parse(self, outcome: tuple[int, str]) -> dict[str, Calls]:
        status, said = outcome
        assert status == 0, said
        return tsi_compat.parse(said)

    def _compare(self, name: str, native: Calls, tsi: Calls) -> Found | None:
        for at, ((call, over_tcp), (called, over_tsi)) in enumerate(
            zip(native, tsi, strict=False)
        ):
            if call != called:
                return Found(name, call, over_tcp, f"{called} next", native[:at])
            if over_tcp == over_tsi:
                continue
            words = call.split(" ", 2)[2] if " " in call else call
            rule = next(
                (
                    each
                    for each in self._rules
                    if each.allows(words, over_tcp, over_tsi)
                ),
                None,
            )
            if rule is None:
                return Found(name, call, over_tcp, over_tsi, native[:at])
            if rule.ends:
                break
        return None

    def _shrink(self, found: Found) -> Found:
        """Leave out steps, halves of them first, as long as some difference stays."""
        seed, _, listed = found.sequence.partition(":")
        steps = listed.split(",") if listed else list(map(str, range(self._steps)))
        last = found.call.split()[0]
        if last in steps:
            steps = steps[: steps.index(last) + 1]
        size = len(steps) // 2
        while size:
            tries = [
                ",".join(steps[:at] + steps[at + size :])
                for at in range(0, len(steps), size)
            ]
            tries = [f"{seed}:{each}" for each in tries if each]
            smaller = self.look(tries, REST_MS) if tries else []
            if smaller:
                found = smaller[0]
                steps = found.sequence.partition(":")[2].split(",")
                size = min(size, len(steps) // 2)
            else:
                size //= 2
        return found
