"""Build the fuzzing harnesses with ASan and UBSan and run them, one on each CPU.

`python tests/fuzz/run.py --seconds 60 [--only NAME] [--corpus DIR]`: exit status 0 if
none finds anything. A finding stays in `out/fuzz/`, and the command that repeats it
is the last line.

A harness in C is one libFuzzer binary with the native files it needs; one in Python
runs under Atheris, with the whole native module built for it in a copy of the
packages (`build/fuzz`).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "vhost_user" / "native"
RINGS = ROOT / "lib" / "ring"
OUT = ROOT / "out" / "fuzz"
COPY = ROOT / "build" / "fuzz"

# Linked with all of native/. A header of the harness comes before all of them.
C_HARNESSES = ["engine", "ring", "shm", "hbone"]
PYTHON_HARNESSES = ["session", "tsi", "dns", "frames"]
HARNESSES = [*C_HARNESSES, *PYTHON_HARNESSES]

SEEDS = {
    "engine": [
        # a connection to a socket of the host's, with payload both ways
        "40 01000000 0700 07 010018ff00 07 0302 01000500 07 010008ff10 07 0304 07",
        # one whose socket reads no more, while the guest goes on writing
        "40 01000000 0700 07 0100187f00 0305 07 01000aff00 07 01003600 07",
        # one whose socket is closed before the guest writes
        "50 01080000 0700 07 010818ff00 0306 07 01081eff00 07",
    ],
    "shm": [
        # a client writes, the process takes it, reads and writes back
        "01 00 00 0200 00 41 41 00 02f0 02f0 02f3 00 47 47 0f",
        # one that is killed with bytes unread, and one that resets
        "01 00 00 0200 00 c1 00 021c 00 01 00 00 0200 00 41 00 02a7 00 47",
        # positions of both sides that change as they are loaded
        "01 00 00 0200 00 41 020f0712345678 00 02f0 02f3 00 47 02ff07deadbeef 00",
    ],
    "hbone": [
        # a gate: SETTINGS, a CONNECT, an echo behind it, DATA and its end
        "01 0004000000 0f 0301 0f 0604 0f 0000000105 68656c6c6f 0f 09 0000010100 0f",
        # a gate: what is decided about a CONNECT, and one that says the same
        "01 0004000000 0f 0301 0f 0614 0f 0303 0f 0000030105 68656c6c6f 0f ec 0305 0f",
        # a pool: SETTINGS, 200, bytes of the client, DATA, RST_STREAM
        "00 0004000000 0f 0381 0f 0700 0f 0000000105 68656c6c6f 0f 0003000104 0008 0f",
        # a gate: what a stream does wrong behind its end, and one that is skipped
        "01 0004000000 0f 0301 0f 0680 0f 0d01 01 0f 0d00 01 0f 0305 0f 0303 0f",
        # a gate: WINDOW_UPDATE of 0, PRIORITY of 4 bytes, trailers in two frames
        "01 0004000000 0f 0301 0303 0305 0f 0d24 01 0d16 03 0d0d 05 0d14 05 0f",
        # a pool: DATA before the answer, and behind an interim one
        "00 0004000000 0f 0d00 01 0f 0a 0f 0d09 03 0d00 03 0f",
        # a gate: KeyUpdates both ways, a ticket in two parts, close_notify
        "01 0004000000 0f 0e03 00 0f 0e07 00 0f 0301 0f 0e03 00 0f 2e00 15 0100 0f",
        # a pool: a ticket in two records, an empty record, bytes that are none
        "00 0004000000 0f 5e02 00 0400000201 0f 1e02 00 02 0f 0e00 17 0f 2e01 00 1703",
    ],
}
"""What a corpus begins with; a harness in Python has its own."""

CFLAGS = shlex.split(
    "-std=gnu11 -D_GNU_SOURCE -g -O1 -Wall -Wextra -Werror "
    "-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
)
LIMITS = ["-max_len=4096", "-len_control=20", "-timeout=20", "-rss_limit_mb=2048"]
EXECUTIONS = re.compile(r"^stat::number_of_executed_units: *(\d+)$", re.MULTILINE)


def build_c(name: str) -> tuple[list[str], dict[str, str]]:
    """Compile one harness; return how to start it: command and environment."""
    binary = OUT / f"fuzz_{name}"
    sources = [
        *sorted(set(NATIVE.rglob("*.c")) - {NATIVE / "maker/main.c"}),
        *RINGS.glob("*.c"),
    ]
    command = ["clang", *CFLAGS, f"-I{NATIVE}", f"-I{RINGS}"]
    command.append(str(HERE / f"fuzz_{name}.c"))
    hook = HERE / f"fuzz_{name}.h"
    if hook.exists():
        command += ["-include", str(hook)]
    command += [*map(str, sources), "-lssl", "-lcrypto"]
    command += ["-lIPSec_MB", "-lnghttp2"]
    subprocess.run([*command, "-o", str(binary)], check=True)
    return [str(binary)], {}


def build_package() -> None:
    """Build the copy of the packages that all harnesses in Python import."""
    shutil.rmtree(COPY, ignore_errors=True)
    ignore = shutil.ignore_patterns("_vu*.so", "__pycache__")
    for package in ("vhost_user", "fastpath", "lib"):
        shutil.copytree(ROOT / package, COPY / package, ignore=ignore)
    sanitize = {"CC": "clang", "VU_SANITIZE": "fuzzer-no-link,address,undefined"}
    subprocess.run(
        [sys.executable, COPY / "vhost_user" / "native" / "build.py"],
        check=True,
        env=os.environ | sanitize,
        capture_output=True,
    )


def start_python(name: str) -> tuple[list[str], dict[str, str]]:
    """Return how to start a harness in Python: command and environment."""
    import atheris

    environment = {
        "LD_PRELOAD": f"{atheris.path()}/asan_with_fuzzer.so",
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython's own are many
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": f"{COPY}:{ROOT}",
    }
    return [sys.executable, str(HERE / f"fuzz_{name}.py")], environment


def fuzz(name: str, corpus: Path, seconds: int) -> bool:
    """Build and run one harness; return whether it found nothing."""
    start = build_c if name in C_HARNESSES else start_python
    command, environment = start(name)
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(SEEDS.get(name, [])):
        (corpus / f"seed-{i}").write_bytes(bytes.fromhex(seed))
    before = set(OUT.glob(f"{name}-*"))
    options = [f"-max_total_time={seconds}", "-seed=1", "-print_final_stats=1"]
    done = subprocess.run(
        [*command, *LIMITS, *options, f"-artifact_prefix={OUT}/{name}-", str(corpus)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | environment,
    )
    executions = EXECUTIONS.search(done.stderr)
    count = executions[1] if executions else "no"
    print(f"fuzz_{name}: {count} executions in {seconds} s, exit {done.returncode}")  # noqa: T201
    if done.returncode == 0 and executions:
        return True
    sys.stderr.write(done.stderr[-8000:])
    shell = " ".join(f"{key}={value}" for key, value in environment.items())
    for found in sorted(set(OUT.glob(f"{name}-*")) - before):
        sys.stderr.write(f"repeat: {shell} {' '.join(command)} {found}\n".lstrip())
    return False


def main() -> int:
    """Build and run them; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all together")
    parser.add_argument("--only", choices=HARNESSES, action="append")
    parser.add_argument("--corpus", type=Path, default=OUT / "corpus")
    options = parser.parse_args()
    names = options.only or HARNESSES
    seconds = max(1, options.seconds // len(names))
    OUT.mkdir(parents=True, exist_ok=True)
    if set(names) & set(PYTHON_HARNESSES):
        build_package()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        one = partial(fuzz, seconds=seconds)
        results = pool.map(one, names, [options.corpus / name for name in names])
        return 0 if all(list(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
