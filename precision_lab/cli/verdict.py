"""The verdict of the gate: its record, the files gate.json, gate.xml and gate.md, and the lines on the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from precision_lab.cli.terminal import print_table

if TYPE_CHECKING:
    from precision_lab.analysis.gate.baseline import Choice
    from precision_lab.analysis.gate.judge import Limits
    from precision_lab.analysis.gate.violation import Findings
    from precision_lab.record.run import Run

SCHEMA_VERSION = 1
_SHOWN = 20
_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def conclude(run: Run, path: Path, choice: Choice, limits: Limits, findings: Findings, console: Console) -> bool:
    """Writes and prints the verdict on a run by the entry `choice` of the baseline at `path`; returns if it passed.

    The page is also appended to the file that the variable GITHUB_STEP_SUMMARY names.
    """
    record = _record(run, path, choice, limits, findings)
    _write(run.path, record, choice, findings)
    _print(run.path, record, findings, console)
    return bool(record["passed"])


def _record(run: Run, path: Path, choice: Choice, limits: Limits, findings: Findings) -> dict[str, Any]:
    """gate.json: strict JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": run.manifest.experiment,
        "backend": run.manifest.environment.backend,
        "run": str(run.path),
        "passed": not findings.violations,
        "baseline": {"path": str(path), "device": choice.entry.device, "mlx": choice.entry.mlx, "match": choice.match},
        "weights": run.manifest.checkpoint.weights,
        "limits": asdict(limits.on(run.manifest.environment.backend)),
        "checks": dict(findings.checks),
        "violations": [violation.to_json() for violation in findings.violations],
    }


def _write(run: Path, record: Mapping[str, Any], choice: Choice, findings: Findings) -> None:
    from precision_lab.analysis.gate import junit, markdown
    from precision_lab.record.files import write_json, write_text

    components = list(dict.fromkeys([*choice.entry.bands["component"], *choice.entry.sketches["component"]]))
    write_json(run / "gate.json", record)
    write_text(run / "gate.xml", junit.document(record["experiment"], findings, components))
    page = markdown.page(record, findings.violations)
    write_text(run / "gate.md", page)
    summary = os.environ.get(_STEP_SUMMARY)
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(page)


def _print(run: Path, record: Mapping[str, Any], findings: Findings, console: Console) -> None:
    from precision_lab.analysis.gate.markdown import HEADER, cells
    from precision_lab.analysis.gate.violation import by_site

    lines = by_site(findings.violations)
    if lines:
        title = f"{len(lines)} sites deviate; in order of execution, the first is nearest to the cause"
        print_table(console, HEADER, [cells(line) for line in lines[:_SHOWN]], title, folding=HEADER)
        if len(lines) > _SHOWN:
            console.print(f"and {len(lines) - _SHOWN} more sites in {run / 'gate.md'}", soft_wrap=True)
    baseline = record["baseline"]
    console.print(
        f"baseline: {baseline['path']}, {baseline['device']}, MLX {baseline['mlx']} ({baseline['match']})",
        soft_wrap=True,
    )
    console.print(
        "compared: " + ", ".join(f"{count} {kind}" for kind, count in record["checks"].items()), soft_wrap=True
    )
    console.print(
        f"gate: {'passed' if record['passed'] else 'FAILED'}, {run / 'gate.json'}, gate.xml, gate.md", soft_wrap=True
    )
