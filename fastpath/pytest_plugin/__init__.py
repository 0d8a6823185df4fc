"""microVMs as fixtures of pytest; `pip install vsock-fastpath` is all that they need.

    def test_curl_reaches_a_server(microvm):
        with microvm.listen() as server:
            client = microvm.start("nc", *map(str, server.address))
            ...

docs/pytest.md has the fixtures. What is heavy is imported when a test boots a microVM:
pytest loads this in every session of an environment that has the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from fastpath.pytest_plugin.factory import VmFactory
    from fastpath.pytest_plugin.loop import LoopThread
    from fastpath.pytest_plugin.microvm import MicroVm
    from fastpath.vm.spec import Accelerator
    from fastpath.ztunnel.process import RunningSandbox, Ztunnel

FACTORIES: Final = pytest.StashKey[list["VmFactory"]]()
"""Those that may have microVMs now, of the whole session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("fastpath", "microVMs (vsock-fastpath)")
    group.addoption(
        "--fastpath-accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="what runs the guests' instructions (default: %(default)s)",
    )
    group.addoption(
        "--fastpath-artefacts",
        metavar="DIR",
        help="keep consoles and access logs of the microVMs of tests that fail",
    )
    group.addoption(
        "--fastpath-required",
        action="store_true",
        help="fail, not skip, where no microVM can run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the list of factories."""
    config.stash[FACTORIES] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what microVMs said to the report of a test that failed."""
    report = yield
    factories = item.config.stash[FACTORIES]
    if report.failed and report.when != "teardown" and factories:
        from fastpath.pytest_plugin import artefacts

        vms = [vm for factory in factories for vm in factory.vms]
        artefacts.add(report, vms, item.config.getoption("--fastpath-artefacts"))
    return report


@pytest.fixture(scope="session")
def fastpath_accelerator(pytestconfig: pytest.Config) -> Accelerator:
    """What runs the guests; where none can run, tests are skipped with the reason."""
    from fastpath.vm import accel

    try:
        return accel.choose(pytestconfig.getoption("--fastpath-accel"))
    except FastpathError as error:
        if pytestconfig.getoption("--fastpath-required"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def fastpath_loop() -> Iterator[LoopThread]:
    """The event loop that all microVMs share, on a thread of its own."""
    from fastpath.pytest_plugin.loop import LoopThread

    with LoopThread() as loop:
        yield loop


@pytest.fixture
def vm_factory(
    pytestconfig: pytest.Config,
    fastpath_loop: LoopThread,
    fastpath_accelerator: Accelerator,
) -> Iterator[VmFactory]:
    """Boots microVMs, which end with the test."""
    yield from _factory(pytestconfig, fastpath_loop, fastpath_accelerator)


@pytest.fixture(scope="session")
def session_vm_factory(
    pytestconfig: pytest.Config,
    fastpath_loop: LoopThread,
    fastpath_accelerator: Accelerator,
) -> Iterator[VmFactory]:
    """Boots microVMs that tests share; they end with the session."""
    yield from _factory(pytestconfig, fastpath_loop, fastpath_accelerator)


@pytest.fixture
def microvm(vm_factory: VmFactory) -> MicroVm:
    """A microVM of the test's own."""
    return vm_factory()


@pytest.fixture(scope="session")
def session_microvm(session_vm_factory: VmFactory) -> MicroVm:
    """A microVM that tests share: it boots once a session, or once a worker."""
    return session_vm_factory()


@pytest.fixture
def ztunnel(microvm: MicroVm) -> Ztunnel:
    """The ztunnel of `microvm`: its counters, its configuration."""
    return microvm.ztunnel


@pytest.fixture
def sandbox(microvm: MicroVm) -> RunningSandbox:
    """What runs on the host for `microvm`: device, TSI service."""
    return microvm.ztunnel.sandboxes[microvm.name]


def _factory(
    config: pytest.Config, loop: LoopThread, accelerator: Accelerator
) -> Iterator[VmFactory]:
    from fastpath.pytest_plugin.factory import VmFactory

    with VmFactory(loop, accelerator) as factory:
        config.stash[FACTORIES].append(factory)
        try:
            yield factory
        finally:
            config.stash[FACTORIES].remove(factory)
