"""One entry of a baseline: the records of a run on one device and MLX version, and the origin of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from precision_lab.analysis.gate import bands, cost, drift, rounding, sketches
from precision_lab.analysis.gate.settings import settings_of
from precision_lab.analysis.health import health
from precision_lab.errors import InputError
from precision_lab.record.run import Run

ABOUT = ("device", "mlx", "learned_from", "settings", "cost", "component")
"""The parts of an entry that are not lists of sites."""

LISTS = {"bands": bands, "drift": drift, "sketches": sketches, "rounding": rounding}
"""The lists of sites, with the module that reads and writes the records of each."""


@dataclass(frozen=True)
class Entry:
    """The measure that the gate compares a run with.

    device: name and, of a CPU, its cores; learned_from: the run, in words and numbers, for people; settings: what
    another run must share; bands, drift, sketches, rounding: as the modules of these names learn them; cost: times and
    memory; component: the default one of the layout, which the records of sites do not name.
    """

    device: str
    mlx: str
    learned_from: Mapping[str, Any]
    settings: Mapping[str, Any]
    cost: Mapping[str, Any]
    component: str
    bands: pd.DataFrame
    drift: pd.DataFrame
    sketches: pd.DataFrame
    rounding: pd.DataFrame

    @property
    def noise(self) -> Mapping[tuple[str, str], float]:
        return drift.noise_floors(self.sketches)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON; its lists have one record a site."""
        about: dict[str, Any] = {name: getattr(self, name) for name in ABOUT}
        sites = {name: module.to_records(getattr(self, name), self.component) for name, module in LISTS.items()}
        return about | sites

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Entry:
        """Raises InputError for an entry of another form."""
        missing = [name for name in (*ABOUT, *LISTS) if name not in raw and name != "rounding"]
        if missing:
            raise InputError(f"An entry of the baseline has no {missing[0]}. Learn it again with gate.update=true")
        return cls(
            **{name: raw[name] for name in ABOUT},
            # an entry without an arbiter, or from before rates were learned, has none
            **{name: module.from_records(raw.get(name, ()), str(raw["component"])) for name, module in LISTS.items()},
        )


def learn(run: Run, config: Mapping[str, Any]) -> Entry:
    """An entry from a finished run. config: its config.yaml.

    Raises InputError for a run that must not become a measure for others: unfinished, with a variant that raised or
    broke its expectation of finite values, with a reference that is not finite, or with nothing to compare.
    """
    manifest, layout = run.completed().manifest, run.layout
    for variant, error in manifest.errors.items():
        raise InputError(f"No baseline is learned from {run.path}: its variant {variant} failed: {error}")
    _refuse_nonfinite(run)
    for doubt in health(run):
        raise InputError(f"No baseline is learned from {run.path}: {doubt.text}")
    table = run.sketches
    pinned = sketches.learn(table, layout) if len(table) else sketches.from_records([], layout.default)
    environment, checkpoint = manifest.environment, manifest.checkpoint
    learned_from = {
        "created": manifest.finished,
        "commit": environment.commit,
        "dirty": environment.dirty,
        "command": list(manifest.command),
        "os": environment.os,
        "blas": environment.blas,
        "checkpoint": {"name": checkpoint.name, "path": checkpoint.path, "weights": checkpoint.weights},
        "prompts": list(manifest.prompts),
        "seeds": list(manifest.seeds),
        "noise_floor": bool(len(table)) and bool((table["variant"] == sketches.EQUIVALENT).any()),
    }
    # the reference has pinned cases, where it is known to the last digits
    ranges = run.activations[run.activations["variant"] != run.reference]
    if ranges.empty or "num_nan" not in ranges:
        raise InputError(f"No baseline is learned from {run.path}: it recorded no ranges. Add probe=[range]")
    return Entry(
        device=environment.machine,
        mlx=str(environment.mlx),
        learned_from=learned_from,
        settings=settings_of(manifest, config),
        cost=cost.measured(run.latency, manifest.baseline),
        component=layout.default,
        bands=bands.learn(ranges),
        drift=drift.learn(run.drift, drift.noise_floors(pinned)),
        sketches=pinned,
        rounding=rounding.learn(ranges, layout),
    )


def _refuse_nonfinite(run: Run) -> None:
    table = run.activations
    if "num_nan" not in table:
        return
    strict = {name for name, variant in run.manifest.variants.items() if variant.expect == "finite"}
    count = table["num_nan"].fillna(0) + table["num_inf"].fillna(0)
    bad = table[(count > 0) & table["variant"].isin({*strict, run.reference})].sort_values("order")
    if len(bad):
        row = bad.iloc[0]
        address = run.layout.address(row["component"], row["site"], row["port"])
        raise InputError(f"No baseline is learned from {run.path}: {row['variant']} is not finite at {address}")
