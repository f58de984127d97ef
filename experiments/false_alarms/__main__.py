"""False alarms and power of the gate, on held-out prompts and seeds of the micro model.

    python -m experiments.false_alarms --baseline results/baselines/cpu/gate.json --runs 200 --to DIR

Judges held-out runs, each with one prompt and seed, by the bands of a baseline. Then measures the power: one gate of a
random block is multiplied by a factor, on held-out runs and on the pinned cases. Each run is appended to DIR/runs.jsonl
or DIR/power.jsonl immediately, so that an interrupted study can continue. DIR/summary.json and DIR/tables.md are
written at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from precision_lab.device import blas

blas.preload()  # before MLX is imported

from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from experiments.false_alarms.heldout import HeldOut, TimesGate, draws  # noqa: E402
from experiments.false_alarms.judging import deviations, fare  # noqa: E402
from experiments.false_alarms.tables import markdown, summary  # noqa: E402
from precision_lab.analysis.gate import sketches  # noqa: E402
from precision_lab.analysis.gate.baseline import choose, read  # noqa: E402
from precision_lab.analysis.gate.entry import Entry  # noqa: E402
from precision_lab.analysis.gate.judge import Limits  # noqa: E402
from precision_lab.analysis.gate.settings import require_same  # noqa: E402
from precision_lab.cli.config import build_spec  # noqa: E402
from precision_lab.cli.paths import conf_dir  # noqa: E402
from precision_lab.device.environment import backend, environment, set_numeric_switches  # noqa: E402
from precision_lab.lab.spec import RunSpec  # noqa: E402
from precision_lab.record.manifest import Environment  # noqa: E402

FACTORS = (1.02, 1.05, 1.1, 1.25, 1.5, 2.0)
SITES = "transformer_blocks.{block}.{stream}_add{half}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--gates", type=int, default=6, help="gates whose factors make the power curve")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts, seeds and gates")
    parser.add_argument(
        "--pinned", action="store_true", help="only print how far the pinned cases of this machine deviate"
    )
    parser.add_argument("--baseline", type=Path, required=True, help="what `gate +exp=gate gate.update=true` wrote")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument(
        "--shard", default="0/1", help="I/N: every Nth run, from the Ith; their logs can be put together"
    )
    parser.add_argument(
        "overrides", nargs="*", default=["+exp=gate"], help="those of the baseline, +exp=gate alone if none"
    )
    arguments = parser.parse_args()

    set_numeric_switches()
    here = Environment(**environment())
    choice = choose(read(arguments.baseline, backend(), "gate"), here.machine, str(here.mlx))
    spec = spec_of(arguments.overrides, choice.entry, str(arguments.baseline))
    arguments.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="false-alarms-") as folder:
        study = Study(HeldOut(spec, Path(folder) / "run"), choice.entry, arguments.to)
        if arguments.pinned:
            print(here.machine, "against", choice.entry.device)
            print(json.dumps(deviations(choice.entry, study.held_out.pinned(), study.limits, study.layout)))
            return
        first, stride = map(int, arguments.shard.split("/"))
        study.false_alarms(arguments.runs, arguments.seed, slice(first, None, stride))
        study.power(arguments.gates, arguments.seed)
    found = summary(study.records("runs"), study.records("power"), study.limits)
    found |= {"overrides": arguments.overrides, "baseline": {"match": choice.match, **choice.entry.learned_from}}
    (arguments.to / "summary.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    (arguments.to / "tables.md").write_text(markdown(found))
    print(markdown(found))


class Study:
    """Judges held-out runs against one entry of a baseline, and logs each result immediately."""

    def __init__(self, held_out: HeldOut, entry: Entry, to: Path):
        self.held_out, self.entry, self.to = held_out, entry, to
        self.layout = held_out.bench.layout
        self.limits = Limits().on(backend())

    def records(self, log: str) -> list[dict[str, Any]]:
        """The current records of a log."""
        file = self.to / f"{log}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def false_alarms(self, count: int, seed: int, shard: slice = slice(None)) -> None:
        """Judges the runs that `shard` selects out of `count` runs of the plain model and that are not in the log."""
        done = len(self.records("runs"))
        for case in list(self._draws(count, seed))[shard][done:]:
            begun = time.perf_counter()
            judged = fare(self.entry, self.held_out.run(case), self.limits, self.layout)
            self._log(
                "runs",
                prompt=case.prompt,
                seed=case.seed,
                alarms=[f"{v.address} {v.variant} {v.metric}: {v.got}, not {v.expected}" for v in judged.violations],
                used={kind: use and use._asdict() for kind, use in judged.used.items()},
                seconds=round(time.perf_counter() - begun, 1),
            )

    def power(self, gates: int, seed: int) -> None:
        """Tests every factor at a few random gates, each on a new held-out prompt and seed, and on the pinned cases."""
        rng = np.random.default_rng(seed)
        blocks, streams = self.layout.depth, list(self.layout.streams)
        sites = [
            SITES.format(block=rng.integers(blocks), stream=rng.choice(streams), half=rng.integers(1, 3))
            for _ in range(gates)
        ]
        trials = [(site, factor) for site in sites for factor in FACTORS]
        done = len(self.records("power"))
        for index, ((site, factor), case) in enumerate(zip(trials, self._draws(len(trials), seed + 1), strict=True)):
            if index < done:
                continue
            mistake = TimesGate([site], factor)
            judged = fare(self.entry, self.held_out.run(case, mistake), self.limits, self.layout)
            tolerance, factor_of_noise = self.limits.tolerance, self.limits.noise_factor
            assert tolerance is not None
            table = self.held_out.pinned(mistake)
            pinned = sketches.judge(self.entry.sketches, table, tolerance, factor_of_noise, self.layout)
            named = [v.address for v in pinned.violations]
            self._log(
                "power",
                site=site,
                factor=factor,
                held_out={"caught": bool(judged.violations), "first": judged.first_sites},
                pinned={"caught": bool(named), "first": list(dict.fromkeys(named))[:3]},
            )

    def _draws(self, count: int, seed: int) -> Any:
        learned = self.entry.learned_from
        return draws(count, seed, learned["prompts"], learned["seeds"])

    def _log(self, log: str, **record: Any) -> None:
        with (self.to / f"{log}.jsonl").open("a") as stream:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
        print(log, record, flush=True)


def spec_of(overrides: Sequence[str], entry: Entry, baseline: str) -> RunSpec:
    """The spec of `python -m precision_lab gate` with these overrides. Raises InputError if the entry's differ."""
    with initialize_config_dir(str(conf_dir()), version_base=None):
        config = compose("config", list(overrides))
    given: Any = OmegaConf.to_container(config, resolve=True)
    spec = build_spec(config, ["false_alarms"])
    shared = {"case": spec.settings, "probe": given["probe"], "drift": given["drift"]}
    require_same(shared, {key: entry.settings[key] for key in shared}, baseline)
    return spec


if __name__ == "__main__":
    main()
