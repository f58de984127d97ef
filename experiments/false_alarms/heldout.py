"""Cheap held-out runs: the gate's variants on one prompt and seed from which no baseline was learned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from precision_lab.instrument.sites import Site, Wrapper
from precision_lab.lab.bench import Bench
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case, generation, picture_of
from precision_lab.probes.sketches import Sketches
from precision_lab.record.tables import read
from precision_lab.shapes import all_scenes
from precision_lab.techniques.faint_inputs import FaintInputs


def draws(count: int, seed: int, learned_prompts: Sequence[str], learned_seeds: Sequence[int]) -> Iterator[Case]:
    """Random seeds, and captions of 7 to 9 words of random scenes; none is among the learned prompts and seeds."""
    rng = np.random.default_rng(seed)
    captions = [scene.caption for scene in all_scenes() if scene.caption not in learned_prompts]
    for caption in rng.choice(captions, count, replace=False):
        noise = int(rng.integers(1000, 2**31))
        assert noise not in learned_seeds
        yield Case(0, str(caption), noise)


@dataclass(frozen=True)
class TimesGate:
    """A deliberate mistake as a technique: it multiplies the gate of one residual add."""

    sites: Sequence[str]
    factor: float
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = True

    def rewrite(self, site: Site) -> Wrapper:
        return _TimesGate(site.module, self.factor)


class _TimesGate(Wrapper):
    def __init__(self, inner: object, factor: float):
        super().__init__(inner)
        self.factor = factor

    def __call__(self, residual, gate, update):  # type: ignore[no-untyped-def]
        return self.inner(residual, gate * self.factor, update)


class HeldOut:
    """Executes consecutive runs on weights that are loaded once."""

    def __init__(self, spec: RunSpec, folder: Path):
        self.bench = Bench(replace(spec, out=folder))
        self.folder = folder

    def run(self, case: Case, mistake: TimesGate | None = None) -> Mapping[str, pd.DataFrame]:
        """The tables `activations` and `drift` of all variants except the reference. `mistake` changes both."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.bench.spec = replace(self.bench.spec, prompts=[case.prompt], seeds=[case.seed])
        (own,) = self.bench.spec.cases
        for variant in self.bench.spec.all_variants:
            for file in self.bench.make(_with(variant, mistake), own, [], lambda *_: None):
                file.write(self.folder)
        tables = {name: read(self.folder, name) for name in ("activations", "drift")}
        return {name: table[table["variant"] != REFERENCE] for name, table in tables.items()}

    def pinned(self, mistake: TimesGate | None = None) -> pd.DataFrame:
        """The table `sketches` of the pinned cases, for a reference with `mistake`."""
        spec = self.bench.spec
        rows: list[dict[str, Any]] = []
        for name, pinned in spec.pinned.cases.items():
            settings = {**spec.settings, "steps": spec.pinned.steps, **pinned.settings}
            case = Case(0, pinned.prompt, pinned.seed, settings)
            recorder = ProbeRecorder(Sketches(spec.pinned.sites))
            faint = {"faint_inputs": FaintInputs(pinned.faint)} if pinned.faint else {}
            with (
                self.bench.variant(_with(Variant(REFERENCE, "float32", faint), mistake)) as (subject, components, _),
                observing(components, [recorder]),
            ):
                state: Any = None
                for _, step in generation(subject, case, self.bench.steps(case)):
                    state = step.state
                picture_of(subject, state)
            rows += [{"variant": REFERENCE, "case": name, **row} for row in recorder.rows]
        return pd.DataFrame(rows)


def _with(variant: Variant, mistake: TimesGate | None) -> Variant:
    return variant if mistake is None else replace(variant, techniques={**variant.techniques, "mistake": mistake})
