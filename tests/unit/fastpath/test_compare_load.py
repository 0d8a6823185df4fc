"""Whether the machine was loaded, from /proc files written by hand."""

from __future__ import annotations

import asyncio

import pytest

from fastpath.commands.compare.load import Before, Ticks

STAT = "cpu  {user} 0 20 700 5 0 5 {steal} 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "stat").write_text(STAT.format(user=100, steal=10))
    (tmp_path / "loadavg").write_text("0.40 3.00 3.00 1/200 4242\n")
    (tmp_path / "pressure" / "cpu").write_text(PRESSURE.format(5_000_000))
    return tmp_path


def look(proc, later=None):
    async def main():
        looking = asyncio.create_task(Before.look(proc, 0.05))
        await asyncio.sleep(0)
        if later is not None:
            (proc / "pressure" / "cpu").write_text(PRESSURE.format(later))
        return await looking

    return asyncio.run(main())


def test_a_quiet_machine_is_no_news(proc):
    before = look(proc)
    (proc / "stat").write_text(STAT.format(user=10_000, steal=10))
    assert before.warnings(Ticks.now(proc), cpus=2) == ()


def test_a_load_average_above_half_the_cpus_is_said(proc):
    (proc / "loadavg").write_text("1.20 0.00 0.00 1/200 4242\n")
    before = look(proc)
    assert before.warnings(before.ticks, cpus=4) == ()
    (told,) = before.warnings(before.ticks, cpus=2)
    assert "a load average of 1.2 on 2 CPUs" in told


def test_programs_that_wait_for_a_cpu_are_said(proc):
    before = look(proc, later=65_000_000)
    (told,) = before.warnings(before.ticks, cpus=2)
    assert "(PSI)" in told


def test_time_that_the_hypervisor_took_is_said(proc):
    before = look(proc)
    (proc / "stat").write_text(STAT.format(user=180, steal=30))
    (told,) = before.warnings(Ticks.now(proc), cpus=2)
    assert "gave 20% of the CPUs' time to others (steal)" in told


def test_a_kernel_without_pressure_or_steal_says_nothing_of_them(proc):
    (proc / "pressure" / "cpu").unlink()
    (proc / "stat").write_text("cpu  1 2 3 4\n")
    before = look(proc)
    assert before.waited is None
    assert before.warnings(Ticks.now(proc), cpus=2) == ()
