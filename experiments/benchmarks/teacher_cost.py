"""The cost of teacher forcing: a generation of the reference with a variant, compared with one without.

    python -m experiments.benchmarks.teacher_cost --rounds 10

Runs rounds in random order in one process, and prints the median and MAD of the seconds and of the ratio per round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from precision_lab.device import blas

blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402

from precision_lab.device.environment import device_name, set_numeric_switches  # noqa: E402
from precision_lab.lab.measures import TeacherSpec  # noqa: E402
from precision_lab.lab.subject import Case, generation, picture_of  # noqa: E402
from precision_lab.lab.teacher import Teacher  # noqa: E402
from precision_lab.synthetic.source import QwenImage  # noqa: E402

PROMPT = "two red circles on a blue background, left"
SITES = ("transformer_blocks.*", "{norm_out,proj_out}")
PLAIN = "plain"


class Benchmark:
    """The reference's generation, alone or with one plain variant of `dtype` teacher-forced in some of its steps."""

    def __init__(self, path: str, dtype: str, settings: Mapping[str, Any]):
        self.source = QwenImage("benchmark", path)
        self.dtype, self.case = getattr(mx, dtype), Case(0, PROMPT, 0, settings)
        self.reference = self.source.load(mx.float32)
        self.steps = self.source.steps(self.case)

    def plain(self) -> None:
        *_, (_, last) = generation(self.reference, self.case, self.steps)
        picture_of(self.reference, last.state)

    def shadowed(self, steps: Collection[int]) -> None:
        teacher = Teacher(self.source.layout, SITES, steps)
        variants = {"variant": (self.source.load(self.dtype), self.dtype, {})}
        with teacher.shadowing(variants, self.case), teacher.watching(self.reference.components):
            for number, (before, step) in enumerate(generation(self.reference, self.case, self.steps)):
                teacher.step(number, before, step)
            picture_of(self.reference, step.state)

    @property
    def arms(self) -> Mapping[str, Callable[[], None]]:
        def shadowed(mode: str) -> Callable[[], None]:
            return lambda: self.shadowed(TeacherSpec(SITES, mode).steps(self.steps, 0))

        return {PLAIN: self.plain, "sampled": shadowed("sampled"), "full": shadowed("full")}


def measure(arms: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each arm in each round, after one warm-up round."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-1, rounds):
        for name in rng.permutation(list(arms)):
            start = time.perf_counter()
            arms[str(name)]()
            if turn >= 0:
                seconds[str(name)].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(values: np.ndarray) -> str:
    median = np.median(values)
    return f"{median:.3f} ± {np.median(np.abs(values - median)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package://micro", help="a folder; default: embedded")
    parser.add_argument("--dtype", default="bfloat16", help="of the variant")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    set_numeric_switches()
    settings = {"steps": args.steps, "height": args.size, "width": args.size}
    seconds = measure(Benchmark(args.model, args.dtype, settings).arms, args.rounds)
    print(
        f"{device_name()}, {args.dtype} on the inputs of float32, {args.steps} steps, {args.size} x {args.size} pixels"
    )
    print(f"{args.rounds} rounds, median ± median absolute deviation")
    for name, values in seconds.items():
        print(f"{name:>8}  {spread(values)} s   {spread(values / seconds[PLAIN])} times plain")


if __name__ == "__main__":
    main()
