"""Trains the transformer by flow matching on the latents of the trained VAE.

    python -m experiments.micro_checkpoint.transformer WORK --minutes 9        one slice; repeat until it says done

One schedule has two phases: pictures of 128x128 and slightly more; then also 256x256 and odd grids, while the learning
rate falls to zero. growth.py describes the annealing of the growth. The state is in WORK/transformer.safetensors.

Each slice draws from a generator seeded by its first step: equal slices reproduce the training, and other slices give a
different result of the same quality.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from experiments.micro_checkpoint import data, growth, state
from experiments.micro_checkpoint.model import Batch, Output, Parameters, block_forward, forward, stack
from experiments.micro_checkpoint.pools import PHASES, SEED, Phase, Pools, angles

LEARNING_RATE = 2e-3
WARMUP = 500
CONSTANT_UNTIL = 0.6
"""Part of training after which the learning rate falls linearly to zero."""

SECOND_PHASE = 0.75
"""Part of training after which large and odd grids are used."""

GROWTH_EVERY = 20
"""Steps between two values of the growth r."""

MOMENTS = ("exp_avg", "exp_avg_sq")


class Step:
    """A training step on fixed tensors, so that a CUDA graph can hold it."""

    def __init__(
        self,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        model: QwenImageTransformer2DModel,
        phase: Phase,
        weight: torch.Tensor,
        device: str,
    ):
        """weight: (64,) of each packed latent channel in the loss. The growth is 1 until `grow` is called."""
        self.parameters, self.optimizer, self.device = parameters, optimizer, device
        samples, text = sum(phase.samples.values()), data.TEXT_TOKENS
        turns = {grid: angles(model, grid, phase.tokens, text).to(device) for grid in phase.samples}
        rotation = torch.cat([turns[grid][None].expand(count, -1, -1) for grid, count in phase.samples.items()])
        mask = torch.zeros(samples, text + phase.tokens, dtype=torch.bool, device=device)
        row = 0
        for (rows, columns), count in phase.samples.items():
            mask[row : row + count, text : text + rows * columns] = True
            row += count
        self._blocks = model.config.num_layers
        self.factors = growth.factors(1.0, self._blocks, len(parameters["img_in.bias"]), device)
        self.target = growth.curve(1.0, self._blocks).to(device)
        self.clean = torch.zeros(samples, phase.tokens, 64, device=device)
        self.noise = torch.zeros_like(self.clean)
        self.weight = weight
        self.batch = Batch(
            torch.zeros_like(self.clean),
            torch.zeros(samples, device=device),
            torch.zeros(samples, text, parameters["txt_norm.weight"].shape[0], device=device),
            mask,
            rotation.real.contiguous(),
            rotation.imag.contiguous(),
        )
        self._block = torch.compile(block_forward) if device != "cpu" else block_forward
        self.record = torch.zeros(self._blocks + 3, device=device)
        self.run: Callable[[], torch.Tensor] | None = None

    def grow(self, factor: float) -> None:
        """Sets r."""
        for stream, values in self.factors.items():
            values.copy_(growth.factors(factor, self._blocks, values.shape[1] // 6, self.device)[stream])
        self.target.copy_(growth.curve(factor, self._blocks))

    def fill(self, pools: Pools, phase: Phase, generator: torch.Generator) -> None:
        """Draws a batch."""
        clean, text, mask = pools.draw(phase, generator)
        self.clean.copy_(clean)
        self.noise.normal_(generator=generator)
        # half of the times are a normal variable through a sigmoid, half uniform: both ends of the schedule count
        normal = torch.randn(len(clean), device=self.device, generator=generator).add(0.3).sigmoid()
        uniform = torch.rand(len(clean), device=self.device, generator=generator)
        half = torch.arange(len(clean), device=self.device) % 2 == 0
        time = torch.where(half, normal, uniform)
        self.batch.latents.copy_(torch.lerp(self.clean, self.noise, time[:, None, None]))
        # a model in bf16 receives rounded timesteps, and one in fp32 exact timesteps: train on both
        rounded = torch.arange(len(clean), device=self.device) % 4 < 2
        self.batch.timestep.copy_(torch.where(rounded, time.bfloat16().float(), time))
        self.batch.text.copy_(text)
        self.batch.mask[:, : text.shape[1]] = mask

    def __call__(self) -> torch.Tensor:
        """Loss, penalty, and amax of the image stream from img_in on: (blocks + 3,), overwritten by the next step."""
        self.run = self.run or state.replayed(self._step, self.device)
        return self.run()

    def _step(self) -> torch.Tensor:
        output: Output = forward(self.parameters, self.batch, self.factors, torch.bfloat16, self._block)
        valid = self.batch.mask[:, self.batch.text.shape[1] :, None]
        error = (output.velocity - (self.noise - self.clean)).square() * valid * self.weight
        loss = (error.sum((1, 2)) / (64 * valid.sum((1, 2)))).mean()
        off = growth.penalty(output.rms, self.target)
        (loss + growth.PENALTY * off).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.record.copy_(torch.cat((loss.detach()[None], off.detach()[None], output.amax)))
        return self.record


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, constant, linear to zero."""
    done = step / steps
    return peak * min(1.0, (step + 1) / WARMUP, (1 - done) / (1 - CONSTANT_UNTIL))


