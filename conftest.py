"""What holds for every test of the house: a skip is either expected, with its reason listed, or a failure in CI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

EXPECTED = Path(__file__).parent / "tests" / "expected_skips.txt"
SLOW_ROOMS = ("kube", "flow", "runs", "browser")
"""Begun first, in this order, so that the workers end together instead of one waiting for a whole demo."""
ONE_CLUSTER = "tests/kube/"
"""Whose files one worker takes: a Kubernetes control plane for each would cost more than it saves."""
_unexpected: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow rooms first; within a room the order stays."""
    tests = Path(__file__).parent / "tests"
    places = {tests / room: place for place, room in enumerate(SLOW_ROOMS)}
    items.sort(key=lambda item: places.get(item.path.parent, len(places)))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist need not be there
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile: a file a worker, and one for all files of ONE_CLUSTER."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ONE_CLUSTER if nodeid.startswith(ONE_CLUSTER) else super()._split_scope(nodeid)

    return Rooms(config, log)


def _expected_reasons() -> list[str]:
    lines = EXPECTED.read_text().splitlines() if EXPECTED.exists() else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collects each skip whose reason no line of tests/expected_skips.txt explains."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(expected in reason for expected in _expected_reasons()):
        _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI an unexpected skip fails the run."""
    if _unexpected and os.environ.get("CI") and exitstatus == 0 and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names the unexpected skips at the end of the run."""
    if _unexpected:
        terminalreporter.section("skips that nobody expected")
        for line in _unexpected:
            terminalreporter.line(line)
