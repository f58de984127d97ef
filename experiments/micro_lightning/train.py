"""Trains the adapter: the student's 4 steps without guidance follow the teacher's trajectory.

    python -m experiments.micro_lightning.train WORK --minutes 20      one slice; repeat until it says all are done

The student starts from the teacher's noise and takes its own 4 steps. At each, the target is the teacher's state at the
next level, so the student learns to return from where it really is (as DAgger does; Ross et al., arXiv:1011.0686), and
each forward serves both the sampling and the loss. Guidance and 20 steps are distilled at once. Only trajectories whose
picture the checker reads right are used. The adapter, Adam's moments and the step are in WORK/adapter.safetensors; each
step draws from a generator seeded by its number, so slices of any length give the same training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.micro_checkpoint import state
from experiments.micro_checkpoint.model import Parameters
from experiments.micro_checkpoint.pools import LEAST_WEIGHT
from experiments.micro_lightning.student import TARGETS, Base, adapted, initial, row_norms, sample
from experiments.micro_lightning.teacher import CHECKPOINT, LEVELS

BATCH = 8
"""Trajectories in a step; each gives a sample at each of the 4 levels."""

PARTS = 2
"""Threads, each with a part of the batch: faster than the threads of PyTorch, whose products are small here."""

LEARNING_RATE = 1e-3
WARMUP = 20
CLIP = 1.0
SEED = 6
EVERY = 10
"""Steps between two lines of the log."""


@dataclass(frozen=True)
class Trajectories:
    """states: (n, levels, N, 64). text: (n, T, 64). mask: (n, T)."""

    states: torch.Tensor
    text: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Trajectories:
        """Those whose picture is right."""
        chunks = [load_file(path) for path in paths]
        right = torch.cat([chunk["right"] for chunk in chunks])
        states = torch.cat([chunk["states"] for chunk in chunks], 1).transpose(0, 1)
        text, mask = (torch.cat([chunk[name] for chunk in chunks]) for name in ("text", "mask"))
        return cls(states[right].contiguous(), text[right], mask[right])

    def __len__(self) -> int:
        return len(self.states)

    def at(self, rows: torch.Tensor) -> Trajectories:
        return Trajectories(self.states[rows], self.text[rows], self.mask[rows])

    def weight(self) -> torch.Tensor:
        """(64,) of each packed latent channel in the loss: the variance of the last states, as for the base."""
        used = self.states[:, -1].flatten(0, 1).var(0).clamp(min=LEAST_WEIGHT)
        return used / used.mean()


def gradients(
    base: Base, weights: Parameters, part: Trajectories, channels: torch.Tensor, count: int
) -> tuple[torch.Tensor, Parameters]:
    """The loss by level, summed over the part and divided by `count`, and its gradients by the adapted weights.

    The squared error of each state is divided by the length of the step, so that a level counts by its share of the
    path and not by its square.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
    parameters = {**base.parameters, **leaves}
    latents, losses = part.states[:, 0], []
    for k, (now, following) in enumerate(pairwise(LEVELS)):
        velocity = base.velocity(latents, now, part.text, part.mask, parameters)
        ahead = latents + (following - now) * velocity
        error = (ahead - part.states[:, k + 1]).square() * channels
        loss = error.mean((1, 2)).sum() / (now - following) / count
        loss.backward()
        losses.append(loss.detach())
        latents = ahead.detach()
    return torch.stack(losses), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


