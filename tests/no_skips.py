"""A pytest plugin: a run in which something was skipped fails, unless it is on a short list of what may be.

What is not tested must not look tested.
"""

from __future__ import annotations

import pytest

ALLOWED = ("gpu",)
"""Marks of tests that may be skipped."""


class NoSkips:
    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and not any(mark in report.keywords for mark in ALLOWED):
            self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self.skipped[report.nodeid] = reason.removeprefix("Skipped: ")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("NOT TESTED, so that this run has failed", red=True)
            for name, reason in self.skipped.items():
                terminalreporter.line(f"{name}: {reason}")
            allowed = ", ".join(ALLOWED)
            terminalreporter.line(f"May be skipped: {allowed}. To leave tests out on purpose: pytest -m 'not …'.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NoSkips())
