"""summary.json: what a run shows about each variant and claim, from its tables and images alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.analysis import factorial
from precision_lab.analysis.claims import Claim, Tables, final_drift, judge
from precision_lab.analysis.near_misses import near_misses
from precision_lab.errors import InputError
from precision_lab.numerics.intervals import latency_verdict, paired_ratio, simultaneous_confidence
from precision_lab.numerics.metrics import compare_images
from precision_lab.record.tables import read

SCHEMA_VERSION = 1
NEAREST = 5
"""So many near misses of a variant are described; all are counted."""


def summarize(run: Path) -> dict[str, Any]:
    """Judges the tables of a run and writes its summary.json. Raises InputError if `run` is no run folder."""
    manifest = read_manifest(run)
    tables = Tables(
        activations=read(run, "activations"),
        drift=read(run, "drift"),
        latency=read(run, "latency"),
        variants=frozenset(manifest["variants"]),
    )
    names = list(manifest["variants"])
    reference = manifest["reference"]["variant"]
    summary = {
        "schema_version": SCHEMA_VERSION,
        "experiment": manifest["experiment"],
        "reference": reference,
        "variants": {name: _variant(run, manifest, tables, name) for name in names},
        "claims": [claim_record(Claim.from_dict(raw), tables) for raw in manifest["claims"]],
        "factorials": factorial.records(manifest, tables.drift),
        "weights": manifest["checkpoint"]["weights"],
        "inflate": manifest["checkpoint"].get("inflate", 1.0),
    }
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    temporary = run / "summary.tmp"
    temporary.write_text(text)
    temporary.replace(run / "summary.json")
    return summary


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run. Raises InputError if there is none, or of another schema."""
    path = run / "manifest.json"
    if not path.is_file():
        raise InputError(f"{run} is not the folder of a run: no manifest.json in it")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version {manifest.get('schema_version')}, expected {SCHEMA_VERSION}")
    return manifest


def exit_code(run: Path, summary: dict[str, Any]) -> int:
    """1 if a variant raised or broke its expectation, or a gated claim was refuted; else 0."""
    gated = {claim["id"] for claim in read_manifest(run)["claims"] if claim.get("gate")}
    refuted = any(claim["verdict"] == "refuted" and claim["id"] in gated for claim in summary["claims"])
    broken = any(v["error"] or not v["expectation_met"] for v in summary["variants"].values())
    return int(refuted or broken)


def _variant(run: Path, manifest: dict[str, Any], tables: Tables, name: str) -> dict[str, Any]:
    described = manifest["variants"][name]
    activations = tables.activations[tables.activations["variant"] == name]
    counted = {"num_nan", "num_inf"} <= set(activations) and not activations.empty
    bad = activations["num_nan"].fillna(0) + activations["num_inf"].fillna(0) if counted else pd.Series(dtype=float)
    num_nonfinite = int(bad.sum()) if counted else None
    expect = described["expect"]
    return {
        "dtype": {"weights": manifest["checkpoint"]["weights_dtype"], "compute": described["dtype"]},
        "techniques": described["techniques"],
        "error": manifest["errors"].get(name),
        "expect": expect,
        "expectation_met": expect == "any" or (counted and bool(num_nonfinite) == (expect == "nonfinite")),
        **_amax_final(activations, manifest["model"]["num_layers"]),
        **_median("latent_rel_l2", final_drift(tables.drift, name), "non-finite latents"),
        **_images(run, name, manifest["reference"]["variant"]),
        **({"num_nonfinite": num_nonfinite} if counted else _number("num_nonfinite", math.nan, "not recorded")),
        "first_nonfinite": _first_nonfinite(activations[bad > 0]) if counted else None,
        **(_near_misses(activations) if counted else _number("near_misses", math.nan, "not recorded")),
        **_latency(tables.latency, name, manifest["baseline"], manifest["latency"]["margin"]),
    }


def _number(key: str, value: float, reason: str) -> dict[str, Any]:
    """A strict JSON number, or null with its reason."""
    return {key: float(value)} if math.isfinite(value) else {key: None, f"{key}_reason": reason}


def _median(key: str, values: pd.Series, reason: str) -> dict[str, Any]:
    if values.empty:
        return _number(key, math.nan, "not measured")
    return _number(key, float(np.median(values.to_numpy(float))), reason)


def _amax_final(activations: pd.DataFrame, num_layers: int) -> dict[str, Any]:
    """The largest magnitude of the image stream after the last block, over cases and steps."""
    site = f"transformer_blocks.{num_layers - 1}"
    last = activations[(activations["site"] == site) & (activations["port"] == "out.0")]
    if last.empty or "amax" not in last:
        return _number("amax_final", math.nan, "not recorded")
    if (last["num_nan"] + last["num_inf"]).sum():
        return _number("amax_final", math.nan, "non-finite values")
    return _number("amax_final", float(last["amax"].max()), "undefined")


