"""What a task costs beyond its own work: sent to a process of this machine, and to a worker of a local Dask cluster.

    python -m experiments.benchmarks.task_overhead --rounds 100 --to FILE

A task that only returns files, none, 0.5 MB (a generation of the embedded model leaves 0.45) or 5 MB, goes round trip
in random order. The same call in this process is its own work, which is subtracted. Both processes have begun before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import LocalCluster
from hydra import compose, initialize_config_dir

from precision_lab.cli.config import build_spec, spec_of
from precision_lab.cli.paths import conf_dir
from precision_lab.device.environment import environment, set_numeric_switches
from precision_lab.lab.bench import Advance, Bench
from precision_lab.lab.cluster import connected
from precision_lab.lab.engine import here
from precision_lab.lab.local import Local
from precision_lab.lab.remote import Remote
from precision_lab.lab.spec import HERE
from precision_lab.lab.tasks import Make, Order, silent
from precision_lab.record.files import File

SIZES = (0, 500_000, 5_000_000)


@dataclass(frozen=True)
class Return:
    """Returns a file of so many random bytes."""

    size: int
    case: None = None
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        return [File("file", random.Random(self.size).randbytes(self.size))]


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    set_numeric_switches()
    with initialize_config_dir(str(conf_dir()), version_base=None):
        spec = build_spec(compose("config", ["+exp=baseline"]), ())
    bench = Bench(spec)
    order = Order(spec.resolved, spec_of, Path("/nowhere"), "overhead")
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        remote = Remote(connected(cluster.scheduler_address), order, {}, lambda worker, name: None)
        remote.introduce()
        slots = {"process": Local(order, here(spec.source)), "cluster": remote}
        found: dict[tuple[str, int], list[float]] = {(name, size): [] for name in slots for size in SIZES}
        for slot in slots.values():
            slot.perform(HERE, Return(0))
        rng = random.Random(0)
        for _ in range(options.rounds):
            for name, size in rng.sample(sorted(found), len(found)):
                task = Return(size)
                own = seconds(partial(task, bench, silent))
                found[name, size].append(1000 * (seconds(partial(slots[name].perform, HERE, task)) - own))
        for slot in slots.values():
            slot.close()
    rows = {
        f"{name}, {size} bytes": {
            "median_ms": round(float(np.median(values)), 2),
            "p95_ms": round(float(np.quantile(values, 0.95)), 2),
        }
        for (name, size), values in found.items()
    }
    about = environment()
    summary = {"device": about["device"], "cores": about["cores"], "load": os.getloadavg()[0], "rounds": options.rounds}
    options.to.write_text(json.dumps(summary | {"overhead": rows}, indent=2) + "\n")
    print(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    from experiments.benchmarks import task_overhead  # where other processes find the task

    raise SystemExit(task_overhead.main())
