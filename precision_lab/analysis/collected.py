"""Several runs in one table: what differs between them, and the headline numbers of each variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from precision_lab.analysis.alike import facts, text_of
from precision_lab.analysis.summary import variants
from precision_lab.record.run import Run
from precision_lab.record.summary import Quantity, VariantSummary

KEYS = ("run", "variant")

# facts that follow from others, or that the rows list themselves
_DERIVED = ("checkpoint.fingerprint", "checkpoint.notes", "environment.dirty", "variants.", "sites.", "errors.")


def collect(
    runs: Mapping[str, Run],
    about: Mapping[str, Mapping[str, str]],
    results: Mapping[str, Mapping[str, VariantSummary]] | None = None,
) -> pd.DataFrame:
    """One row for each run and variant but the reference: run, variant, what is said `about` the run, then dtype,
    amax_final, drift, pictures, non-finite values, time and memory; None where there is no number.

    runs: by the name that the table gives them. results: of their variants, by the same names, where they are known.
    """
    rows = []
    for name, run in runs.items():
        found = variants(run) if results is None else results[name]
        shown = [variant for variant in found if variant != run.reference] or list(found)
        rows += [{"run": name, "variant": v, **about[name], **_headline(run, found[v])} for v in shown]
    return pd.DataFrame(rows).astype(object).where(lambda frame: frame.notna(), None)


def differing_facts(runs: Mapping[str, Run], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By run, the facts that are not the same in all runs, as text and without those that follow from others.

    settings: the content of config.yaml of each run. A setting of a technique counts where all runs have the technique.
    """
    known = {name: facts(run, settings[name]) for name, run in runs.items()}
    names = dict.fromkeys(name for one in known.values() for name in one)
    first = next(iter(known.values()))
    differing = [name for name in names if any(one.get(name) != first.get(name) for one in known.values())]
    kept = [name for name in differing if not name.startswith(_DERIVED) and name.partition(".")[0] != "technique"]
    kept += [name for name in differing if "technique." in name and all(name in one for one in known.values())]
    return {run: {name: text_of(one[name]) for name in kept if name in one} for run, one in known.items()}


def _headline(run: Run, variant: VariantSummary) -> dict[str, Any]:
    latency = variant.latency
    quantities: dict[str, Quantity] = {
        "amax_final": variant.amax_final,
        "latent_rel_l2": variant.latent_rel_l2,
        "psnr_db": variant.psnr_db,
        "ssim": variant.ssim,
        **variant.metrics,
        **variant.pictures,
        "num_nonfinite": variant.num_nonfinite,
    }
    numbers = {name: quantity.value for name, quantity in quantities.items()}
    for name in ("psnr_db", "ssim") if run.layout.picture is None else ():
        del numbers[name]
    return {
        "dtype": variant.dtype.compute,
        "techniques": "+".join(variant.techniques) or None,
        "weight_bytes": variant.weight_bytes.value,
        "bits_per_weight": variant.bits_per_weight.value,
        **numbers,
        "step_s": latency.median_s if latency else None,
        "time_ratio": latency.ratio if latency else None,
        "peak_memory_bytes": variant.peak_memory_bytes.value,
        "error": variant.error,
    }
