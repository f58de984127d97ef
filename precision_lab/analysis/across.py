"""Two or more runs side by side: what is not alike, what changed first, variants, claims and ranges, against a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from precision_lab.analysis import changes, exactness
from precision_lab.analysis.alike import Difference, differences, facts, same_model, shared_cases, text_of
from precision_lab.analysis.changes import Change
from precision_lab.analysis.collected import collect
from precision_lab.analysis.exactness import Outcomes, Sketched, configuration, environment, sketched
from precision_lab.analysis.outcomes import Generations, distances
from precision_lab.analysis.pairing import Blocks, Pairing, Renaming, match
from precision_lab.analysis.summary import variants
from precision_lab.errors import InputError, nearest
from precision_lab.record.run import Run
from precision_lab.record.summary import VariantSummary


@dataclass(frozen=True)
class Beside:
    """A run beside the base. why: the reason why no array is compared moment by moment; empty if they are.

    expects_equality: whether machine, commit and software are the same. configured: by shared variant, what of its
    configuration differs. environment: what of machine and software differs. digests: by shared variant. sketched: of
    the pinned cases, None unless both have recorded the same.
    """

    pairing: Pairing
    is_same_model: bool
    expects_equality: bool
    configured: Mapping[str, Sequence[Difference]]
    environment: Sequence[Difference]
    why: str
    rows: pd.DataFrame
    changes: Sequence[Change]
    peaks: pd.DataFrame
    outcomes: pd.DataFrame
    shared: Sequence[str]
    digests: Mapping[str, Outcomes]
    sketched: Sketched | None

    @property
    def is_equal(self) -> bool:
        """Whether every compared array and outcome is the same, with at least one of them."""
        outcomes = self.outcomes[~self.outcomes["nonfinite"].astype(bool)] if len(self.outcomes) else self.outcomes
        same = all((outcomes["rel_l2"].fillna(0) == 0) & (outcomes["psnr_db"].fillna(float("inf")) == float("inf")))
        same &= all(each.equal == each.compared for each in self.digests.values())
        same &= self.sketched is None or self.sketched.first is None
        found = sum(change.compared for change in self.changes)
        return found > 0 and same and all(change.equal == change.compared for change in self.changes)


@dataclass(frozen=True)
class Across:
    """runs: by label, the base first. facts: rows (name, by label its text), those that differ first.

    results: by label and variant. variants: one row for each variant and run. claims: one row for each claim, changed
    verdicts first.
    """

    runs: Mapping[str, Run]
    facts: Sequence[tuple[str, bool, Sequence[str]]]
    results: Mapping[str, Mapping[str, VariantSummary]]
    variants: pd.DataFrame
    claims: pd.DataFrame
    beside: Mapping[str, Beside]

    @property
    def base(self) -> str:
        return next(iter(self.runs))


def compare(
    runs: Mapping[str, Run],
    settings: Mapping[str, Mapping[str, Any]],
    renamed: Sequence[Renaming] = (),
    blocks: Blocks | None = None,
) -> Across:
    """runs: by label, the base first. settings: the content of config.yaml of each.

    Raises InputError if no run has a variant in common with the base, or a renaming fits no array.
    """
    (base_name, base), *others = runs.items()
    names = set(base.manifest.variants)
    if not any(names & set(run.manifest.variants) for _, run in others):
        hint = nearest(next(iter(others[0][1].manifest.variants), ""), names)
        raise InputError(
            f"{base.path} and {others[0][1].path} have no variant in common. {hint}\n"
            "reference=RUN:VARIANT compares the outcomes of variants with different names"
        )
    about: dict[str, dict[str, str]] = {name: {} for name in runs}
    known = {name: facts(run, settings[name]) for name, run in runs.items()}
    results = {name: variants(run) for name, run in runs.items()}
    return Across(
        runs=runs,
        facts=_facts(known),
        results=results,
        variants=_by_variant(collect(runs, about, results), base_name),
        claims=_claims(runs),
        beside={
            name: _beside(base, run, differences(known[base_name], known[name]), renamed, blocks)
            for name, run in others
        },
    )


def _beside(
    base: Run, run: Run, differing: Sequence[Difference], renamed: Sequence[Renaming], blocks: Blocks | None
) -> Beside:
    pairing = match(base.layout, run.layout, (changes.places(base), changes.places(run)), renamed, blocks)
    is_same = same_model(base, run)
    cases = shared_cases(base, run)
    why = ""
    if not is_same and not renamed:
        why = "they are runs of different models"
    elif not cases:
        why = "their settings differ" if base.manifest.case != run.manifest.case else "no prompt and seed is shared"
    elif not pairing.pairs:
        why = "no recorded array has a counterpart"
    shared = [name for name in base.manifest.variants if name in run.manifest.variants]
    configured = {name: own for name in shared if (own := configuration(differing, name))}
    rows = changes.compared(base, run, Pairing({}, {}, "index", (0, 0)) if why else pairing, configured)
    outcomes = [_outcomes(base, run, name) for name in shared] if is_same else []
    outcomes = [frame for frame in outcomes if len(frame)]
    empty = pd.DataFrame(columns=["variant", "prompt_id", "seed", "rel_l2", "psnr_db", "ssim", "nonfinite"])
    return Beside(
        pairing=pairing,
        is_same_model=is_same,
        expects_equality=changes.expects_equality(base, run),
        configured=configured,
        environment=environment(differing),
        why=why,
        rows=rows,
        changes=_ordered(changes.first_changes(rows, base.layout), base),
        peaks=changes.peaks(base, run, pairing),
        outcomes=pd.concat(outcomes, ignore_index=True) if outcomes else empty,
        shared=shared,
        digests={name: found for name in shared if is_same and (found := exactness.outcomes(base, run, name)).compared},
        sketched=sketched(base, run) if is_same else None,
    )


def _ordered(found: Sequence[Change], base: Run) -> list[Change]:
    order = list(base.manifest.variants)
    return sorted(found, key=lambda change: order.index(change.variant))


def _outcomes(base: Run, run: Run, variant: str) -> pd.DataFrame:
    found = distances(Generations(base, variant), Generations(run, variant), shared_cases(base, run, variant, variant))
    return found.assign(variant=variant)


def _facts(known: Mapping[str, Mapping[str, Any]]) -> Sequence[tuple[str, bool, Sequence[str]]]:
    listed: list[tuple[str, bool, Sequence[str]]] = []
    for fact in dict.fromkeys(key for one in known.values() for key in one):
        texts = [text_of(one[fact]) if fact in one else "-" for one in known.values()]
        values = [one.get(fact) for one in known.values()]
        differs = any(
            value != values[0] and not (value in ({}, [], None) and values[0] in ({}, [], None)) for value in values
        )
        listed.append((fact, differs, texts))
    return [row for row in listed if row[1]] + [row for row in listed if not row[1]]


def _by_variant(table: pd.DataFrame, base: str) -> pd.DataFrame:
    """Rows of one variant together, those that the base has first."""
    order = {
        name: at for at, name in enumerate(dict.fromkeys([*table[table["run"] == base]["variant"], *table["variant"]]))
    }
    keyed = table.assign(at=table["variant"].map(order)).sort_values("at", kind="stable", ignore_index=True)
    lead = ["variant", "run"]
    return keyed[[*lead, *(name for name in keyed if name not in (*lead, "at"))]]


def _claims(runs: Mapping[str, Run]) -> pd.DataFrame:
    """id, text, changed, and by run `verdict LABEL` and `effect LABEL`; None where a run does not state the claim."""
    rows: dict[str, dict[str, Any]] = {}
    for label, run in runs.items():
        for claim in run.summary.claims if run.summary else ():
            row = rows.setdefault(claim.id, {"id": claim.id, "text": claim.text})
            row[f"verdict {label}"], row[f"effect {label}"] = claim.verdict, claim.effect.value
    columns = ["id", "text", "changed", *(f"{what} {label}" for label in runs for what in ("verdict", "effect"))]
    for row in rows.values():
        row["changed"] = len({row.get(f"verdict {label}") for label in runs}) > 1
    found = pd.DataFrame(list(rows.values()), columns=columns).astype(object)
    found = found.where(found.notna(), None)
    return found.sort_values(
        "changed", ascending=False, key=lambda values: values.astype(bool), kind="stable", ignore_index=True
    )
