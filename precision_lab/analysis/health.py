"""Health of a run: what makes its numbers meaningless as a whole, from its tables and manifest alone.

A broken checkpoint or pipeline still gives a complete run with plausible tables. These checks find what it cannot hide:
weights and a reference that are not finite, outcomes that are constant, and outcomes that do not depend on the prompt
or on the seed. Values that are not finite in a variant other than the reference are a result, not a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from precision_lab.numerics.pictures import MEASURES
from precision_lab.record.run import Run
from precision_lab.record.summary import HealthEntry

AGAINST_REFERENCE = frozenset({"base_drift", "basin_left", "basin_step", "drift", "kl", "psnr_db", "ssim", *MEASURES})
"""The metrics that are distances from the reference."""

_SHOWN = 4


def health(run: Run) -> list[HealthEntry]:
    """All reasons to doubt the run, those that concern most of it first; empty where all is well."""
    weights = [HealthEntry("weights", sentence) for sentence in run.manifest.unsound_weights]
    references = dict.fromkeys([run.reference, *(entry.reference for entry in run.manifest.variants.values())])
    unfit = [fault for name in references if (fault := _reference_fault(run, name))]
    finite = run.generations[run.generations["num_nonfinite"].eq(0) & run.generations["digest"].notna()]
    constant = finite["is_constant"].fillna(False).astype(bool)
    entries = [*weights, *unfit, *_constant(finite[constant])]
    for kind, others, rows in (
        ("prompts", "seed", finite[~constant]),
        ("seeds", "prompt_id", finite[~constant & (finite["what"] == "picture")]),
    ):
        entries += _identical(kind, others, rows)
    return entries


def reference_fault(run: Run, variants: Iterable[str] = ()) -> HealthEntry | None:
    """A reference of one of `variants`, or of the run, with results or pictures that are not finite."""
    entries = run.manifest.variants
    named = dict.fromkeys([run.reference, *(entries[name].reference for name in variants if name in entries)])
    return next((fault for name in named if (fault := _reference_fault(run, name))), None)


def _reference_fault(run: Run, name: str) -> HealthEntry | None:
    rows = run.generations[run.generations["variant"] == name]
    bad = rows[rows["num_nonfinite"] > 0]
    if bad.empty:
        return None
    cases = _cases(bad)
    which = "the reference" if name == run.reference else name
    text = f"{which} is not finite in {len(bad)} of {len(rows)} generations ({_named(cases)})"
    return HealthEntry("reference", f"{text}: nothing can be judged against it", name, cases)


def _constant(rows: pd.DataFrame) -> Iterator[HealthEntry]:
    for (variant, what), group in rows.groupby(["variant", "what"], sort=False):
        cases, values = _cases(group), np.unique(group[["least", "greatest"]].to_numpy(float))
        value = f", every value is {values[0]:g}" if len(values) == 1 else ""
        yield HealthEntry("constant", f"{variant}: constant {what} ({_named(cases)}{value})", str(variant), cases)


def _identical(kind: str, others: str, rows: pd.DataFrame) -> Iterator[HealthEntry]:
    """Outcomes of one variant that are equal bit for bit, although only `kind` is different."""
    column = "prompt_id" if kind == "prompts" else "seed"
    for (variant, what), of_variant in rows.groupby(["variant", "what"], sort=False):
        alike = of_variant.groupby([others, "digest"], sort=False)[column].transform("nunique") > 1
        if alike.any():
            cases = _cases(of_variant[alike])
            text = f"{variant}: identical {what}s for different {kind} ({_named(cases)})"
            yield HealthEntry(kind, text, str(variant), cases)


def _cases(rows: pd.DataFrame) -> Sequence[tuple[int, int]]:
    pairs = zip(rows["prompt_id"], rows["seed"], strict=True)
    return tuple(sorted((int(prompt), int(seed)) for prompt, seed in pairs))


def _named(cases: Sequence[tuple[int, int]]) -> str:
    named = [f"prompt {prompt} seed {seed}" for prompt, seed in cases[:_SHOWN]]
    return ", ".join(named) + (f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else "")
