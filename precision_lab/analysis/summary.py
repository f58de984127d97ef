"""summary.json: the results of each variant and claim of a run, from its tables and pictures alone."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from precision_lab.analysis import basin, factorial, pictures
from precision_lab.analysis.claims import Claim, Verdict, judge
from precision_lab.analysis.health import health
from precision_lab.analysis.measures import divergence, final_drift
from precision_lab.analysis.near_misses import near_misses
from precision_lab.analysis.ratios import over_rounds
from precision_lab.numerics.intervals import latency_verdict, simultaneous_confidence
from precision_lab.numerics.pictures import MEASURES
from precision_lab.record.address import DEFAULT_PORT
from precision_lab.record.beside import run_there, shared
from precision_lab.record.layout import Layout
from precision_lab.record.manifest import VariantEntry
from precision_lab.record.run import Run
from precision_lab.record.summary import (
    NOT_RECORDED,
    ClaimEntry,
    Dtypes,
    FirstNonfinite,
    Latency,
    NearMiss,
    NearMisses,
    Quantity,
    Summary,
    VariantSummary,
)

NEAREST = 5
"""The number of near misses of a variant that are described; all are counted."""

_NOT_MEASURED = Quantity(None, "not measured")

_PLACE = ("component", "site", "port", "branch", "step", "prompt_id", "seed")
_OF_ARRAYS = ("variant", *_PLACE, "dtype", "order", "amax", "num_nan", "num_inf")
"""The columns that the summary of a variant reads; the others would be copied."""


def summarize(run: Run | Path, beside: ProcessPoolExecutor | None = None) -> Summary:
    """Judges the tables of a run and writes its summary.json. Raises InputError if `run` is no run folder.

    beside: does a part of the work, see `record.beside`.
    """
    run = Run.open(run) if isinstance(run, Path) else run
    manifest = run.manifest
    names = list(manifest.variants)
    results = shared(names, partial(_variant, run), _variant_there, run.path, beside)
    claims = [Claim.from_dict(raw) for raw in manifest.claims]
    entries = shared(claims, partial(_judged, run), _judged_there, run.path, beside)
    summary = Summary(
        experiment=manifest.experiment,
        reference=run.reference,
        variants=dict(zip(names, results, strict=True)),
        claims=list(entries),
        factorials=factorial.records(run),
        weights=manifest.checkpoint.weights,
        path=manifest.checkpoint.path,
        notes=manifest.checkpoint.notes,
        health=health(run),
    )
    summary.write(run.path)
    return summary


def variants(run: Run) -> dict[str, VariantSummary]:
    """The results of each variant of a run, from its tables and pictures; nothing is written."""
    return {name: _variant(run, name) for name in run.manifest.variants}


def exit_code(run: Run, summary: Summary) -> int:
    """1 if there are `failures`, else 0."""
    return int(bool(failures(run, summary)))


def failures(run: Run, summary: Summary) -> list[str]:
    """Why the run is an error, a line for each reason: weights or a reference that are unsound, a variant that raised
    or broke its expectation, a gated claim that was refuted or could not be judged. An interval that decides nothing is
    no error."""
    gated = {claim.id for claim in map(Claim.from_dict, run.manifest.claims) if claim.gate}
    lines = [entry.text for entry in summary.fatal]
    for name, variant in summary.variants.items():
        if variant.error:
            lines.append(f"variant {name} failed: {variant.error}")
        elif not variant.expectation_met:
            count = variant.num_nonfinite
            found = count.reason if count.value is None else f"{count.value} values that are not finite"
            lines.append(f"variant {name} was expected {variant.expect}: {found}")
    for claim in summary.claims:
        if claim.id in gated and claim.verdict == "refuted":
            lines.append(f"claim {claim.id} is refuted")
        elif claim.id in gated and claim.verdict_reason:
            lines.append(f"claim {claim.id} could not be judged: {claim.verdict_reason}")
    return lines


def claim_entry(claim: Claim, verdict: Verdict) -> ClaimEntry:
    """A claim with its verdict, as summary.json and device.json list it."""
    bounded = math.isfinite(verdict.lo)
    return ClaimEntry(
        id=claim.id,
        text=claim.text,
        source=claim.source,
        verdict=verdict.verdict,
        metric=claim.metric,
        relation=claim.relation,
        subject=claim.subject,
        against=claim.against or None,
        bound=claim.bound,
        effect=Quantity.of(verdict.effect, verdict.reason or "undefined"),
        noise_floor=Quantity.of(verdict.noise_floor, "not measured"),
        ci95=(verdict.lo, verdict.hi) if bounded else None,
        ci95_reason="" if bounded else verdict.reason or "a count has no interval",
        verdict_reason=verdict.reason,
    )


def _judged(run: Run, claim: Claim) -> ClaimEntry:
    return claim_entry(claim, judge(claim, run))


def _judged_there(path: Path, claim: Claim) -> ClaimEntry:
    return _judged(run_there(path), claim)


def _variant_there(path: Path, name: str) -> VariantSummary:
    return _variant(run_there(path), name)


def _variant(run: Run, name: str) -> VariantSummary:
    entry, layout = run.manifest.variants[name], run.layout
    activations = run.activations.filter(_OF_ARRAYS)[run.activations["variant"] == name]
    counted = {"num_nan", "num_inf"} <= set(activations) and not activations.empty
    bad = activations["num_nan"].fillna(0) + activations["num_inf"].fillna(0) if counted else pd.Series(dtype=float)
    num_nonfinite = int(bad.sum())
    psnr_db, ssim = pictures.medians(run, name, pictures.reference_of(run, name))
    latency, peak_memory_bytes = _latency(run, name)
    return VariantSummary(
        dtype=Dtypes(weights=run.manifest.checkpoint.weights_dtype, compute=entry.dtype),
        techniques=list(entry.techniques),
        error=run.manifest.errors.get(name),
        expect=entry.expect,
        expectation_met=entry.expect == "any" or (counted and bool(num_nonfinite) == (entry.expect == "nonfinite")),
        amax_final=_amax_final(activations, layout),
        latent_rel_l2=_median(final_drift(run, name), f"non-finite {layout.result.title}"),
        psnr_db=psnr_db,
        ssim=ssim,
        num_nonfinite=Quantity(num_nonfinite) if counted else NOT_RECORDED,
        first_nonfinite=_first_nonfinite(run, name, activations[bad > 0] if counted else activations[:0]),
        near_misses=_near_misses(activations) if counted else None,
        near_misses_reason="" if counted else NOT_RECORDED.reason,
        latency=latency,
        latency_reason="" if latency else "not timed",
        peak_memory_bytes=peak_memory_bytes,
        metrics=_metrics(run, name),
        pictures=_pictures(run, name),
        **_storage(entry, layout),
    )


def _pictures(run: Run, name: str) -> dict[str, Quantity]:
    """Measures of the pictures and of the basin; those on request only where a claim names them."""
    if run.layout.picture is None:
        return {}
    asked = {claim.get("metric") for claim in run.manifest.claims}
    names = [measure for measure, about in MEASURES.items() if not about.on_request or measure in asked]
    return {**pictures.measure_medians(run, name, names), **basin.summaries(run, name)}


def _storage(entry: VariantEntry, layout: Layout) -> dict[str, Quantity]:
    """What the parameters of a variant take, where the run recorded it."""
    own = entry.weights.get(layout.default)
    if own is None:
        return {}
    return {
        "model_bytes": Quantity(sum(stored.bytes for stored in entry.weights.values())),
        "weight_bytes": Quantity(own.bytes),
        "bits_per_weight": Quantity.of(own.bits_per_weight, "undefined"),
    }


def _metrics(run: Run, name: str) -> dict[str, Quantity]:
    """Quantities that only some variants have: the divergence of distributions, and of a variant with settings of its
    own the distance of its last result and its picture from those of the run's settings."""
    metrics = {}
    if run.layout.result.distribution:
        metrics["kl"] = _median(divergence(run, name), f"non-finite {run.layout.result.title}")
    if pictures.reference_of(run, name) != run.reference:
        metrics["base_rel_l2"] = _median(final_drift(run, name, mode="base"), f"non-finite {run.layout.result.title}")
        if run.layout.picture is not None:
            metrics["base_psnr_db"], metrics["base_ssim"] = pictures.medians(run, name, run.reference)
    return metrics


