"""The cost of observation: generations with each probe, and with all of them, compared with one without.

    python -m experiments.benchmarks.probe_cost [--rounds 5] [--steps 6] [--only catalogue range] [--to FILE.json]

`catalogue` contains every probe except the arbiter, which recomputes operations in float64: the range catalogue at
every block and every operation in it, and the others at their configured sites. A generation runs text encoding,
denoising with guidance and decoding on the embedded model in bfloat16, and writes the rows of its probes as parquet
parts. All ratios are within one round of one process, in rotating order. The picture must not change by a bit. On a
machine with other load, the ratio of processor time is more reliable than that of wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from precision_lab.device import blas
from precision_lab.device.environment import set_numeric_switches

# before MLX is imported, like the command line
blas.preload()
set_numeric_switches()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from precision_lab.cli.config import build  # noqa: E402
from precision_lab.device.environment import environment  # noqa: E402
from precision_lab.lab.frames import frames_of  # noqa: E402
from precision_lab.lab.observing import observing  # noqa: E402
from precision_lab.lab.recorder import recorder_of  # noqa: E402
from precision_lab.lab.subject import Case, generation, picture_of  # noqa: E402
from precision_lab.probes.base import Probe, StreamProbe  # noqa: E402
from precision_lab.record import tables  # noqa: E402
from precision_lab.synthetic.source import QwenImage  # noqa: E402

ROOT = Path(__file__).parents[2]
PROMPT = "two red circles on a blue background, left"
EVERYWHERE = ("transformer_blocks.*", "transformer_blocks.*.**")


def arms() -> dict[str, Mapping[str, Any]]:
    """The sets of probes to compare: none, the catalogue, and each configured probe alone."""
    groups = OmegaConf.create({"sites": OmegaConf.load(ROOT / "conf" / "sites" / "qwen_image.yaml")})
    probes = {
        path.stem: build(OmegaConf.merge(groups, OmegaConf.load(path))[path.stem], Probe, path.stem, StreamProbe)
        for path in sorted((ROOT / "conf" / "probe").glob("*.yaml"))
    }
    everywhere = replace(probes["range"], sites=(*probes["range"].sites, *EVERYWHERE))
    catalogue = {name: probe for name, probe in probes.items() if name != "arbiter"} | {"range": everywhere}
    alone = {name: {name: probe} for name, probe in probes.items()}
    return {"none": {}, "catalogue": catalogue, "range everywhere": {"range": everywhere}, **alone}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", help="these sets of probes, besides none")
    parser.add_argument("--to", type=Path, help="a JSON file for every sample")
    options = parser.parse_args(argv)
    subject = QwenImage("micro", "package://micro").load(mx.bfloat16)
    case = Case(0, PROMPT, 0, {"steps": options.steps})
    pictures: list[np.ndarray] = []

    def seconds(probes: Mapping[str, Any]) -> tuple[float, float]:
        """Seconds of wall-clock time and of processor time."""
        with tempfile.TemporaryDirectory() as folder:
            start, start_cpu = time.perf_counter(), time.process_time()
            recorders = [recorder_of(probe) for probe in probes.values()]
            with observing(subject.components, recorders):
                *_, (_, last) = generation(subject, case, options.steps)
                pictures.append(picture_of(subject, last.state))
            for table, frame in frames_of(recorders).items() if recorders else ():
                tables.write_part(Path(folder), table, "p0", frame)
            return time.perf_counter() - start, time.process_time() - start_cpu

    compared = arms()
    names = [name for name in compared if not options.only or name in ("none", *options.only)]
    seconds({})  # the first call reads the weights
    seconds(compared["catalogue"])
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in range(options.rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            taken[name].append(seconds(compared[name]))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures), "observing changed the picture"

    ratios = {
        name: [(t / n, t_cpu / n_cpu) for (t, t_cpu), (n, n_cpu) in zip(taken[name], taken["none"], strict=True)]
        for name in names
    }
    print(f"{'probes':18s} {'seconds':>8s}   ratio by the clock    of processor time")
    for name in names:
        clock, cpu = zip(*ratios[name], strict=True)
        middle = statistics.median(t for t, _ in taken[name])
        print(f"{name:18s} {middle:8.2f}   {_spread(clock)}    {_spread(cpu)}")
    if options.to:
        record = {"environment": environment(), "steps": options.steps, "seconds": taken, "ratios": ratios}
        options.to.write_text(json.dumps(record, indent=2) + "\n")


def _spread(ratios: Sequence[float]) -> str:
    """Median, minimum and maximum, as text."""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


if __name__ == "__main__":
    main()
