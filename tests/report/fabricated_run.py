"""A plausible run folder of Qwen-Image, written from formulas: no model, no measurement.

Growth ends near the published 5.7e7; `float16` overflows at block 37 of the first step and everything after it is
NaN, as in a free-running generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from precision_lab.model.qwen_image.layout import layout
from precision_lab.record.manifest import Checkpoint, Coverage, Environment, Manifest, VariantEntry
from precision_lab.record.summary import (
    ClaimEntry,
    Dtypes,
    FirstNonfinite,
    Latency,
    Quantity,
    Summary,
    VariantSummary,
)
from precision_lab.record.tables import empty, part_path, write_part

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
    write_table(run, "activations", activations)
    drift = pd.DataFrame(_drift(rng, variants, overflowing, blocks, steps, runs, teacher))
    write_table(run, "drift", drift)
    latency = pd.DataFrame(_latency(rng, variants))
    write_table(run, "latency", latency)
    write_table(run, "generations", empty("generations"))
    _images(rng, run / "images", variants, overflowing, runs, side)
    _manifest(variants, prompts, seeds, steps, blocks).write(run)
    _summary(variants, overflowing, activations, drift, latency).write(run)
    return run


def write_table(run: Path, table: str, frame: pd.DataFrame) -> None:
    """A table as a complete run has it: in the dtypes of the record, one file. Rows keep their order."""
    if table != "latency" and "order" not in frame:
        frame = frame.assign(order=np.arange(len(frame)))
    write_part(run, table, "0", frame)
    part_path(run, table, "0").rename(run / f"{table}.parquet")
    (run / table).rmdir()


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


def environment() -> Environment:
    return Environment(
        device="Apple M4 Max",
        backend="metal",
        os="macOS 26.1",
        mlx="0.32.4",
        python="3.12.4",
        packages={"numpy": "2.4.0", "scipy": "1.17"},
        switches={"tf32": None, "MLX_ENABLE_TF32": "0"},
        commit="4f1c9d2ab8e07c55d1e6f6b1c0a7d2f3e4b5a697",
        dirty=True,
    )


def _manifest(variants, prompts, seeds, steps, blocks):
    return Manifest(
        status="complete",
        experiment="ffn_scaling",
        environment=environment(),
        checkpoint=Checkpoint("full_synthetic", "models/full_synthetic", "sha256:9ab3fe21", "synthetic"),
        layout=layout(blocks),
        case={"steps": steps, "guidance_scale": 4.0, "negative_prompt": " ", "height": 128, "width": 192},
        baseline=variants[min(1, len(variants) - 1)],
        variants={
            name: VariantEntry(_compute(name), ["ffn_scaling"] if name == "ffn_scaling" else []) for name in variants
        },
        prompts=list(prompts),
        seeds=list(seeds),
        latency_margin=0.05,
        command=["python", "-m", "precision_lab", "+exp=ffn_scaling", "model=full_synthetic", "seeds=[0, 1]"],
        started="2026-03-02T09:14:07Z",
        finished="2026-03-02T09:51:40Z",
        sites={name: {"ffn_scaling": Coverage(120, 120)} if name == "ffn_scaling" else {} for name in variants},
        claims=[claim_of(entry) for entry in _claims()],
    )


def claim_of(entry: ClaimEntry, **changes: Any) -> dict[str, Any]:
    """What an experiment states so that `entry` is its verdict."""
    keys = ("id", "text", "source", "metric", "relation", "subject", "against", "bound")
    stated = {key: getattr(entry, key) for key in keys}
    stated |= {"sites": ["transformer_blocks.*"]} if entry.metric == "amax" else {}
    return {key: value for key, value in stated.items() if value is not None} | changes


def _summary(variants, overflowing, activations, drift, latency):
    reference, baseline = variants[0], variants[min(1, len(variants) - 1)]
    median = latency.groupby("variant")["seconds"].median()
    entries = {}
    for variant in variants:
        failed = variant in overflowing
        own = activations[(activations["variant"] == variant) & (activations["component"] == "transformer")]
        last = own[own["port"] == "out.0"]["amax"].max()
        latents = drift[(drift["variant"] == variant) & (drift["site"] == "euler_step")] if len(drift) else drift
        error = 0.0 if variant == reference else np.nan if failed else float(latents["rel_l2"].iloc[-1])
        ratio = float(median[variant] / median[baseline])
        verdict = "slower" if ratio > 1.07 else "faster" if ratio < 0.94 else "equivalent"
        interval = (1.0, 1.0) if variant == baseline else (ratio - 0.012, ratio + 0.014)
        entries[variant] = VariantSummary(
            dtype=Dtypes("bfloat16", _compute(variant)),
            techniques=["ffn_scaling"] if variant == "ffn_scaling" else [],
            error=None,
            expect="any",
            expectation_met=True,
            amax_final=Quantity.of(np.nan if failed else last, "nonfinite"),
            latent_rel_l2=Quantity.of(error, "nonfinite"),
            psnr_db=Quantity(None, "identical") if error == 0 else Quantity.of(-20 * np.log10(error), "nonfinite"),
            ssim=Quantity.of(1 - error, "nonfinite"),
            num_nonfinite=Quantity(4096 * 37 * failed),
            first_nonfinite=FirstNonfinite("transformer", "transformer_blocks.37", "out.0", 0, "cond")
            if failed
            else None,
            near_misses=None,
            latency=Latency(float(median[variant]), ratio, verdict, interval),
            peak_memory_bytes=Quantity(int(1.2e9 * (2 if variant == reference else 1))),
        )
    return Summary("ffn_scaling", reference, entries, _claims(), weights="synthetic")


def _claims() -> list[ClaimEntry]:
    source, compared = "MIXED_PRECISION_OPTIMIZATION, finding S3", ("ffn_scaling", "baseline", None)
    larger = "4·FFN(x/4) makes the residual stream larger than the baseline"
    faster, same = "FFN scaling is about 3 % faster", "4·FFN(x/4) preserves the function of the block"
    rows = [
        ("S3-amax", larger, "supported", "amax", "larger", 2.21, 0.004, (2.17, 2.26)),
        ("S3-latency", faster, "inconclusive", "latency", "smaller", 0.985, 0.02, (0.973, 0.999)),
        ("S3-equal", same, "refuted", "drift", "equal", 0.19, 0.0011, (0.15, 0.24)),
    ]
    return [
        ClaimEntry(
            name, text, source, verdict, metric, relation, *compared, Quantity(effect), Quantity(floor), interval
        )
        for name, text, verdict, metric, relation, effect, floor, interval in rows
    ]