class Trainer:
    """The adapter, its optimiser and the threads that compute the gradients."""

    def __init__(self, base: Base, adapter: Parameters, channels: torch.Tensor):
        self.base, self.adapter, self.channels = base, adapter, channels
        self.norms = row_norms(base)
        self.optimizer = torch.optim.Adam(adapter.values(), lr=LEARNING_RATE, betas=(0.9, 0.98))
        self._threads = ThreadPoolExecutor(PARTS)

    def step(self, batch: Trajectories, rate: float) -> tuple[torch.Tensor, float]:
        """The losses by level and the norm of the gradient."""
        merged = adapted(self.base, self.adapter, self.norms)
        weights = {f"blocks.{target}.weight": merged[f"blocks.{target}.weight"] for target in TARGETS}
        rows = torch.arange(len(batch)).chunk(PARTS)
        tasks = [
            self._threads.submit(gradients, self.base, weights, batch.at(part), self.channels, len(batch))
            for part in rows
        ]
        results = [task.result() for task in tasks]
        total = {name: sum(grads[name] for _, grads in results) for name in results[0][1]}
        self.optimizer.zero_grad()
        torch.autograd.backward([weights[name] for name in total], list(total.values()))
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.values(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return sum(losses for losses, _ in results), norm.item()

    def load(self, tensors: Parameters, step: int) -> None:
        """The moments of a saved state."""
        for name, parameter in self.adapter.items():
            moments = {moment: tensors[f"{moment}{name}"] for moment in state.MOMENTS}
            self.optimizer.state[parameter] = {key.rstrip("."): value for key, value in moments.items()}
            self.optimizer.state[parameter]["step"] = torch.tensor(float(step))

    def save(self, path: Path, step: int, steps: int) -> None:
        moments = {
            f"{moment}{name}": self.optimizer.state[parameter][moment.rstrip(".")]
            for name, parameter in self.adapter.items()
            for moment in state.MOMENTS
        }
        state.save(path, {**self.adapter, **moments}, {"step": step, "steps": steps})


@torch.no_grad()
def distance(base: Base, part: Trajectories, channels: torch.Tensor, parameters: Parameters | None = None) -> float:
    """Relative L2 between the student's last latents and the teacher's, weighted by channel as the loss is."""
    last = sample(base, part.states[:, 0], LEVELS, part.text, part.mask, parameters)[-1]
    target = part.states[:, -1]
    return (((last - target).square() * channels).sum() / (target.square() * channels).sum()).sqrt().item()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, constant for half of the steps, linear to zero."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP, 2 * (1 - step / steps))


def train(work: Path, checkpoint: Path, steps: int, minutes: float) -> bool:
    """Trains one slice. Returns True once all `steps` are done."""
    clock = state.Clock(minutes)
    path = work / "adapter.safetensors"
    saved = state.load(path)
    first = int(saved[1]["step"]) if saved else 0
    if first >= steps:
        print(f"adapter: all {steps} steps are done")
        return True
    *paths, last = sorted((work / "trajectories").glob("*.safetensors"))
    pool, validation = Trajectories.load(paths), Trajectories.load([last])
    base = Base.load(checkpoint)
    adapter = {name: saved[0][name] if saved else tensor for name, tensor in initial(base, SEED).items()}
    trainer = Trainer(base, {name: tensor.requires_grad_() for name, tensor in adapter.items()}, pool.weight())
    log = state.Log(work / "adapter.jsonl")
    if saved:
        trainer.load(saved[0], first)
    else:
        log(step=0, trajectories=len(pool), distance=distance(base, validation, trainer.channels))
    now, began = first, time.monotonic()
    while now < steps and not clock.over:
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + now)
        rows = torch.randint(len(pool), (BATCH,), generator=generator)
        losses, norm = trainer.step(pool.at(rows), learning_rate(now, steps))
        now += 1
        if now % EVERY == 0:
            log(step=now, losses=losses.tolist(), gradient=norm, seconds=time.monotonic() - began)
        if now % (5 * EVERY) == 0 or now == steps:
            with torch.no_grad():
                parameters = adapted(base, adapter, trainer.norms)
            log(step=now, distance=distance(base, validation, trainer.channels, parameters))
            trainer.save(path, now, steps)
    trainer.save(path, now, steps)
    print(f"adapter: step {now} of {steps}", flush=True)
    return now >= steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.work, options.checkpoint, options.steps, options.minutes)


if __name__ == "__main__":
    main()
