"""Random planted culprits that are known to be the culprits, and what the search finds of them.

A plant takes if the criterion fails with any one of its sites narrow and everything else wide, and holds with all of
them wide and everything else narrow. Each set that will do then contains every planted site, and the planted sites will
do: under a monotone criterion they are the only minimal set. Runs of `run`, which know nothing of the search, decide
that. Other plants are rejected, and counted.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiments.culprits.plants import CASES, CRITERION_PROMPT, Kind, planted, searched
from precision_lab.cli import main

_MOST_REJECTED = 5
"""The most rejected plants for each that takes, before the kind is given up."""


def cases(checkpoint: Path, root: Path, kind: Kind, first: int, count: int, drift: float) -> Iterator[dict[str, Any]]:
    """Cases of a kind with seeds from `first` on, until `count` plants have taken.

    A case has what the search finds, see `plants.searched`, or the reason why its plant was `rejected`. drift: the
    budget of a kind that has one. root: a folder for checkpoints and searches. Raises RuntimeError if a run fails, and
    if hardly any plant takes.
    """
    taken = 0
    for seed in itertools.count(first):
        if taken == count:
            return
        if seed - first > (_MOST_REJECTED + 1) * count:
            raise RuntimeError(f"of {seed - first} plants of {kind.name}, {taken} take")
        model = root / f"{kind.name}{seed}"
        fragile = planted(checkpoint, model, kind, seed)
        rejected = why_not(model, root / f"{model.name}_direct", kind, fragile, drift)
        about = {"kind": kind.name, "seed": seed, "planted": sorted(fragile)}
        if rejected is None:
            yield about | searched(model, root / f"{model.name}_search", kind, fragile, drift)
            taken += 1
        else:
            yield about | {"rejected": rejected}
        shutil.rmtree(model)


def why_not(model: Path, folder: Path, kind: Kind, fragile: set[str], drift: float) -> str | None:
    """Why the planted sites of a checkpoint are not its culprits, in words; None if they are.

    folder: a new one for the run. Raises RuntimeError if the run fails.
    """
    sites = kind.sites(model)
    if fragile - sites:
        raise ValueError(f"{min(fragile - sites)} is none of the {len(sites)} sites of {kind.name}")
    ordered = sorted(fragile)
    narrow = {"others": sites - fragile, **{f"planted{at}": {site} for at, site in enumerate(ordered)}}
    variants = {name: kind.variant(sorted(chosen), sorted(sites - chosen)) for name, chosen in narrow.items()}
    conf = folder / "conf"
    (conf / "exp").mkdir(parents=True)
    (conf / "exp" / "direct.yaml").write_text(f"# @package _global_\n{yaml.safe_dump({'variants': variants})}")
    code = main(["run", f"--config-dir={conf}", f"model.path={model}", *_RUN, "+exp=direct", f"out={folder / 'run'}"])
    if code:
        raise RuntimeError(f"run ended with exit code {code}")
    found = json.loads((folder / "run" / "summary.json").read_text())["variants"]
    if not _holds(found["others"], kind, drift):
        return f"with all planted sites wide, the criterion fails{_value(found['others'], kind)}"
    for at, site in enumerate(ordered):
        own = found[f"planted{at}"]
        if _holds(own, kind, drift):
            return f"with {site} alone narrow, the criterion holds{_value(own, kind)}"
    return None


_RUN = (
    *CASES,
    f"prompts=[{CRITERION_PROMPT}]",
    *("dtype=float32", "probe=[range]", "probe.range.sites=['transformer_blocks.*','pipeline:**']"),
    *("latency.min_rounds=0", "latency.max_rounds=0"),
)


def _holds(variant: dict[str, Any], kind: Kind, drift: float) -> bool:
    if not kind.has_budget:
        return bool(variant["first_nonfinite"] is None and variant["num_nonfinite"] == 0)
    return variant["latent_rel_l2"] is not None and bool(variant["latent_rel_l2"] <= drift)


def _value(variant: dict[str, Any], kind: Kind) -> str:
    return f" (drift {variant['latent_rel_l2']:.3g})" if kind.has_budget else ""
