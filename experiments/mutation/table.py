"""Verdicts as text: the number of mutants killed by each check, and a list of the mutants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.mutation.trial import GATE, PARITY, PASSED, REFUSED, STILLBORN, SURVIVED, TIMEOUT

Record = Mapping[str, Any]


def markdown(records: Sequence[Record]) -> str:
    """A summary, and one table per verdict, with survivors first."""
    counts = Counter(record["by"] for record in records)
    live = [record for record in records if record["by"] != STILLBORN]
    killed = len(live) - counts[SURVIVED] - counts[PASSED]
    share = f"{100 * killed / len(live):.1f} %" if live else "-"
    summary = (
        f"{len(live)} mutants that run, {killed} killed ({share}): by the gate {counts[GATE]}, "
        f"by a parity test {counts[PARITY]}, refused as input {counts[REFUSED]}, out of time {counts[TIMEOUT]}. "
        f"Survivors: {counts[SURVIVED]}. Besides, {counts[STILLBORN]} raised at once and are not counted."
    )
    text = [summary]
    titles = {
        SURVIVED: "Survivors",
        PASSED: "Passed by the gate, the parity tests are still to come",
        PARITY: "Passed by the gate, killed by a parity test",
        GATE: "Killed by the gate",
        REFUSED: "Refused as input",
        TIMEOUT: "Out of time",
    }
    for verdict, title in titles.items():
        chosen = [record for record in records if record["by"] == verdict]
        if chosen:
            text += [f"### {title}: {len(chosen)}", _table(chosen)]
    return "\n\n".join(text) + "\n"


def _table(records: Sequence[Record]) -> str:
    rows = ["| place | operator | change | evidence | s |", "|---|---|---|---|---|"]
    for record in sorted(records, key=lambda record: (record["file"], record["line"])):
        place = f"{record['file'].rpartition('/')[2]}:{record['line']}"
        change = "<br>".join(f"`{line}`" for line in record["diff"].splitlines()).replace("|", "\\|")
        rows.append(f"| {place} | {record['operator']} | {change} | {record['evidence']} | {record['seconds']:.0f} |")
    return "\n".join(rows)