def _first_nonfinite(bad: pd.DataFrame) -> dict[str, Any] | None:
    """The first recorded array with a NaN or infinity, the earliest over the cases."""
    if bad.empty:
        return None
    row = bad.sort_values(["order", "prompt_id", "seed"]).iloc[0]
    values = {key: row[key] for key in ("component", "site", "port", "step", "branch", "prompt_id", "seed", "dtype")}
    values |= {"num_nan": row["num_nan"], "num_inf": row["num_inf"]}
    return {key: None if pd.isna(v) else v if isinstance(v, str) else int(v) for key, v in values.items()}


def _near_misses(activations: pd.DataFrame) -> dict[str, Any]:
    """How many sites came near the overflow of their own dtype, and where the nearest of them did."""
    found = near_misses(activations)
    nearest = []
    for _, row in found.head(NEAREST).iterrows():
        texts = {key: row[key] for key in ("component", "site", "port", "branch")}
        whole = {key: row[key] for key in ("step", "prompt_id", "seed")}
        place: dict[str, Any] = {key: None if pd.isna(value) else str(value) for key, value in texts.items()}
        place |= {key: None if pd.isna(value) else int(value) for key, value in whole.items()}
        nearest.append(place | {"format": str(row["dtype"]), "headroom_bits": float(row["bits"])})
    return {"near_misses": {"count": len(found), "nearest": nearest}}


def _images(run: Path, name: str, reference: str) -> dict[str, Any]:
    """Median PSNR and SSIM against the reference's images; null if a pixel of either was not finite."""
    results = []
    for path in sorted((run / "images").glob(f"{name}__p*__s*.png")):
        other = path.with_name(reference + path.name.removeprefix(name))
        if name != reference and other.is_file():
            (image, bad), (expected, expected_bad) = _read_image(path), _read_image(other)
            if bad or expected_bad:
                return _number("psnr_db", math.nan, "nonfinite") | _number("ssim", math.nan, "nonfinite")
            results.append(compare_images(image, expected))
    out: dict[str, Any] = {}
    for key in ("psnr_db", "ssim"):
        values = pd.Series([r.values[key] for r in results], dtype=float).dropna()
        if results and values.empty:
            out |= _number(key, math.nan, results[0].reasons[key])
        else:
            out |= _median(key, values, "undefined")
    return out


def _read_image(path: Path) -> tuple[npt.NDArray[np.uint8], int]:
    """The pixels of a run's PNG, and how many of their values were not finite."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image), int(image.info.get("num_nonfinite", 0))


def _latency(latency: pd.DataFrame, name: str, baseline: str, margin: float) -> dict[str, Any]:
    rows = latency[latency["what"] == "step"]
    seconds = {variant: group.set_index("round")["seconds"] for variant, group in rows.groupby("variant")}
    if name not in seconds or baseline not in seconds:
        return {
            "latency": None,
            "latency_reason": "not timed",
            "peak_memory_bytes": None,
            "peak_memory_bytes_reason": "not timed",
        }
    paired = pd.concat([seconds[name], seconds[baseline]], axis=1, join="inner").to_numpy(float)
    ratio = paired_ratio(paired[:, 0], paired[:, 1], simultaneous_confidence(max(1, len(seconds) - 1)))
    bounded = math.isfinite(ratio.lo)
    verdict = "baseline" if name == baseline else latency_verdict(ratio.lo, ratio.hi, margin)
    measured: dict[str, Any] = {
        "median_s": float(seconds[name].median()),
        "ratio": ratio.estimate,
        "ci95": [ratio.lo, ratio.hi] if bounded else None,
        "verdict": verdict,
    }
    if not bounded:
        measured["ci95_reason"] = "one round"
    peak = int(rows[rows["variant"] == name]["peak_memory_bytes"].max())
    return {"latency": measured, "peak_memory_bytes": peak}


def claim_record(claim: Claim, tables: Tables) -> dict[str, Any]:
    """A claim and its verdict as strict JSON: an entry of `claims` in summary.json and in device.json."""
    verdict = judge(claim, tables)
    out: dict[str, Any] = {"id": claim.id, "text": claim.text, "source": claim.source, "verdict": verdict.verdict}
    out |= {
        "metric": claim.metric,
        "relation": claim.relation,
        "subject": claim.subject,
        "against": claim.against or None,
        "bound": claim.bound,
    }
    out |= _number("effect", verdict.effect, verdict.reason or "undefined")
    if math.isfinite(verdict.lo):
        out["ci95"] = [verdict.lo, verdict.hi]
    else:
        out |= {"ci95": None, "ci95_reason": verdict.reason or "a count has no interval"}
    return out | _number("noise_floor", verdict.noise_floor, "not measured")
