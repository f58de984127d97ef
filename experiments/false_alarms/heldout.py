"""Cheap held-out runs: the gate's variants on one prompt and seed that no baseline was learned from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from precision_lab.lab.generation import generate

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.lab.bench import Bench
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.lab.spec import REFERENCE, Case, RunSpec, Variant
from precision_lab.probes.sketches import Sketches
from precision_lab.record.tables import read
from precision_lab.shapes import all_scenes


def draws(count: int, seed: int, learned_prompts: Sequence[str], learned_seeds: Sequence[int]) -> Iterator[Case]:
    """Captions of random scenes, of 7 to 9 words, and random seeds, none of them among those learned from."""
    rng = np.random.default_rng(seed)
    captions = [scene.caption for scene in all_scenes() if scene.caption not in learned_prompts]
    for caption in rng.choice(captions, count, replace=False):
        noise = int(rng.integers(1000, 2**31))
        assert noise not in learned_seeds
        yield Case(0, str(caption), noise)


@dataclass(frozen=True)
class TimesGate:
    """A technique that is a mistake: the gate of one residual add is multiplied."""

    sites: Sequence[str]
    factor: float
    preserves_function: bool = False
    composes: bool = True

    def rewrite(self, site: Site) -> Wrapper:
        return _TimesGate(site.module, self.factor)


class _TimesGate(Wrapper):
    def __init__(self, inner: object, factor: float):
        super().__init__(inner)
        self.factor = factor

    def __call__(self, residual, gate, update):  # type: ignore[no-untyped-def]
        return self.inner(residual, gate * self.factor, update)


class HeldOut:
    """Makes runs one after another on weights that are loaded once."""

    def __init__(self, spec: RunSpec, folder: Path):
        self.bench = Bench(replace(spec, out=folder))
        self.folder = folder

    def run(self, case: Case, mistake: TimesGate | None = None) -> Mapping[str, pd.DataFrame]:
        """The tables `activations` and `drift` of all variants but the reference, which `mistake` changes too."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.bench.spec = replace(self.bench.spec, prompts=[case.prompt], seeds=[case.seed])
        for variant in self.bench.spec.all_variants:
            self.bench.make(_with(variant, mistake), case, [], lambda *_: None)
        tables = {name: read(self.folder, name) for name in ("activations", "drift")}
        return {name: table[table["variant"] != REFERENCE] for name, table in tables.items()}

    def pinned(self, mistake: TimesGate | None = None) -> pd.DataFrame:
        """The table `sketches` of the pinned cases, of a reference with `mistake`."""
        spec, rows = self.bench.spec, []
        for name, pinned in spec.pinned.cases.items():
            sampler = replace(spec.sampler, steps=spec.pinned.steps, height=pinned.height, width=pinned.width)
            recorder = ProbeRecorder(Sketches(spec.pinned.sites))
            with (
                self.bench.variant(_with(Variant(REFERENCE, "float32"), mistake)) as (pipeline, _),
                observing(pipeline.components, [recorder]),
            ):
                grid = pipeline.grid(pinned.height, pinned.width)
                generate(pipeline, sampler, grid, Case(0, pinned.prompt, pinned.seed), lambda *_: None)
            rows += [{"variant": REFERENCE, "case": name, **row} for row in recorder.rows]
        return pd.DataFrame(rows)


def _with(variant: Variant, mistake: TimesGate | None) -> Variant:
    return variant if mistake is None else replace(variant, techniques={**variant.techniques, "mistake": mistake})
