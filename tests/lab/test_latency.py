"""Timing of a step, and release of a variant's memory afterwards."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pandas as pd
import pytest

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.lab import bench as bench_module
from precision_lab.lab import latency
from precision_lab.lab.bench import Bench
from precision_lab.lab.measures import LatencySpec
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from tests.subjects import settings, source


class _Heavy(Wrapper):
    """Stores a copy of the weight, like quantisation or a permutation."""

    def __init__(self, inner: nn.Module):
        super().__init__(inner)
        self._copy = mx.concatenate([inner.weight] * 4)

    def __call__(self, x: mx.array) -> mx.array:
        return self.inner(x) + 0 * self._copy[0, 0]


@dataclass(frozen=True)
class Heavy:
    sites: Sequence[str] = ("transformer_blocks.*.{img,txt}_mod.1",)
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site: Site) -> nn.Module:
        return _Heavy(site.module)


HEAVY = Variant("heavy", "bfloat16", {"heavy": Heavy()})


@pytest.fixture
def bench(small_checkpoint: Path, tmp_path: Path) -> Bench:
    return Bench(
        RunSpec(
            experiment="timing",
            source=source(small_checkpoint),
            settings=settings(steps=1, height=32, width=32),
            prompts=["a red circle"],
            seeds=[0],
            variants=[Variant("baseline", "bfloat16"), HEAVY],
            baseline="baseline",
            probes={},
            drift_sites=["pipeline:euler_step"],
            latency=LatencySpec(0, 0),
            out=tmp_path,
        )
    )


@pytest.mark.parametrize(("settle", "calls"), [(False, 1), (True, 2)])
def test_a_step_to_settle_is_off_the_clock(settle: bool, calls: int) -> None:
    taken: list[int] = []

    def step() -> mx.array:
        taken.append(0)
        first = len(taken) < calls
        return mx.ones((1 << 20,) if first else (1 << 10,)) + 1

    sample = latency.sample(step, 5, settle)
    assert len(taken) == calls
    assert 5 <= sample.peak_memory_bytes < 1 << 20, "the memory is the timed step's"
    assert 0 < sample.yardstick_seconds < 10


def test_a_round_has_the_yardstick_of_each_step() -> None:
    samplers = {"baseline": lambda: latency.Sample(1.0, 5, 2e-3), "other": lambda: latency.Sample(2.0, 7, 3e-3)}
    rows = latency.measure(samplers, "baseline", LatencySpec(2, 2), margin=0.05)
    table = pd.DataFrame(rows).set_index(["variant", "round"]).sort_index()
    assert table.loc["baseline", "yardstick_seconds"].tolist() == [2e-3, 2e-3]
    assert table.loc["other", "yardstick_seconds"].tolist() == [3e-3, 3e-3]


def test_only_a_gpu_settles(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def sample(step: object, weights_nbytes: int, settle: bool) -> latency.Sample:
        asked.append(settle)
        return latency.Sample(1.0, weights_nbytes)

    monkeypatch.setattr(latency, "sample", sample)
    for backend in ("cpu", "cuda", "metal"):
        monkeypatch.setattr(bench_module, "backend", lambda backend=backend: backend)
        bench.time_step(bench.spec.variants[0])
    assert asked == [False, True, True]


def test_weights_of_a_variant_go_with_it(bench: Bench) -> None:
    """The weights must not wait for the cycle collector: at full size they take up to 22 GB."""
    case = bench.spec.cases[0]
    plain, heavy = bench.spec.variants
    bench.make(Variant(REFERENCE, "float32"), case, [], lambda *_: None)
    light = bench.time_step(plain)  # reads the last weights that were still on disk
    gc.collect()
    gc.disable()
    try:
        # half of the size of the copies
        copies = 4 * 8 * bench.subject("bfloat16").pipeline.transformer.transformer_blocks[0].img_mod[1].weight.nbytes
        before = mx.get_active_memory()
        assert bench.time_step(heavy).peak_memory_bytes > light.peak_memory_bytes + copies / 2
        bench.make(heavy, case, [], lambda *_: None)
        assert mx.get_active_memory() < before + copies / 2
        assert mx.get_cache_memory() < copies / 2
    finally:
        gc.enable()


def test_fp32_and_bf16_share_the_stored_weights(bench: Bench) -> None:
    reference, stored = bench.components("float32"), bench.components("bfloat16")
    for part in ("transformer", "text_encoder", "vae"):
        assert reference[part] is stored[part]
