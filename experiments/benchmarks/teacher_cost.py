"""The cost of teacher forcing: a generation of the reference with a variant, compared with one without.

    python -m experiments.benchmarks.teacher_cost --rounds 10

Runs rounds in random order in one process, and prints the median and MAD of the seconds and of the ratio per round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from precision_lab.device import blas

blas.preload()  # before MLX is imported

import mlx.core as mx  # noqa: E402

from precision_lab.cli.paths import checkpoints_dir  # noqa: E402
from precision_lab.device.environment import device_name, set_numeric_switches  # noqa: E402
from precision_lab.lab.generation import generate  # noqa: E402
from precision_lab.lab.models import Models  # noqa: E402
from precision_lab.lab.spec import Case, SamplerSpec, TeacherSpec  # noqa: E402
from precision_lab.lab.teacher import Teacher  # noqa: E402
from precision_lab.model.qwen_image.checkpoint import Checkpoint  # noqa: E402
from precision_lab.model.qwen_image.pipeline import Conditioning, Step  # noqa: E402

CASE = Case(0, "two red circles on a blue background, left", 0)
PLAIN = "plain"


class Benchmark:
    """The reference's generation, alone or with one plain variant of `dtype` teacher-forced in some of its steps."""

    def __init__(self, checkpoint: Path, dtype: str, sampler: SamplerSpec):
        self.models = Models(Checkpoint(checkpoint))
        self.dtype, self.sampler = getattr(mx, dtype), sampler
        self.reference = self.models(mx.float32)
        self.grid = self.reference.grid(sampler.height, sampler.width)

    def plain(self) -> None:
        generate(self.reference, self.sampler, self.grid, CASE, lambda *_: None)

    def taught(self, steps: Collection[int]) -> None:
        count = self.sampler.steps
        teacher = Teacher(TeacherSpec().sites, steps)

        def on_step(step: Step, before: mx.array, texts: Sequence[Conditioning | None]) -> None:
            teacher.step(step, before, self.grid, count, self.sampler.guidance_scale, texts)

        variants = {"variant": (self.models(self.dtype), {})}
        with teacher.shadowing(variants, self.grid, count, CASE.prompt), teacher.watching(self.reference):
            generate(self.reference, self.sampler, self.grid, CASE, on_step)

    @property
    def arms(self) -> Mapping[str, Callable[[], None]]:
        def taught(mode: str) -> Callable[[], None]:
            return lambda: self.taught(TeacherSpec(mode=mode).steps(self.sampler.steps, 0))

        return {PLAIN: self.plain, "sampled": taught("sampled"), "full": taught("full")}


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
    parser.add_argument("--model", type=Path, default=checkpoints_dir() / "micro", help="a folder; default: embedded")
    parser.add_argument("--dtype", default="bfloat16", help="of the variant")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    set_numeric_switches()
    sampler = SamplerSpec(steps=args.steps, height=args.size, width=args.size)
    seconds = measure(Benchmark(args.model, args.dtype, sampler).arms, args.rounds)
    print(f"{device_name()}, {args.dtype} taught by float32, {args.steps} steps, {args.size} x {args.size} pixels")
    print(f"{args.rounds} rounds, median ± median absolute deviation")
    for name, values in seconds.items():
        print(f"{name:>8}  {spread(values)} s   {spread(values / seconds[PLAIN])} times plain")


if __name__ == "__main__":
    main()
