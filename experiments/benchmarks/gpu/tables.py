"""Writes tables.md, a summary of the samples in tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.gpu.composition import CATEGORIES, ceilings, compositions, piece_results
from experiments.benchmarks.gpu.store import rows
from experiments.benchmarks.gpu.summary import (
    FAST,
    PLAIN,
    Law,
    best_peer,
    chosen,
    depth_samples,
    forward_results,
    guidance_results,
    line,
    power_law,
    probe_results,
    setup_results,
    stored_results,
)
from experiments.benchmarks.gpu.targets import judged
from precision_lab.numerics.intervals import Ratio, mad


def markdown(record: Mapping[str, Any]) -> str:
    measured = (_forward, _setups, _drift, _same_function, _ceilings, _pieces, _blocks, _tokens, _depth, _probes)
    sections = (_head, _targets, *measured, _guidance, _stored, _errors)
    return "\n".join(text for section in sections for text in section(record)) + "\n"


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    yield "# GPU benchmark\n"
    yield "Batch 1, bfloat16, generated weights. Times are medians ± median absolute deviation; lower is better."
    yield "Ratios have 95 % intervals: of medians over rounds where arms are paired, else by bootstrap.\n"
    yield from _table(
        ("part", "complete", "shape", "device", "commit", "mlx", "mflux", "torch", "diffusers", "GPU at start"),
        [
            (
                *(name, "yes" if part["complete"] else "no"),
                *(str(part["environment"].get(k) or "-") for k in ("shape", "device")),
                str(part["environment"].get("commit") or "-")[:10],
                *(str(part["environment"].get(k) or "-") for k in ("mlx", "mflux", "torch", "diffusers")),
                str(part["environment"].get("gpu_at_start") or "-"),
            )
            for name, part in record["parts"].items()
        ],
    )


def _forward(record: Mapping[str, Any]) -> Iterator[str]:
    results = forward_results(record)
    for side in dict.fromkeys(result.side for result in results):
        yield f"## One forward at {side} x {side}\n"
        lines = [
            (
                *(result.arm, f"{1e3 * result.median:.1f} ± {1e3 * result.mad:.1f}"),
                ", ".join(f"{1e3 * median:.1f}" for median in result.by_process),
                *(str(len(result.seconds)), "-" if result.peak_gb is None else f"{result.peak_gb:.1f}"),
                "-" if result.fast_ratio is None else _interval(result.fast_ratio),
                "-" if result.fast_ratio is None else ("in a round" if result.paired else "across processes"),
            )
            for result in results
            if result.side == side
        ]
        head = ("arm", "ms", "ms of each process", "samples", "peak GB", f"{FAST} / this", "paired")
        yield from _table(head, lines)
        peer = best_peer(results, side)
        if peer is not None and peer.fast_ratio is not None:
            yield f"Best peer: {peer.arm}. {FAST} / best peer: **{_interval(peer.fast_ratio)}**.\n"


def _targets(record: Mapping[str, Any]) -> Iterator[str]:
    found = judged(record)
    if found:
        yield "## Targets\n"
        lines = [
            (
                *(target.subject, f"{target.limit:g}", "yes" if target.met else "**no**"),
                f"{target.measured:.3f}" if target.interval is None else _interval(target.interval),
            )
            for target in found
        ]
        yield from _table(("subject (lower is better)", "target", "met", "measured"), lines)


def _setups(record: Mapping[str, Any]) -> Iterator[str]:
    results = setup_results(record)
    if results:
        yield "## Once for a text\n"
        yield from _table(
            ("arm", "what", "text tokens", "ms", "ms of each process", "samples"),
            [
                (
                    *(r.arm, r.what, str(r.text_tokens)),
                    f"{1e3 * float(np.median(r.seconds)):.1f} ± {1e3 * mad(r.seconds):.1f}",
                    *(", ".join(f"{1e3 * median:.1f}" for median in r.by_process), str(len(r.seconds))),
                )
                for r in results
            ],
        )


def _drift(record: Mapping[str, Any]) -> Iterator[str]:
    found = list(rows(record, "forward_mlx", "drift"))
    if found:
        yield "## Drift of the output\n"
        yield "Free-running through all blocks; SQNR: higher is better. Drift is a finding only above the floor.\n"
        yield from _table(
            ("side", "against", "arm", "role", "rel_l2", "sqnr_db", "max_abs_err", "non-finite"),
            [
                (
                    *(str(row["side"]), row["against"], row["arm"], row["role"], _number(row["rel_l2"], ".2e")),
                    *(_number(row["sqnr_db"], ".1f"), _number(row["max_abs_err"], ".2e"), str(row["num_nonfinite"])),
                )
                for row in sorted(found, key=lambda row: (row["side"], row["against"], row["role"], row["arm"]))
            ],
        )


def _same_function(record: Mapping[str, Any]) -> Iterator[str]:
    found = list(rows(record, "same_function_torch", "same_function"))
    if found:
        yield "## One function in every library\n"
        blocks, against = found[0]["blocks"], found[0]["against"]
        yield f"{blocks} blocks of full width, the same weights and inputs, against {against}.\n"
        yield from _table(
            ("arm", "dtype", "rel_l2", "sqnr_db"),
            [
                (row["arm"], row["dtype"], _number(row["rel_l2"], ".2e"), _number(row["sqnr_db"], ".1f"))
                for row in sorted(found, key=lambda row: (row["dtype"], row["arm"]), reverse=True)
            ],
        )


def _ceilings(record: Mapping[str, Any]) -> Iterator[str]:
    limits = ceilings(piece_results(record))
    if limits:
        yield "## Pieces of a block\n"
        yield (
            f"Ceilings measured in the same run: products {limits.flops / 1e12:.0f} TFLOP/s, copying "
            f"{limits.nbytes / 1e9:.0f} GB/s. The ideal time is the longer of arithmetic and traffic at these. "
            "Chained: each application waits for the one before; the others are independent and may overlap.\n"
        )


def _pieces(record: Mapping[str, Any]) -> Iterator[str]:
    pieces = piece_results(record)
    limits = ceilings(pieces)
    if limits:
        ordered = sorted(pieces.values(), key=lambda p: (-p.tokens, p.group, p.name, p.seconds))
        yield from _table(
            ("piece", "way", "tokens", "us", "ideal us", "ideal / measured", "TFLOP/s", "GB/s", "chained"),
            [
                (
                    *(p.name, p.way, str(p.tokens), f"{1e6 * p.seconds:.1f}", f"{1e6 * limits.ideal(p):.1f}"),
                    *(f"{100 * limits.ideal(p) / p.seconds:.0f} %", f"{p.flops_per_second / 1e12:.1f}"),
                    *(f"{p.bytes_per_second / 1e9:.0f}", "yes" if p.chained else "no"),
                )
                for p in ordered
            ],
        )


def _blocks(record: Mapping[str, Any]) -> Iterator[str]:
    found = compositions(record)
    shown = [name for name in CATEGORIES if any(name in c.categories for c in found)]
    if found:
        yield "## Where a block's time goes, us\n"
        yield from _table(
            ("side", "block", *shown, "sum of pieces", "as it runs"),
            [
                (
                    *(str(c.side), c.name, *(f"{1e6 * c.categories.get(name, 0):.0f}" for name in shown)),
                    f"{1e6 * (sum(c.categories.values()) - c.categories.get('rest', 0)):.0f}",
                    "-" if c.whole is None or c.name == "ideal" else f"{1e6 * c.whole:.0f}",
                )
                for c in found
            ],
        )


def _tokens(record: Mapping[str, Any]) -> Iterator[str]:
    samples = list(rows(record, "tokens", "time"))
    if samples:
        yield "## Tokens\n"
    for arm in (PLAIN, FAST):
        law = power_law(chosen(samples, arm=arm), "tokens")
        if law is not None:
            yield f"{arm}: time ~ tokens ^ **{_interval(law.slope)}** from {law.fitted_from:g} tokens on.\n"
            yield from _law_table(law, "tokens (image and text)", "local exponent")


def _depth(record: Mapping[str, Any]) -> Iterator[str]:
    samples, parts = depth_samples(record)
    if samples:
        yield f"## Depth at {samples[0]['side']} x {samples[0]['side']}\n"
        yield f"Samples of {parts}.\n"
    for arm in (PLAIN, FAST):
        law = line(chosen(samples, arm=arm), "depth")
        if law is not None:
            slope = Ratio(*(1e3 * value for value in (law.slope.estimate, law.slope.lo, law.slope.hi)))
            yield f"{arm}: **{_interval(slope)}** ms a block and {1e3 * law.constant:.2f} ms.\n"
            yield from _law_table(law, "blocks", "local ms a block", scale=1e3)


def _law_table(law: Law, x: str, local: str, scale: float = 1.0) -> Iterator[str]:
    slopes = ["-", *(f"{scale * value:.3f}" for value in law.local)]
    lines = [(f"{a:g}", f"{1e3 * b:.1f}", c) for a, b, c in zip(law.x, law.median, slopes, strict=True)]
    yield from _table((x, "ms", local), lines)


def _probes(record: Mapping[str, Any]) -> Iterator[str]:
    results = probe_results(record)
    if results:
        yield "## Probes\n"
        yield "The range catalogue, against the same model never touched, in the same round.\n"
        yield from _table(
            ("model", "side", "observed", "arrays a forward", "ms a forward", "ratio", "ms to set up, once"),
            [
                (
                    *(r.arm, str(r.side), r.probes, f"{r.arrays:.0f}", f"{1e3 * r.seconds:.1f}", _interval(r.ratio)),
                    f"{1e3 * r.setup_seconds:.0f}",
                )
                for r in results
            ],
        )


def _guidance(record: Mapping[str, Any]) -> Iterator[str]:
    results = guidance_results(record)
    if results:
        yield "## Guidance\n"
        yield "Both branches of a step: two forwards, one of batch 2, and the same with one text padded and masked.\n"
        yield from _table(
            ("model", "side", "branches", "ms a step", "ratio to one by one"),
            [(r.arm, str(r.side), r.way, f"{1e3 * r.seconds:.1f}", _interval(r.ratio)) for r in results],
        )


def _stored(record: Mapping[str, Any]) -> Iterator[str]:
    results = stored_results(record)
    if results:
        yield "## Weights in fewer bits\n"
        yield "`fast`, relative to `fast` in bfloat16 in the same rounds. Routes: decoded before a product,"
        yield "multiplied packed, or the faster of both by the number of rows, as measured at the start."
        yield "GB: what codes and scales need, what packing leaves in memory, and the peak beyond bfloat16's weights.\n"
        yield from _table(
            ("format", "route", "side", "what", "ms", "ratio to bfloat16", "codes", "packed", "peak", "packing s"),
            [
                (
                    *(r.format, r.route, str(r.side), r.way, f"{1e3 * r.seconds:.1f}", _interval(r.ratio)),
                    *(_number(value, ".1f") for value in (r.coded_gb, r.packed_gb, r.beyond_gb)),
                    _number(r.packing_s, ".2f"),
                )
                for r in sorted(results, key=lambda r: (r.side, r.way, r.format, r.route))
            ],
        )


def _errors(record: Mapping[str, Any]) -> Iterator[str]:
    found = [(name, row) for name, part in record["parts"].items() for row in part["rows"] if row["kind"] == "error"]
    if found:
        yield "## Not measured\n"
        tags = [{k: v for k, v in row.items() if k not in ("kind", "error")} for _, row in found]
        lines = [(name, str(tag), row["error"][:160]) for (name, row), tag in zip(found, tags, strict=True)]
        yield from _table(("part", "what", "why"), lines)


def _interval(ratio: Ratio) -> str:
    if math.isnan(ratio.lo):  # of a single round
        return f"{ratio.estimate:.3f}"
    return f"{ratio.estimate:.3f} [{ratio.lo:.3f}, {ratio.hi:.3f}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for cells in lines:
        yield "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
    yield ""
