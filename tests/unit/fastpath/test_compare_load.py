"""Whether the machine was loaded, from /proc files written by hand."""

from __future__ import annotations

import asyncio

import pytest

from fastpath.commands.compare.load import Before, Ticks, Watch, slewed

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


def schedstat(proc, waited_ns):
    (proc / "77").mkdir(exist_ok=True)
    (proc / "77" / "schedstat").write_text(f"5 {waited_ns} 9\n")


def test_a_round_in_which_a_vcpu_waits_for_its_cpu_is_disturbed(proc):
    schedstat(proc, 1_000)
    watch = Watch({77, 78}, proc)
    watch.begin()
    schedstat(proc, 3_600_000_000_000)
    assert watch.end()
    (told,) = watch.warnings(7, 2)
    assert told.startswith("1 of 7 rounds were disturbed: in the worst, vCPUs")
    assert told.endswith("; 2 more rounds were measured")


def test_a_round_of_which_the_hypervisor_took_its_share_is_disturbed(proc):
    watch = Watch({77}, proc)
    watch.begin()
    (proc / "stat").write_text(STAT.format(user=180, steal=30))
    assert watch.end()
    assert "gave 20% of the CPUs' time to others" in watch.warnings(1, 0)[0]


def test_a_quiet_round_is_not_disturbed(proc):
    schedstat(proc, 1_000)
    watch = Watch({77}, proc)
    watch.begin()
    (proc / "stat").write_text(STAT.format(user=10_000, steal=11))
    assert not watch.end()
    assert watch.warnings(1, 0) == ()


def test_a_clock_that_is_slewed_is_said():
    assert slewed((0, 0), (1_000_000_000, 1_000_100_000)) == ()
    (told,) = slewed((0, 0), (1_001_000_000, 1_000_000_000))
    assert told == "the host's clock was slewed by 1000 ppm"
