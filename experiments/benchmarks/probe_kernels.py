"""Tests the range catalogue's kernel on this GPU: equality with NumPy on adversarial arrays, and its speed.

    python -m experiments.benchmarks.probe_kernels [--rounds 20] [--to FILE.json]

Exits with 1 if any number differs: counts, extremes and derived values must be equal, and mean and rms must agree
within a tolerance relative to the rms. Times are medians over launches in random order within a round. Bytes are those
read; for a copy, those read and written.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_lab.device.environment import set_numeric_switches

# before MLX is imported, like the command line
set_numeric_switches()

import mlx.core as mx  # noqa: E402

from experiments.benchmarks.adversarial_arrays import DTYPES, arrays_of, arrays_of_other_dtypes  # noqa: E402
from precision_lab.device.environment import backend, environment  # noqa: E402
from precision_lab.instrument.arrays import to_numpy  # noqa: E402
from precision_lab.instrument.observation import rows_of  # noqa: E402
from precision_lab.numerics.formats import FORMATS  # noqa: E402
from precision_lab.numerics.statistics import summarize  # noqa: E402
from precision_lab.probes.range_kernel import PendingRanges, pending_ranges, read_ranges  # noqa: E402
from precision_lab.probes.ranges import DEFAULT_FORMATS  # noqa: E402

TOLERANCE = {"cuda": 1e-12, "metal": 1e-7, "cpu": 1e-5}
"""Tolerance of mean and rms, relative to the rms. On a CPU, the operations without a kernel are checked."""
FORMAT_SETS = {"default": DEFAULT_FORMATS, "all": tuple(FORMATS)}
SHAPES = ((4096, 3072), (4096, 12288), (64, 3072))
WORKING_SET = 800 << 20
"""Bytes of the arrays that timed launches cycle through, many times the second-level cache."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--to", type=Path, help="a JSON file for everything")
    options = parser.parse_args(argv)
    checks = [check(name, formats) for name, formats in FORMAT_SETS.items()]
    differences = [line for each in checks for line in each.pop("differences")]
    print(f"{'formats':8s} {'arrays':>6s} {'mean':>9s} {'rms':>9s}   worst difference, relative to the rms")
    for each in checks:
        print(f"{each['formats']:8s} {each['arrays']:6d} {each['mean']:9.1e} {each['rms']:9.1e}")
    print(*differences[:40], f"{len(differences)} differences", sep="\n", flush=True)
    times = measure(options.rounds) if backend() != "cpu" else []
    if times:
        print(f"\n{'what':34s} {'microseconds':>12s} {'GB/s':>6s} {'host':>6s}   microseconds of Python an array")
    for each in times:
        figures = f"{each['microseconds']:12.1f} {each['gigabytes_per_second']:6.0f} {each['host_us']:6.1f}"
        print(f"{each['what']:34s} {figures}")
    if options.to:
        record = {"environment": environment(), "checks": checks, "differences": differences, "times": times}
        options.to.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(1 if differences else 0)


# --- equality --------------------------------------------------------------------------------------------------------


def check(name: str, format_names: Sequence[str]) -> dict[str, Any]:
    """Measures every array together with all others and alone, twice; compares with NumPy and between runs."""
    formats = tuple(FORMATS[f] for f in format_names)
    arrays = {f"{dtype}: {label}": x for dtype in DTYPES for label, x in arrays_of(dtype).items()}
    arrays |= {f"other: {label}": x for label, x in arrays_of_other_dtypes().items()}
    together = pending_ranges(list(arrays.values()), formats)
    alone = [pending_ranges([x], formats) for x in arrays.values()]
    mx.async_eval(together.rows, [each.rows for each in alone])
    again = pending_ranges(list(arrays.values()), formats)
    runs = [rows_of(read_ranges(pending, formats)) for pending in ([together], alone, [again])]
    expected = [summarize(to_numpy(x), formats) for x in arrays.values()]
    worst = {"mean": 0.0, "rms": 0.0}
    differences = []
    for label, wanted, *found in zip(arrays, expected, *runs, strict=True):
        for key, value in wanted.items():
            values = [row[key] for row in found]
            if len({repr(v) for v in values}) > 1:
                differences.append(f"{name}, {label}, {key}: {values} of three runs")
            if key in worst and not math.isnan(value) and not math.isnan(values[0]):
                error = abs(values[0] - value) / (wanted["rms"] or 1.0)
                worst[key] = max(worst[key], error)
                equal = error <= TOLERANCE[backend()]
            else:
                equal = values[0] == value or (math.isnan(values[0]) and math.isnan(value))
            if not equal:
                differences.append(f"{name}, {label}, {key}: {values[0]!r}, NumPy {value!r}")
    return {"formats": name, "arrays": len(arrays), **worst, "differences": differences}


# --- time ------------------------------------------------------------------------------------------------------------


def measure(rounds: int) -> list[dict[str, Any]]:
    """Median times per array over `rounds`, each of which reads the whole working set once."""
    formats = tuple(FORMATS[f] for f in DEFAULT_FORMATS)

    def ranges(arrays: Sequence[mx.array]) -> Sequence[mx.array]:
        pending: PendingRanges = pending_ranges(arrays, formats)
        return pending.rows

    def copies(arrays: Sequence[mx.array]) -> Sequence[mx.array]:
        return [-x for x in arrays]

    subjects: dict[str, tuple[Callable[[Sequence[mx.array]], Sequence[mx.array]], Sequence[mx.array], int]] = {}
    for shape in SHAPES:
        for dtype in ("bfloat16", "float16", "float32"):
            nbytes = math.prod(shape) * DTYPES[dtype].itemsize
            number = min(256, -(-WORKING_SET // nbytes))
            arrays = [mx.random.normal(shape).astype(getattr(mx, dtype)) for _ in range(number)]
            mx.eval(arrays)
            label = f"{shape[0]} x {shape[1]} {dtype}"
            subjects[f"ranges {label}"] = ranges, arrays, nbytes
            if dtype == "bfloat16":
                subjects[f"negation {label}"] = copies, arrays, 2 * nbytes
    taken: Mapping[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    order = list(subjects)
    shuffled = random.Random(0)
    for round_ in range(rounds + 2):
        shuffled.shuffle(order)
        for name in order:
            work, arrays, _ = subjects[name]
            sample = _seconds(work, arrays)
            if round_ >= 2:  # the first rounds compile kernels and build their graphs
                taken[name].append(sample)
    return [
        {
            "what": name,
            "microseconds": 1e6 * statistics.median(total for total, _ in taken[name]) / len(arrays),
            "gigabytes_per_second": 1e-9 * nbytes * len(arrays) / statistics.median(total for total, _ in taken[name]),
            "host_us": 1e6 * statistics.median(host for _, host in taken[name]) / len(arrays),
            "arrays": len(arrays),
            "samples": taken[name],
        }
        for name, (_, arrays, nbytes) in subjects.items()
    ]


def _seconds(
    work: Callable[[Sequence[mx.array]], Sequence[mx.array]], arrays: Sequence[mx.array]
) -> tuple[float, float]:
    """Seconds until the device and until Python is done, for sixteen arrays at a time, as in large groups."""
    mx.synchronize()
    start = time.perf_counter()
    for first in range(0, len(arrays), 16):
        mx.async_eval(work(arrays[first : first + 16]))
    host = time.perf_counter() - start
    mx.synchronize()
    return time.perf_counter() - start, host


if __name__ == "__main__":
    main()
