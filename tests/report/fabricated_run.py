"""A plausible run folder made from formulas: no model, no measurement.

Growth ends near the published 5.7e7; `float16` overflows at block 37 of the first step and everything after it is
NaN, as in a free-running generation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

FORMAT_MAX = {"float16": 65504.0, "bfloat16": 3.3895e38, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
COMPUTE = {"reference": "float32", "baseline": "bfloat16", "ffn_scaling": "bfloat16", "float16": "float16"}
DRIFT = {"baseline": 2e-3, "ffn_scaling": 3e-2}
SPEED = {"reference": 1.92, "baseline": 1.0, "ffn_scaling": 0.985, "float16": 0.93}
LIMIT = FORMAT_MAX["float16"]


def fabricate(
    run: Path,
    variants: Sequence[str] = tuple(COMPUTE),
    overflowing: Sequence[str] = ("float16",),
    blocks: int = 60,
    steps: int = 10,
    prompts: Sequence[str] = ("a red bicycle leaning on a brick wall", "雪山下的湖，清晨 <b>& mist</b>"),
    seeds: Sequence[int] = (0, 1),
    teacher: bool = True,
    side: int = 128,
    rng_seed: int = 7,
) -> Path:
    """Writes all files of a complete run into `run` and returns it. The first variant is the reference."""
    rng = np.random.default_rng(rng_seed)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(f"exp: fabricated\nsampler:\n  steps: {steps}\nseeds: {list(seeds)}\n")
    runs = [(p, s) for p in range(len(prompts)) for s in seeds]
    activations = pd.DataFrame(_activations(rng, variants, overflowing, blocks, steps, runs))
    activations.to_parquet(run / "activations.parquet")
    drift = pd.DataFrame(_drift(rng, variants, overflowing, blocks, steps, runs, teacher))
    drift.to_parquet(run / "drift.parquet")
    latency = pd.DataFrame(_latency(rng, variants))
    latency.to_parquet(run / "latency.parquet")
    _images(rng, run / "images", variants, overflowing, runs, side)
    _write_json(run / "manifest.json", _manifest(variants, prompts, seeds))
    _write_json(run / "summary.json", _summary(variants, overflowing, activations, drift, latency))
    return run


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False))


def _compute(variant: str) -> str:
    return COMPUTE.get(variant, "bfloat16")


def _activations(rng, variants, overflowing, blocks, steps, runs):
    """One row a site; amax grows as a power of depth and is modulated by the step."""
    depth = np.arange(blocks) / max(blocks - 1, 1)
    level = {"img": 1.5 + 6.25 * depth**1.32, "txt": 1.9 + 2.3 * depth**0.7}
    for variant in variants:
        shift = {"ffn_scaling": 0.35}.get(variant, 0.0) if variant not in overflowing else 0.0
        for prompt, seed in runs:
            jitter = rng.normal(0, 0.02)
            for branch in ("cond", "uncond"):
                for step in range(steps):
                    scope = {"variant": variant, "prompt_id": prompt, "seed": seed, "branch": branch, "step": step}
                    scope |= {"sigma": 1 - 0.98 * step / max(steps - 1, 1), "component": "transformer"}
                    modulation = jitter - 0.5 * (step / max(steps, 2)) ** 2
                    for site, port, stream, block, log_amax in _sites(level, blocks):
                        wobble = modulation * (block is not None) + rng.normal(0, 0.006) + shift * (block or 0) / blocks
                        amax = 10 ** (log_amax + wobble)
                        failed = variant in overflowing and (step > 0 or _fails(level, blocks, block, site, port))
                        yield scope | _row(site, port, stream, block, amax, failed, _compute(variant))
    for variant in variants:
        for prompt, seed in runs:
            for step in range(steps):
                scope = {"variant": variant, "prompt_id": prompt, "seed": seed, "branch": None, "step": step}
                scope |= {"sigma": 1 - 0.98 * step / max(steps - 1, 1), "component": "pipeline"}
                row = _row("euler_step", "out", "img", None, 4.2, variant in overflowing, "float32")
                yield scope | row


def _sites(level, blocks):
    yield "img_in", "out", "img", None, 1.2
    for block in range(blocks):
        yield f"transformer_blocks.{block}", "out.0", "img", block, level["img"][block]
        yield f"transformer_blocks.{block}", "out.1", "txt", block, level["txt"][block]
        yield f"transformer_blocks.{block}.img_mlp", "out", "img", block, level["img"][block] - 0.4
    yield "norm_out", "out", "img", None, 1.18
    yield "proj_out", "out", "img", None, 0.64


def _fails(level, blocks, block, site, port):
    over = int(np.searchsorted(level["img"], np.log10(LIMIT))) if blocks > 1 else 0
    if block is None:
        return site in ("norm_out", "proj_out")
    return block > over or (block == over and port == "out.0")


def _row(site, port, stream, block, amax, failed, dtype):
    row = {"site": site, "port": port, "stream": stream, "block": block, "dtype": dtype, "shape": "1x64x64"}
    row |= {"numel": 4096, "amax": None if failed else amax, "amin_nonzero": 1e-4, "min": -0.9 * amax, "max": amax}
    row |= {"mean": 0.0, "rms": amax / 30, "num_nan": 4000 * failed, "num_inf": 0, "num_zero": 3}
    for name, limit in FORMAT_MAX.items():
        row[f"overflow_pct_{name}"] = 1.0 if amax > limit else 0.0
        row[f"underflow_pct_{name}"] = 0.0
        row[f"headroom_bits_{name}"] = None if failed else float(np.log2(limit / amax))
    return row


def _drift(rng, variants, overflowing, blocks, steps, runs, teacher):
    reference, *others = variants
    for variant in others:
        base = DRIFT.get(variant, 4e-3)
        for prompt, seed in runs:
            factor = 10 ** rng.normal(0, 0.08)
            scope = {"variant": variant, "reference": reference, "prompt_id": prompt, "seed": seed}
            failed = variant in overflowing
            for step in range(steps):
                rel = factor * base * (1 + step) ** 0.9
                row = {"mode": "free", "branch": None, "step": step, "component": "pipeline", "site": "euler_step"}
                yield scope | row | {"port": "out", "stream": "img", "block": None} | _errors(rel, failed)
                for block in range(blocks):
                    for mode in ("free", "teacher") if teacher else ("free",):
                        growth = 1 + 3 * block / blocks if mode == "free" else 1.0
                        local = factor * base * growth * ((1 + step) ** 0.9 if mode == "free" else 0.4)
                        bad = failed and ((mode == "free" and step > 0) or block > 36)
                        row = {"mode": mode, "branch": "cond", "step": step, "component": "transformer"}
                        row |= {"site": f"transformer_blocks.{block}", "port": "out.0", "stream": "img", "block": block}
                        yield scope | row | _errors(local * 10 ** rng.normal(0, 0.02), bad)


def _errors(rel, failed):
    names = ("rel_l2", "sqnr_db", "cosine", "max_abs_err", "mean_signed_rel_err")
    values = (rel, -20 * np.log10(rel), 1 - rel**2 / 2, 10 * rel, rel / 50)
    return dict(zip(names, (None,) * 5 if failed else values, strict=True)) | {"num_nonfinite": 4096 * failed}


def _latency(rng, variants, rounds=14):
    for turn in range(rounds):
        machine = 3.7 * (1 + 0.04 * rng.standard_normal())
        for order, at in enumerate(rng.permutation(len(variants))):
            seconds = machine * SPEED.get(variants[at], 1.02) * (1 + 0.012 * abs(rng.standard_normal()))
            row = {"variant": variants[at], "round": turn, "order": order, "what": "step", "seconds": seconds}
            yield row | {"peak_memory_bytes": int(1.2e9 * (2 if at == 0 else 1))}


def _images(rng, folder, variants, overflowing, runs, side):
    folder.mkdir()
    y, x = np.mgrid[0:side, 0:side] / side
    for prompt, seed in runs:
        waves = [rng.uniform(1, 4, 3) for _ in range(3)]
        picture = np.stack([0.5 + 0.3 * np.sin(2 * (a * x + b * y + c)) * np.exp(-x * y) for a, b, c in waves], axis=-1)
        for variant in variants:
            noise = DRIFT.get(variant, 4e-3) * 0.6 * (variant != variants[0]) * rng.standard_normal(picture.shape)
            pixels = np.clip(picture + noise, 0, 1) * (variant not in overflowing)
            name = f"{variant}__p{prompt}__s{seed}.png"
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(folder / name)


def _manifest(variants, prompts, seeds):
    switches = {"tf32": False, "MLX_ENABLE_TF32": "0"}
    environment = {"device": "Apple M4 Max", "backend": "metal", "os": "macOS 26.1", "mlx": "0.32.4"}
    environment |= {"python": "3.12.4", "packages": {"numpy": "2.4.0", "scipy": "1.17"}, "switches": switches}
    environment |= {"commit": "4f1c9d2ab8e07c55d1e6f6b1c0a7d2f3e4b5a697", "dirty": True}
    checkpoint = {"name": "full_synthetic", "path": "models/full_synthetic", "fingerprint": "sha256:9ab3fe21"}
    counts = {v: ({"ffn_scaling": {"matched": 120, "of": 120}} if v == "ffn_scaling" else {}) for v in variants}
    return {
        "schema_version": 1,
        "status": "complete",
        "experiment": "ffn_scaling",
        "command": ["python", "-m", "precision_lab", "+exp=ffn_scaling", "model=full_synthetic", "seeds=[0, 1]"],
        "started": "2026-03-02T09:14:07Z",
        "finished": "2026-03-02T09:51:40Z",
        "environment": environment,
        "checkpoint": checkpoint | {"weights": "synthetic"},
        "sites": counts,
        "prompts": list(prompts),
        "negative_prompt": " ",
        "seeds": list(seeds),
        "baseline": variants[min(1, len(variants) - 1)],
        "latency": {"margin": 0.05},
    }


def _summary(variants, overflowing, activations, drift, latency):
    reference, baseline = variants[0], variants[min(1, len(variants) - 1)]
    median = latency.groupby("variant")["seconds"].median()
    entries = {}
    for variant in variants:
        failed = variant in overflowing
        own = activations[(activations["variant"] == variant) & (activations["component"] == "transformer")]
        last = own[own["port"] == "out.0"]["amax"].max()
        latents = drift[(drift["variant"] == variant) & (drift["site"] == "euler_step")] if len(drift) else drift
        entry: dict[str, Any] = {"dtype": {"weights": "bfloat16", "compute": _compute(variant)}}
        entry["techniques"] = ["ffn_scaling"] if variant == "ffn_scaling" else []
        _set(entry, "amax_final", None if failed else float(last), "nonfinite")
        if variant == reference:
            reason = values = None
            entry |= {"latent_rel_l2": 0.0, "psnr_db": None, "psnr_db_reason": "identical", "ssim": 1.0}
        else:
            reason = "nonfinite"
            values = None if failed else float(latents["rel_l2"].iloc[-1])
            _set(entry, "latent_rel_l2", values, reason)
            _set(entry, "psnr_db", None if failed else float(-20 * np.log10(values)), reason)
            _set(entry, "ssim", None if failed else 1 - values, reason)
        entry["num_nonfinite"] = 4096 * 37 * failed
        site = {"site": "transformer_blocks.37", "port": "out.0", "step": 0, "branch": "cond"}
        entry["first_nonfinite"] = site if failed else None
        ratio = float(median[variant] / median[baseline])
        verdict = "slower" if ratio > 1.07 else "faster" if ratio < 0.94 else "equivalent"
        interval = [1.0, 1.0] if variant == baseline else [ratio - 0.012, ratio + 0.014]
        entry["latency"] = {"median_s": float(median[variant]), "ratio": ratio, "ci95": interval, "verdict": verdict}
        entry["peak_memory_bytes"] = int(1.2e9 * (2 if variant == reference else 1))
        entries[variant] = entry
    return {
        "schema_version": 1,
        "experiment": "ffn_scaling",
        "reference": reference,
        "variants": entries,
        "claims": _claims(),
        "weights": "synthetic",
    }


def _set(entry, key, value, reason):
    entry[key] = value
    if value is None:
        entry[f"{key}_reason"] = reason


def _claims():
    source = "MIXED_PRECISION_OPTIMIZATION, finding S3"
    larger = {
        "id": "S3-amax",
        "text": "4·FFN(x/4) makes the residual stream larger than the baseline",
        "source": source,
    }
    larger |= {"verdict": "supported", "effect": 2.21, "ci95": [2.17, 2.26], "noise_floor": 0.004}
    faster = {"id": "S3-latency", "text": "FFN scaling is about 3 % faster", "source": source}
    faster |= {"verdict": "inconclusive", "effect": 0.985, "ci95": [0.973, 0.999], "noise_floor": 0.02}
    same = {"id": "S3-equal", "text": "4·FFN(x/4) preserves the function of the block", "source": source}
    same |= {"verdict": "refuted", "effect": 0.19, "ci95": [0.15, 0.24], "noise_floor": 0.0011}
    return [larger, faster, same]


if __name__ == "__main__":
    import sys

    print(fabricate(Path(sys.argv[1])))  # noqa: T201
