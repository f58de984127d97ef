"""Summarises samples as medians, ratios with intervals, and fitted laws. Reads only benchmark.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.benchmarks.gpu.shapes import SHAPES
from experiments.benchmarks.gpu.store import Row, rows
from precision_lab.numerics.intervals import Ratio, mad, median_interval, paired_ratio

FAST, PLAIN = "ours fast", "ours plain"
FORWARD_PARTS = ("forward_mlx", "forward_torch")
RESAMPLES = 10_000
"""Of the bootstrap of arms in different processes."""

ABOVE_FLOOR = 1.5
"""A forward that takes more than this multiple of the shortest is bound by the device, not by submission."""


@dataclass(frozen=True)
class ForwardResult:
    """One arm at one size: seconds, peak memory in GB including weights, and `fast_ratio`, fast / this arm."""

    arm: str
    side: int
    seconds: list[float]
    by_process: list[float]
    """The median of each process."""
    peak_gb: float | None
    fast_ratio: Ratio | None
    paired: bool

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def mad(self) -> float:
        return mad(self.seconds)


def forward_results(record: Mapping[str, Any]) -> list[ForwardResult]:
    """All arms at all sizes, in ascending order of time within a size."""
    samples = {part: [row for row in rows(record, part, "time") if "side" in row] for part in FORWARD_PARTS}
    memory = [row for part in FORWARD_PARTS for row in rows(record, part, "memory")]
    results = []
    for part, taken in samples.items():
        for arm, side in dict.fromkeys((row["arm"], row["side"]) for row in taken):
            own = chosen(taken, arm=arm, side=side)
            fast = chosen(samples["forward_mlx"], arm=FAST, side=side)
            paired = part == "forward_mlx"
            ratio = (paired_by_round if paired else unpaired)(fast, own) if fast and arm != FAST else None
            peaks = [row["peak_gb"] for row in chosen(memory, arm=arm, side=side)]
            results.append(
                ForwardResult(
                    *(arm, side, [row["seconds"] for row in own], [float(np.median(s)) for s in _by_process(own)]),
                    *(max(peaks, default=None), ratio, paired),
                )
            )
    return sorted(results, key=lambda result: (result.side, result.median))


@dataclass(frozen=True)
class SetupResult:
    """What a generation computes once for a text: seconds, and the median of each process."""

    arm: str
    what: str
    text_tokens: int
    seconds: list[float]
    by_process: list[float]


def setup_results(record: Mapping[str, Any]) -> list[SetupResult]:
    samples = [row for row in rows(record, "forward_mlx", "time") if "what" in row]
    results = []
    for arm, what, tokens in dict.fromkeys((row["arm"], row["what"], row["text_tokens"]) for row in samples):
        own = chosen(samples, arm=arm, what=what, text_tokens=tokens)
        medians = [float(np.median(s)) for s in _by_process(own)]
        results.append(SetupResult(arm, what, tokens, [row["seconds"] for row in own], medians))
    return results


def best_peer(results: Iterable[ForwardResult], side: int) -> ForwardResult | None:
    """The fastest arm of another library."""
    peers = [result for result in results if result.side == side and not result.arm.startswith("ours")]
    return min(peers, key=lambda result: result.median, default=None)


def chosen(samples: Iterable[Row], **tags: Any) -> list[Row]:
    """The rows whose values match `tags`."""
    return [row for row in samples if all(row.get(key) == value for key, value in tags.items())]


def paired_by_round(subject: Sequence[Row], baseline: Sequence[Row]) -> Ratio:
    """Median of the ratios within rounds of one process, over the rounds that contain both."""
    a, b = ({(row["process"], row["round"]): row["seconds"] for row in taken} for taken in (subject, baseline))
    both = sorted(a.keys() & b.keys())
    return paired_ratio([a[key] for key in both], [b[key] for key in both])


def unpaired(subject: Sequence[Row], baseline: Sequence[Row], seed: int = 0) -> Ratio:
    """Ratio of the medians of two sets of samples from different processes, with its 95 % bootstrap interval.

    Samples are resampled within each process, so the interval does not include differences between processes of one
    arm. The medians of the processes are reported separately.
    """
    rng = np.random.default_rng(seed)
    a, b = (_resampled_medians(_by_process(taken), rng) for taken in (subject, baseline))
    low, high = np.quantile(a / b, (0.025, 0.975))
    medians = (np.median([row["seconds"] for row in taken]) for taken in (subject, baseline))
    return Ratio(float(np.divide(*medians)), float(low), float(high))


def _by_process(taken: Sequence[Row]) -> list[npt.NDArray[np.float64]]:
    processes = sorted({row["process"] for row in taken})
    return [np.array([row["seconds"] for row in taken if row["process"] == process]) for process in processes]


def _resampled_medians(groups: Sequence[npt.NDArray[np.float64]], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(RESAMPLES,) medians over all groups together, with each group resampled with replacement."""
    drawn = [group[rng.integers(group.size, size=(RESAMPLES, group.size))] for group in groups]
    return np.median(np.concatenate(drawn, axis=1), axis=1)


