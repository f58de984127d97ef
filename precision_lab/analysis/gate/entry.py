"""One entry of a baseline: what a run of one device and MLX version taught, and what it was learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from precision_lab.analysis.gate import bands, cost, drift, sketches
from precision_lab.analysis.gate.settings import settings_of
from precision_lab.analysis.summary import read_manifest
from precision_lab.errors import InputError
from precision_lab.record.tables import read

ABOUT = ("device", "mlx", "learned_from", "settings", "cost")
"""The parts of an entry that are not lists of sites."""

LISTS = {"bands": bands, "drift": drift, "sketches": sketches}
"""Those that are, and the module that reads and writes the records of each."""


@dataclass(frozen=True)
class Entry:
    """What the gate compares a run with.

    device: name and, of a CPU, its cores; learned_from: the run, in words and numbers, for people; settings: what
    another run must share; bands, drift, sketches: as the modules of these names learn them; cost: times and memory.
    """

    device: str
    mlx: str
    learned_from: Mapping[str, Any]
    settings: Mapping[str, Any]
    cost: Mapping[str, Any]
    bands: pd.DataFrame
    drift: pd.DataFrame
    sketches: pd.DataFrame

    @property
    def noise(self) -> Mapping[tuple[str, str], float]:
        return drift.noise_floors(self.sketches)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON; `bands`, `drift` and `sketches` are lists of one record a site."""
        told: dict[str, Any] = {name: getattr(self, name) for name in ABOUT}
        return told | {name: module.to_records(getattr(self, name)) for name, module in LISTS.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Entry:
        """Raises InputError for an entry of another form."""
        missing = [name for name in (*ABOUT, *LISTS) if name not in raw]
        if missing:
            raise InputError(f"An entry of the baseline has no {missing[0]}. Learn it again with gate.update=true")
        return cls(
            **{name: raw[name] for name in ABOUT},
            **{name: module.from_records(raw[name]) for name, module in LISTS.items()},
        )


def device_of(environment: Mapping[str, Any]) -> str:
    """What tells devices apart: the name, and of a CPU the number of cores, since its marketing name says little."""
    name, cores = environment["device"], environment.get("cores")
    return f"{name}, {cores} cores" if environment["backend"] == "cpu" else str(name)


def complete_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run that was finished. Raises InputError for any other."""
    manifest = read_manifest(run)
    if manifest["status"] != "complete":
        raise InputError(
            f"The run in {run} is {manifest['status']}, expected a complete one. "
            "Continue it with its own command and resume=true, or run it again"
        )
    return manifest


def learn(run: Path, config: Mapping[str, Any]) -> Entry:
    """An entry from a finished run. config: its config.yaml.

    Raises InputError for a run that must not become a measure for others: unfinished, with a variant that raised or
    broke its expectation of finite values, with a reference that is not finite, or with nothing to compare.
    """
    manifest = complete_manifest(run)
    for variant, error in manifest["errors"].items():
        raise InputError(f"No baseline is learned from {run}: its variant {variant} failed: {error}")
    activations = read(run, "activations")
    _refuse_nonfinite(run, activations, manifest)
    reference = manifest["reference"]["variant"]
    table = read(run, "sketches")
    pinned = sketches.learn(table) if len(table) else sketches.from_records([])
    environment, checkpoint = manifest["environment"], manifest["checkpoint"]
    learned = {
        "created": manifest["finished"],
        "commit": environment["commit"],
        "dirty": environment["dirty"],
        "command": manifest["command"],
        "os": environment["os"],
        "blas": environment["blas"],
        "checkpoint": {key: checkpoint[key] for key in ("name", "path", "weights")},
        "prompts": manifest["prompts"],
        "seeds": manifest["seeds"],
        "noise_floor": bool(len(table)) and bool((table["variant"] == sketches.EQUIVALENT).any()),
    }
    # the reference has pinned cases, where it is known to the last digits
    ranges = activations[activations["variant"] != reference]
    if ranges.empty or "num_nan" not in ranges:
        raise InputError(f"No baseline is learned from {run}: it recorded no ranges. Add probe=[range]")
    return Entry(
        device=device_of(environment),
        mlx=environment["mlx"],
        learned_from=learned,
        settings=settings_of(manifest, config),
        cost=cost.measured(read(run, "latency"), manifest["baseline"]),
        bands=bands.learn(ranges),
        drift=drift.learn(read(run, "drift"), drift.noise_floors(pinned)),
        sketches=pinned,
    )


def _refuse_nonfinite(run: Path, activations: pd.DataFrame, manifest: Mapping[str, Any]) -> None:
    if "num_nan" not in activations:
        return
    strict = {name for name, variant in manifest["variants"].items() if variant["expect"] == "finite"}
    strict.add(manifest["reference"]["variant"])
    count = activations["num_nan"].fillna(0) + activations["num_inf"].fillna(0)
    bad = activations[(count > 0) & activations["variant"].isin(strict)].sort_values("order")
    if len(bad):
        row = bad.iloc[0]
        raise InputError(
            f"No baseline is learned from {run}: {row['variant']} is not finite at {row['component']}:{row['site']}"
        )