def _median(values: pd.Series, reason: str) -> Quantity:
    """The median over cases; `reason` where one is not finite."""
    if values.empty:
        return _NOT_MEASURED
    return Quantity.of(float(np.median(values.to_numpy(float))), reason)


def _amax_final(activations: pd.DataFrame, layout: Layout) -> Quantity:
    """The largest magnitude of the main stream after the last block, over cases and steps."""
    site = layout.last_block
    if site is None:
        return Quantity(None, "no blocks")
    port = layout.streams[layout.main_stream].port if layout.main_stream else DEFAULT_PORT
    here = (activations["component"] == layout.default) & (activations["site"] == site) & (activations["port"] == port)
    last = activations[here]
    if last.empty or "amax" not in last:
        return NOT_RECORDED
    if (last["num_nan"] + last["num_inf"]).sum():
        return Quantity(None, "non-finite values")
    return Quantity.of(float(last["amax"].max()), "undefined")


def _first_nonfinite(run: Run, name: str, bad: pd.DataFrame) -> FirstNonfinite | None:
    """Where the first NaN or infinity arose, the earliest over the cases.

    bad: recorded arrays with one, which decide where a run did not look for the origin.
    """
    located = run.nonfinite[(run.nonfinite["variant"] == name) & run.nonfinite["site"].notna()]
    rows = bad if located.empty else located
    if rows.empty:
        return None
    row = rows.sort_values(["order", "prompt_id", "seed"], kind="stable").iloc[0]
    return FirstNonfinite(
        **_place(row),
        dtype=None if pd.isna(row["dtype"]) else str(row["dtype"]),
        num_nan=int(row["num_nan"]),
        num_inf=int(row["num_inf"]),
        inputs_finite=None if pd.isna(row.get("inputs_finite")) else bool(row["inputs_finite"]),
    )