@dataclass(frozen=True)
class Law:
    """A curve fitted to the points from `fitted_from` on, as medians over rounds.

    `slope` is the exponent of a power law or the slope of a line; `local` is the slope between neighbouring points.
    """

    x: list[float]
    median: list[float]
    fitted_from: float
    slope: Ratio
    constant: float
    local: list[float]


def power_law(samples: Sequence[Row], key: str) -> Law | None:
    """seconds = constant * x ** slope, fitted by least squares of the logarithms in each round.

    Uses the points that take more than ABOVE_FLOOR times the shortest time, if there are at least two. Below them,
    submitting the operations takes longer than computing them, regardless of x.
    """
    return _law(samples, key, np.log, np.exp, ABOVE_FLOOR)


def line(samples: Sequence[Row], key: str) -> Law | None:
    """seconds = constant + slope * x, fitted by least squares in each round."""
    return _law(samples, key, np.asarray, float)


def depth_samples(record: Mapping[str, Any]) -> tuple[list[Row], str]:
    """Forwards of models of several depths at the smaller size, and the parts that they are from.

    They are from the part `depth`. Without it, they are from `block` and, at full depth, from `forward_mlx`; these are
    rounds of two processes, so nothing is paired.
    """
    own = list(rows(record, "depth", "time"))
    if own:
        return own, "depth"
    shallow = list(rows(record, "block", "time"))
    side = min((row["side"] for row in shallow), default=0)
    shapes = {part["environment"]["shape"] for name, part in record["parts"].items() if name.startswith("forward_mlx")}
    if not shallow or len(shapes) != 1:
        return [], ""
    full = SHAPES[shapes.pop()].config.num_layers
    whole = [{**row, "depth": full} for row in rows(record, "forward_mlx", "time") if row["process"] == 0]
    return chosen(shallow + whole, side=side), "block and forward"


def _law(samples: Sequence[Row], key: str, forth: Any, back: Any, above: float = 0.0) -> Law | None:
    x = sorted({row[key] for row in samples})
    rounds = sorted({(row["process"], row["round"]) for row in samples})
    table = {(row["process"], row["round"], row[key]): row["seconds"] for row in samples}
    whole = [[table[(*round_, value)] for value in x] for round_ in rounds if all((*round_, v) in table for v in x)]
    if len(x) < 2 or not whole:
        return None
    median = np.median(whole, axis=0)
    first = int(np.argmax(median > above * median.min()))
    first = first if first < len(x) - 1 else 0
    fits = [np.polyfit(forth(x[first:]), forth(times[first:]), 1) for times in whole]
    slopes = np.array([fit[0] for fit in fits])
    local = np.diff(forth(median)) / np.diff(forth(x))
    constant = float(back(np.median([fit[1] for fit in fits])))
    return Law(x, median.tolist(), x[first], _median_interval(slopes), constant, local.tolist())


