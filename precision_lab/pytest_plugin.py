"""A pytest plugin that tests the ranges of a model's activations for regressions, in any project that uses MLX.

    def test_forward(activation_ranges):
        with activation_ranges(model):
            model(tokens)

pytest loads this module in every project of the environment, so it imports nothing heavy before the fixture is used.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import mlx.nn as nn
    import pandas as pd

    from precision_lab.analysis.gate.violation import Findings
    from precision_lab.analysis.stored_ranges import StoredRanges
    from precision_lab.lab.capture import Capture

OPTION = "--update-activation-ranges"
FOLDER = "activation_ranges"
_STORED = "activation_ranges_stored"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("activation ranges").addoption(
        OPTION,
        action="store_true",
        help="store the activation ranges that the tests see, and replace those stored before",
    )


@pytest.fixture
def activation_ranges(request: pytest.FixtureRequest) -> ActivationRanges:
    """Compares the ranges, dtypes and non-finite counts of a model's activations with those stored for the test."""
    return ActivationRanges(request.node, request.config.getoption(OPTION))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stored = [
        text
        for report in terminalreporter.getreports("passed")
        for name, text in report.user_properties
        if name == _STORED
    ]
    if stored:
        terminalreporter.section("activation ranges")
        for text in stored:
            terminalreporter.write_line(str(text))