def _near_misses(activations: pd.DataFrame) -> NearMisses:
    """How many sites came near the overflow of their own dtype, and where the nearest of them did."""
    found = near_misses(activations)
    nearest = [
        NearMiss(**_place(row), format=str(row["dtype"]), headroom_bits=float(row["bits"]))
        for _, row in found.head(NEAREST).iterrows()
    ]
    return NearMisses(len(found), nearest)


def _place(row: pd.Series) -> dict[str, Any]:
    """Address and moment of a row, None where it has none."""
    texts = {key: row[key] for key in ("component", "site", "port", "branch")}
    whole = {key: row[key] for key in ("step", "prompt_id", "seed")}
    place: dict[str, Any] = {key: None if pd.isna(value) else str(value) for key, value in texts.items()}
    return place | {key: None if pd.isna(value) else int(value) for key, value in whole.items()}


def _latency(run: Run, name: str) -> tuple[Latency | None, Quantity]:
    """Time of a step against the baseline variant, and peak memory."""
    baseline = run.manifest.baseline
    rows = run.latency[run.latency["what"] == "step"]
    own, base = (rows[rows["variant"] == variant].set_index("round")["seconds"] for variant in (name, baseline))
    if own.empty or base.empty:
        return None, Quantity(None, "not timed")
    ratio = over_rounds(own, base, simultaneous_confidence(max(1, rows["variant"].nunique() - 1)))
    bounded = math.isfinite(ratio.lo)
    verdict = latency_verdict(ratio.lo, ratio.hi, run.manifest.latency_margin)
    latency = Latency(
        median_s=float(own.median()),
        ratio=ratio.estimate,
        verdict="baseline" if name == baseline else verdict,
        ci95=(ratio.lo, ratio.hi) if bounded else None,
        ci95_reason="" if bounded else "one round",
    )
    return latency, Quantity(int(rows[rows["variant"] == name]["peak_memory_bytes"].max()))
