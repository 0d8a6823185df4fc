"""Build the libFuzzer harnesses with ASan and UBSan and run each for some time.

`python tests/fuzz/run.py --seconds 60 [--corpus DIR]`: exit status 0 if none finds
anything. A finding stays in `out/fuzz/` with the command that repeats it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NATIVE = ROOT / "vhost_user" / "native"
OUT = ROOT / "out" / "fuzz"
HARNESSES = {
    "engine": [f"{name}.c" for name in ("mem", "ring", "conn", "vsock", "relay")]
    + ["control.c"],
}
CFLAGS = shlex.split(
    "-std=gnu11 -D_GNU_SOURCE -g -O1 -Wall -Wextra -Werror "
    "-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all"
)


def build(name: str) -> Path:
    """Compile one harness with the native files it needs."""
    OUT.mkdir(parents=True, exist_ok=True)
    binary = OUT / f"fuzz_{name}"
    sources = [HERE / f"fuzz_{name}.c", *(NATIVE / file for file in HARNESSES[name])]
    command = ["clang", *CFLAGS, f"-I{NATIVE}", *map(str, sources), "-o", str(binary)]
    subprocess.run(command, check=True)
    return binary


def fuzz(binary: Path, corpus: Path, seconds: int) -> bool:
    """Run one harness; return whether it found nothing."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [str(binary), f"-max_total_time={seconds}", "-max_len=4096"]
    command += ["-len_control=20", "-timeout=10", "-rss_limit_mb=1024", "-seed=1"]
    command += [f"-artifact_prefix={OUT}/", "-print_final_stats=1", str(corpus)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    stats = [x for x in done.stderr.splitlines() if x.startswith("stat::")]
    print(f"{binary.name}: exit {done.returncode}", *stats, sep="\n  ")  # noqa: T201
    if done.returncode:
        sys.stderr.write(done.stderr[-8000:])
    return done.returncode == 0


def main() -> int:
    """Build and run all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--corpus", type=Path, default=OUT / "corpus")
    options = parser.parse_args()
    results = [
        fuzz(build(name), options.corpus / name, options.seconds) for name in HARNESSES
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