def _median_interval(values: npt.NDArray[np.float64]) -> Ratio:
    """The median with its 95 % interval; NaN for a single value."""
    low, high = median_interval(values, 0.95) if values.size > 1 else (np.nan, np.nan)
    return Ratio(float(np.median(values)), float(low), float(high))


@dataclass(frozen=True)
class ProbeResult:
    """An observed model: its time relative to the same unmodified model in the same round."""

    arm: str
    probes: str
    side: int
    seconds: float
    setup_seconds: float
    arrays: float
    ratio: Ratio


def probe_results(record: Mapping[str, Any]) -> list[ProbeResult]:
    samples = list(rows(record, "probes", "time"))
    results = []
    for arm, probes, side in dict.fromkeys((row["arm"], row["probes"], row["side"]) for row in samples):
        own, untouched = (chosen(samples, arm=arm, probes=name) for name in (probes, "none"))
        if probes != "none" and untouched:
            values = (float(np.median([row[key] for row in own])) for key in ("seconds", "setup_seconds", "arrays"))
            results.append(ProbeResult(arm, probes, side, *values, paired_by_round(own, untouched)))
    return results


@dataclass(frozen=True)
class GuidanceResult:
    """One way to compute both branches of a step; the ratio is to two consecutive forwards in the same round."""

    arm: str
    side: int
    way: str
    seconds: float
    ratio: Ratio


def guidance_results(record: Mapping[str, Any]) -> list[GuidanceResult]:
    samples = list(rows(record, "guidance", "time"))
    results = []
    for arm, side, way in sorted({(row["arm"], row["side"], row["way"]) for row in samples}):
        own, apart = (chosen(samples, arm=arm, side=side, way=name) for name in (way, "one by one"))
        if apart:
            seconds = float(np.median([row["seconds"] for row in own]))
            results.append(GuidanceResult(arm, side, way, seconds, paired_by_round(own, apart)))
    return results


@dataclass(frozen=True)
class StoredResult:
    """`fast` with weights in a format: seconds, and the ratio to bfloat16 in the same rounds.

    coded_gb: what the codes and scales need; packed_gb: what packing leaves in memory; beyond_gb: peak memory beyond
    the weights in bfloat16 that other arms hold; packing_s: seconds until the end of a first forward, less those of a
    later one. None where they were not measured, as for the arms with a stated route.
    """

    format: str
    route: str
    way: str
    side: int
    seconds: float
    ratio: Ratio
    coded_gb: float | None
    packed_gb: float | None
    beyond_gb: float | None
    packing_s: float | None


_OF_MEMORY = ("coded_gb", "packed_gb", "beyond_gb", "packing_s")


def stored_results(record: Mapping[str, Any]) -> list[StoredResult]:
    samples, memory = (list(rows(record, "stored", kind)) for kind in ("time", "memory"))
    results = []
    for stored, route, way, side in dict.fromkeys(
        (row["format"], row["route"], row["way"], row["side"]) for row in samples if row["route"] != "dense"
    ):
        own = chosen(samples, format=stored, route=route, way=way, side=side)
        dense = chosen(samples, route="dense", beside=own[0]["beside"], way=way, side=side)
        peaks = chosen(memory, format=stored, side=side) if route == "measured" else []
        if dense:
            results.append(
                StoredResult(
                    *(stored, route, way, side, float(np.median([row["seconds"] for row in own]))),
                    paired_by_round(own, dense),
                    *(max((row[key] for row in peaks if key in row), default=None) for key in _OF_MEMORY),
                )
            )
    return results


def dense_memory(record: Mapping[str, Any], side: int) -> float | None:
    """The peak memory of `fast` in bfloat16 beyond its weights, in GB."""
    found = chosen(rows(record, "stored", "memory"), format="bfloat16", side=side)
    return max((row["beyond_gb"] for row in found), default=None)