def train(work: Path, steps: int, minutes: float, device: str, peak: float) -> bool:
    """Trains one slice. Returns True once all `steps` are done."""
    clock = state.Clock(minutes)
    torch.manual_seed(SEED)
    path = work / "transformer.safetensors"
    saved = state.load(path)
    first = int(saved[1]["step"]) if saved else 0
    if first >= steps:
        print(f"transformer: all {steps} steps are done")
        return True
    checkpoint = work / "checkpoint"
    model = QwenImageTransformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.float32)
    pools = Pools(checkpoint, device)
    print(f"pools after {60 * minutes - clock.left:.0f} s", flush=True)
    tensors = initial(model, pools) if saved is None else {name: saved[0][name] for name in stack(model.state_dict())}
    parameters = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
    rate = torch.zeros((), device=device)
    optimizer = optimizer_of(parameters, rate, saved, device)
    log = state.Log(work / "transformer.jsonl")
    generator = torch.Generator(device).manual_seed(SEED * 1_000_003 + first)
    final = growth.final_growth(model.config.num_layers)
    now, factor, began = first, 1.0, time.monotonic()
    step: Step | None = None
    phase: Phase | None = None
    while now < steps and not clock.over:
        current = PHASES[now >= SECOND_PHASE * steps]
        if step is None or current is not phase or now % GROWTH_EVERY == 0:
            factor = growth.annealed(now / steps, final)
            if step is None or current is not phase:
                phase, step = current, Step(parameters, optimizer, model, current, pools.weight, device)
            step.grow(factor)
        rate.fill_(learning_rate(now, steps, peak))
        step.fill(pools, current, generator)
        record = step()
        now += 1
        if now % 100 == 0:
            loss, off, *amax = record.tolist()
            curve = {"amax": amax} if now % 1000 == 0 else {}
            log(step=now, loss=loss, penalty=off, growth=factor, amax_in=amax[0], amax_final=amax[-1], **curve)
            if now % 1000 == 0:
                spent = time.monotonic() - began
                print(f"{now} loss {loss:.4f} r {factor:.4f} amax {amax[-1]:.3g} {spent:.0f} s", flush=True)
    if now > first:
        moments = {f"{m}.{name}": optimizer.state[p][m].bfloat16() for name, p in parameters.items() for m in MOMENTS}
        state.save(path, {**parameters, **moments}, {"step": now, "steps": steps, "growth": factor})
    print(f"transformer: step {now} of {steps}", flush=True)
    return now >= steps


def initial(model: QwenImageTransformer2DModel, pools: Pools) -> Parameters:
    """Initial parameters on the CPU: those of growth.py, with text channels of unit size after their norm."""
    parameters = growth.initial(stack(model.state_dict()), torch.Generator().manual_seed(SEED))
    used = pools.text[pools.text_mask]
    normed = used * used.square().mean(-1, keepdim=True).rsqrt()
    parameters["txt_norm.weight"] = normed.square().mean(0).rsqrt().cpu()
    return parameters


def optimizer_of(
    parameters: Parameters, rate: torch.Tensor, saved: state.State | None, device: str
) -> torch.optim.Optimizer:
    """Adam with the moments of a saved state, if it contains them, and with gradients initialised to zero."""
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    fused = device != "cpu"
    optimizer = torch.optim.Adam(parameters.values(), lr=rate, betas=(0.9, 0.98), fused=fused, capturable=fused)
    if saved is None:
        return optimizer
    tensors, numbers = saved
    for name, parameter in parameters.items():
        if all(f"{moment}.{name}" in tensors for moment in MOMENTS):
            moments = {moment: tensors[f"{moment}.{name}"].to(device).float() for moment in MOMENTS}
            optimizer.state[parameter] = {**moments, "step": torch.tensor(float(numbers["step"]), device=device)}
    return optimizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--peak", type=float, default=LEARNING_RATE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    train(options.work, options.steps, options.minutes, options.device, options.peak)


if __name__ == "__main__":
    main()
