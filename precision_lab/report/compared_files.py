"""What a comparison of runs leaves beside its page: tables, and a strict summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.across import Across, Beside
from precision_lab.analysis.pairing import summed_up
from precision_lab.record.files import write_atomically, write_json
from precision_lab.record.run import Run

SUMMARY = "summary.json"
SCHEMA_VERSION = 1


def write(found: Across, folder: Path) -> None:
    """Writes summary.json, sites.parquet and the other tables as CSV into `folder`."""
    for name, frame in _tables(found).items():
        write_atomically(folder / f"{name}.csv", lambda file, frame=frame: frame.to_csv(file, index=False))  # type: ignore[misc]
    sites = _sites(found)
    write_atomically(folder / "sites.parquet", lambda file: sites.to_parquet(file, index=False))
    write_json(folder / SUMMARY, summary(found))


def _tables(found: Across) -> dict[str, pd.DataFrame]:
    facts = pd.DataFrame(
        [(name, differs, *texts) for name, differs, texts in found.facts], columns=["fact", "differs", *found.runs]
    )
    changed = [
        {"run": label, "variant": c.variant, "compared": c.compared, "equal": c.equal, "beyond": c.beyond}
        | {
            f"{kind}_{name}": value
            for kind, at in (("first", c.first), ("beyond", c.first_beyond))
            for name, value in (at or {}).items()
        }
        for label, beside in found.beside.items()
        for c in beside.changes
    ]
    left = [
        (label, side, name, count)
        for label, beside in found.beside.items()
        for side, layout, places in (
            ("base", found.runs[found.base].layout, beside.pairing.left),
            (label, found.runs[label].layout, beside.pairing.right),
        )
        for name, count in summed_up(layout, places).items()
    ]
    outcomes = [beside.outcomes.assign(run=label) for label, beside in found.beside.items()]
    outcomes = [frame for frame in outcomes if len(frame)]
    return {
        "facts": facts,
        "variants": found.variants,
        "claims": found.claims,
        "changes": pd.DataFrame(changed, columns=None if changed else ["run", "variant"]),
        "unmatched": pd.DataFrame(left, columns=["run", "recorded_in", "array", "number"]),
        "outcomes": pd.concat(outcomes, ignore_index=True) if outcomes else pd.DataFrame(columns=["run", "variant"]),
    }


def _sites(found: Across) -> pd.DataFrame:
    frames = [beside.peaks.assign(run=label) for label, beside in found.beside.items()]
    return pd.concat(frames, ignore_index=True)


def summary(found: Across) -> dict[str, Any]:
    """summary.json of the comparison."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "runs",
        "base": found.base,
        "runs": {label: _about(run) for label, run in found.runs.items()},
        "differs": [name for name, differs, _ in found.facts if differs],
        "beside": {label: _summary(beside) for label, beside in found.beside.items()},
        "changed_verdicts": [str(row["id"]) for row in found.claims.to_dict("records") if row["changed"]],
    }


def _about(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "status": manifest.status,
        "model": manifest.checkpoint.name,
        "machine": manifest.environment.machine,
        "commit": manifest.environment.commit,
    }


def _summary(beside: Beside) -> dict[str, Any]:
    pairing = beside.pairing
    return {
        "matched": len(pairing.pairs),
        "of_base": len(pairing.pairs) + len(pairing.left),
        "of": len(pairing.pairs) + len(pairing.right),
        "blocks": pairing.blocks,
        "depths": list(pairing.depths),
        "expects_equality": beside.expects_equality,
        "configuration": {name: [asdict(each) for each in found] for name, found in beside.configured.items()},
        "environment": [asdict(each) for each in beside.environment],
        "digests": {name: _strict(asdict(found)) for name, found in beside.digests.items()},
        "sketches": None if beside.sketched is None else _strict(asdict(beside.sketched)),
        "equal": beside.is_equal,
        "not_compared": beside.why or None,
        "changes": [_strict(asdict(change)) for change in beside.changes],
    }


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