class ActivationRanges:
    """The value of the fixture: a context manager, with `check` for the simple case of one call."""

    def __init__(self, test: pytest.Item, update: bool):
        self._test = test
        self._update = update
        self._used: set[str] = set()

    @contextmanager
    def __call__(
        self,
        model: nn.Module,
        sites: str | Iterable[str] | None = None,
        *,
        name: str | None = None,
        margin: float = 0.5,
        tolerance: float | None = None,
    ) -> Iterator[Capture]:
        """Captures the outputs of the modules of `model` in the block; fails the test if they left the stored ranges.

        sites: patterns of modules. The default, all modules, is best: the report begins with the first deviation.
        name: distinguishes several uses in one test.
        margin: the allowed distance of the largest magnitude and the rms from the stored range, in bits (log2).
        tolerance: also compares every output with a stored sketch, and allows this relative deviation (L2). Ranges are
        nearly the same without a rotary embedding or with another eps; sketches are not.

        Ranges are stored per backend (cpu, metal, cuda). On another backend, the test fails until ranges are stored for
        it too. Inputs must be the same each time, so seed all random numbers.
        """
        from precision_lab.lab.capture import EVERYTHING, capture
        from precision_lab.probes.sketches import Sketches

        if tolerance is not None and not _is_tolerance(tolerance):
            pytest.fail(f"tolerance is {tolerance!r}, expected a number of at least 0", pytrace=False)
        test = self._key(name)
        if tolerance is None:
            with capture(model, sites) as seen:
                yield seen
            sketched = None
        else:
            with capture(model, sites) as seen, capture(model, sites, [Sketches([EVERYTHING])]) as further:
                yield seen
            sketched = _by_call(further)
        self._compare(test, _by_call(seen), margin, sketched, tolerance)

    def check(self, model: nn.Module, *inputs: Any, **options: Any) -> Any:
        """Checks `model(*inputs)` and returns its output; the options are those of the context manager."""
        with self(model, **options):
            return model(*inputs)

    def _key(self, name: str | None) -> str:
        test = self._test.nodeid.partition("::")[2] + (f" [{name}]" if name else "")
        if test in self._used:
            pytest.fail(f"activation_ranges is used twice in {test}: give each use a name=", pytrace=False)
        self._used.add(test)
        return test

    def _compare(
        self, test: str, table: pd.DataFrame, margin: float, sketched: pd.DataFrame | None, tolerance: float | None
    ) -> None:
        from importlib.metadata import version

        from precision_lab.analysis.gate import sketches
        from precision_lab.analysis.gate.bands import Margin, judge, learn
        from precision_lab.analysis.gate.rows import UNKNOWN, WITHOUT_COMPONENTS
        from precision_lab.analysis.gate.violation import Findings
        from precision_lab.analysis.stored_ranges import RangeFile, StoredRanges
        from precision_lab.device.environment import backend, device_name

        file = RangeFile(self._test.path.parent / FOLDER / f"{self._test.path.stem}.json")
        every, here = file.of(test), backend()
        learned = None if sketched is None else sketches.learn(sketched, WITHOUT_COMPONENTS)
        now, stored = StoredRanges(learn(table), device_name(), version("mlx"), learned), every.get(here)
        limits = Margin(bits=margin, spread=0.0)
        findings = judge(stored.bands, table, limits, WITHOUT_COMPONENTS) if stored else Findings()
        if stored and stored.sketches is not None and sketched is not None and tolerance is not None:
            exact = sketches.judge(stored.sketches, sketched, tolerance, 0.0, WITHOUT_COMPONENTS)
            exact.violations = [replace(violation, variant=UNKNOWN) for violation in exact.violations]
            findings.add(exact)
        if self._update:
            file.store(test, here, now)
            changed = f"{_count(findings)} sites were outside the old ranges" if stored else "none were stored before"
            text = f"{self._shown(file.path)}: {test}, {here}, {now.bands['site'].nunique()} sites, {changed}"
            self._test.user_properties.append((_STORED, text))
        elif stored is None:
            pytest.fail(self._nothing_stored(test, file.path, every, here), pytrace=False)
        elif tolerance is not None and stored.sketches is None:
            shown = self._shown(file.path)
            pytest.fail(
                f"Ranges of {test} are stored for {here}, but no sketches, which tolerance= needs ({shown}).\n"
                f"Store them, and commit the file: {self._command()}",
                pytrace=False,
            )
        elif findings.violations or not findings.checks.total():
            head = (
                f"Activation ranges of {test} are not those in {self._shown(file.path)} ({here}{_other(stored, now)})."
            )
            pytest.fail(f"{head}\n{self._difference(findings, len(now.bands))}", pytrace=False)

    def _difference(self, findings: Findings, compared: int) -> str:
        from precision_lab.analysis.gate.markdown import text_table

        count = _count(findings)
        return (
            f"{count} of {compared} sites deviate, in order of execution: the first is nearest the cause.\n"
            f"\n{text_table(findings.violations, shown=count if self._test.config.get_verbosity() > 1 else 20)}\n"
            f"\nIf this is meant: {self._command()}"
        )

    def _nothing_stored(self, test: str, path: Path, every: dict[str, StoredRanges], here: str) -> str:
        only = f", only for {' and '.join(every)}: ranges are compared on the same backend" if every else ""
        return (
            f"No activation ranges of {test} are stored for {here}{only} ({self._shown(path)}).\n"
            f"Store the ranges of this code, and commit the file: {self._command()}"
        )

    def _command(self) -> str:
        return f"pytest {shlex.quote(self._test.nodeid)} {OPTION}"

    def _shown(self, path: Path) -> str:
        root = self._test.config.rootpath
        return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _is_tolerance(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _by_call(seen: Capture) -> pd.DataFrame:
    """The table of a capture; the calls of a site are the cases that are compared one by one."""
    table = seen.table()
    return table.assign(case="call " + table["call"].astype(str))


def _count(findings: Findings) -> int:
    """The number of deviating sites."""
    from precision_lab.analysis.gate.violation import by_site

    return len(by_site(findings.violations))


def _other(stored: StoredRanges, now: StoredRanges) -> str:
    """The device and MLX version on which the ranges were stored, if they differ from the current ones."""
    parts: Sequence[tuple[str, str, str]] = (("", stored.device, now.device), ("MLX ", stored.mlx, now.mlx))
    different = [f"{what}{before}, here {after}" for what, before, after in parts if before != after]
    return f"; stored on {'; '.join(different)}" if different else ""
