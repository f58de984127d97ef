"""Trains the transformer by flow matching on the latents of the trained VAE.

    python -m experiments.micro_21_checkpoint.transformer WORK --until 1200 --seconds 400     one slice

The schedule is one of time: `--until` is its length in seconds of training, over all slices, and the learning rate
falls to zero at its end. A slice ends after `--seconds`, and leaves its state in WORK/transformer.safetensors. At first
all pictures have 128x128 pixels; then some steps use other sizes. The model that is exported is the moving average.

Nothing bounds the activations: no penalty, no factor on gates, no clipping of the stream.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import QwenImage21Transformer2DModel

from experiments.micro_21_checkpoint import prompt
from experiments.micro_21_checkpoint.model import Batch, Block, block_forward, forward
from experiments.micro_21_checkpoint.pools import LARGE, MAIN, SEED, SMALL, WIDE, Layout, Pools, rotations
from experiments.micro_checkpoint import state
from experiments.micro_checkpoint.model import Parameters, stack
from experiments.micro_checkpoint.transformer import MOMENTS, optimizer_of

LEARNING_RATE = 1.5e-3
WARMUP = 500
CONSTANT_UNTIL = 0.5
"""Part of training after which the learning rate falls linearly to zero."""

SECOND_PHASE = 0.6
"""Part of training after which the layouts of OTHERS are used."""

OTHERS = {WIDE.tokens: (WIDE, 0.15), LARGE.tokens: (LARGE, 0.2)}
"""Layouts of the second phase by tokens, with their shares of the steps."""

AVERAGE = 0.999
"""Decay a step of the moving average of the parameters."""

GATE = 0.25
"""Initial value of all gates, after tanh, at all times."""

AVERAGED = "average."
"""Prefix of the names of the averaged parameters in a state."""


class Step:
    """A training step on fixed tensors, so that a CUDA graph can hold it."""

    def __init__(
        self,
        parameters: Parameters,
        average: Parameters,
        optimizer: torch.optim.Optimizer,
        model: QwenImage21Transformer2DModel,
        layout: Layout,
        weight: torch.Tensor,
        device: str,
    ):
        """weight: (z,) of each latent channel in the loss."""
        self.parameters, self.average, self.optimizer, self.device = parameters, average, optimizer, device
        if device == "cpu":
            layout = Layout({grid: min(count, SMALL // 16) for grid, count in layout.samples.items()})
        self.layout = layout
        samples, text = sum(layout.samples.values()), prompt.TEXT_TOKENS
        turns = [rotations(model, grid) for grid in layout.samples]
        self._turns = torch.view_as_real(torch.stack([image for _, image in turns])).to(device)
        self._grid = torch.repeat_interleave(torch.tensor(list(layout.samples.values()))).to(device)
        self.clean = torch.zeros(samples, layout.tokens, model.config.in_channels, device=device)
        self.noise = torch.zeros_like(self.clean)
        self.weight = weight
        rotation = torch.view_as_real(turns[0][0]).to(device).expand(samples, -1, -1, -1)
        image = rotation.new_zeros(samples, layout.tokens, *rotation.shape[2:])
        cos, sin = torch.cat((rotation, image), 1).unbind(-1)
        self.batch = Batch(
            torch.zeros_like(self.clean),
            torch.zeros(samples, device=device),
            torch.zeros(samples, text, model.config.context_in_dim, device=device),
            torch.zeros(samples, text, dtype=torch.bool, device=device),
            cos.contiguous(),
            sin.contiguous(),
        )
        self._block: Block = torch.compile(block_forward, dynamic=False) if device != "cpu" else block_forward
        self.record = torch.zeros(2, device=device)
        self.run: Callable[[], torch.Tensor] | None = None

    def fill(self, pools: Pools, generator: torch.Generator) -> None:
        """Draws a batch."""
        clean, text, mask = pools.draw(self.layout, generator)
        count = len(clean)
        self.clean.copy_(clean)
        self.noise.normal_(generator=generator)
        # half of the times are a normal variable through a sigmoid, half uniform: both ends of the schedule count
        normal = torch.randn(count, device=self.device, generator=generator).add(0.3).sigmoid()
        uniform = torch.rand(count, device=self.device, generator=generator)
        order = torch.arange(count, device=self.device)
        times = torch.where(order % 2 == 0, normal, uniform)
        self.batch.latents.copy_(torch.lerp(self.clean, self.noise, times[:, None, None]))
        # a model in bf16 receives rounded timesteps, and one in fp32 exact timesteps: train on both
        self.batch.timestep.copy_(torch.where(order % 4 < 2, times.bfloat16().float(), times))
        self.batch.text.copy_(text)
        self.batch.mask.copy_(mask)
        # the image's position follows the longest prompt of a batch, not that of the sample
        lengths, longest = mask.sum(1), text.shape[1]
        longer = torch.rand(count, device=self.device, generator=generator) * (longest + 1 - lengths)
        frame = torch.where(order % 8 < 4, lengths, lengths + longer.long().clamp(max=longest)).clamp(max=longest)
        cos, sin = self._turns[self._grid, frame].unbind(-1)
        self.batch.cos[:, longest:] = cos
        self.batch.sin[:, longest:] = sin

    def __call__(self) -> torch.Tensor:
        """Loss and norm of the gradient, (2,), overwritten by the next step."""
        self.run = self.run or state.replayed(self._step, self.device)
        return self.run()

    def _step(self) -> torch.Tensor:
        velocity = forward(self.parameters, self.batch, torch.bfloat16, self._block)
        loss = ((velocity - (self.noise - self.clean)).square() * self.weight).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - AVERAGE)
        self.record.copy_(torch.stack((loss.detach(), norm)))
        return self.record


def initial(model: QwenImage21Transformer2DModel, pools: Pools) -> Parameters:
    """Initial parameters on the CPU: matrices of unit gain, gates near GATE, and text channels of unit size."""
    generator = torch.Generator().manual_seed(SEED)
    p = {}
    for name, old in stack(model.state_dict()).items():
        if ".norm_" in name:
            p[name] = torch.ones_like(old)
        else:
            p[name] = torch.randn(old.shape, generator=generator) * old.shape[-1] ** -0.5
    p["proj_out.weight"] *= 0.1
    p["norm_out.linear.weight"] *= 0.1
    p["modulation.1.weight"] *= 0.02
    # the row whose product with the embedding of any time comes nearest to the gate
    model.load_state_dict(unstack_time(p), strict=False)
    with torch.no_grad():
        times = torch.linspace(0, 1, 1001)
        embedded = torch.nn.functional.silu(model.time_text_embed(times, times))
    row = torch.linalg.lstsq(embedded, torch.full((1001, 1), GATE).atanh(), rcond=1e-4, driver="gelsd").solution[:, 0]
    for chunk in (1, 3):
        p["modulation.1.weight"].view(4, len(row), -1)[chunk] += row
    used = pools.text[pools.text_mask]
    normed = used * used.square().mean(-1, keepdim=True).rsqrt()
    p["txt_in.text_norm.weight"] = normed.square().mean(0).rsqrt().cpu() - 1
    return p


def unstack_time(p: Parameters) -> Parameters:
    """The parameters of the time embedding alone."""
    return {name: tensor for name, tensor in p.items() if name.startswith("time_text_embed.")}


def learning_rate(step: int, done: float, peak: float) -> float:
    """Linear warm-up, constant, linear to zero. step: of the slice; done: part of the schedule."""
    return peak * min(1.0, (step + 1) / WARMUP, max(0.0, 1 - done) / (1 - CONSTANT_UNTIL))


def train(work: Path, until: float, seconds: float, device: str, peak: float, second: float = SECOND_PHASE) -> bool:
    """Trains one slice. Returns True once the schedule is over."""
    torch.manual_seed(SEED)
    clock = state.Clock(seconds / 60)
    path = work / "transformer.safetensors"
    saved = state.load(path)
    first, spent = (int(saved[1]["step"]), saved[1]["seconds"]) if saved else (0, 0.0)
    checkpoint = work / "checkpoint"
    config = QwenImage21Transformer2DModel.load_config(checkpoint / "transformer")
    model = QwenImage21Transformer2DModel.from_config(config)
    pools = Pools(checkpoint, device)
    print(f"pools after {seconds - clock.left:.0f} s", flush=True)
    names = list(stack(model.state_dict()))
    start = {name: saved[0][name].float() for name in names} if saved else initial(model, pools)
    parameters = {name: tensor.to(device).requires_grad_() for name, tensor in start.items()}
    stored = saved[0] if saved else {}
    averages = {name: stored.get(AVERAGED + name, tensor).float() for name, tensor in start.items()}
    average = {name: tensor.detach().to(device).clone() for name, tensor in averages.items()}
    rate = torch.zeros((), device=device)
    optimizer = optimizer_of(parameters, rate, saved, device)
    log = state.Log(work / "transformer.jsonl")
    generator = torch.Generator(device).manual_seed(SEED * 1_000_003 + first)
    chooser = torch.Generator().manual_seed(SEED * 1_000_003 + first)
    steps: dict[int, Step] = {}
    now, done = first, spent / until if until else 0.0
    began = time.monotonic()
    while done < 1 and not clock.over:
        layout = MAIN
        if done >= second:
            chosen = torch.rand((), generator=chooser).item()
            for other, share in OTHERS.values():
                if 0 <= chosen < share:
                    layout = other
                chosen -= share
        entered = time.monotonic()
        new = layout.tokens not in steps
        if new:
            pools.add(layout)
            steps[layout.tokens] = Step(parameters, average, optimizer, model, layout, pools.weight, device)
        step = steps[layout.tokens]
        rate.fill_(learning_rate(now - first, done, peak))
        step.fill(pools, generator)
        record = step()
        now += 1
        if new:  # compilation and preparation do not count
            record.tolist()
            began += time.monotonic() - entered
            until = until or spent + clock.left
            print(f"{layout.tokens} tokens: prepared in {time.monotonic() - entered:.0f} s", flush=True)
        done = (spent + time.monotonic() - began) / until
        if layout is MAIN and (now % 100 == 0 or device == "cpu"):
            loss, norm = record.tolist()
            log(step=now, done=done, loss=loss, gradient=norm, rate=rate.item())
            if now % 1000 < 100:
                print(f"{now} loss {loss:.4f} gradient {norm:.3f} {done:.3f} done", flush=True)
    if now > first:
        moments = {f"{m}.{name}": optimizer.state[p][m].bfloat16() for name, p in parameters.items() for m in MOMENTS}
        averaged = {AVERAGED + name: tensor for name, tensor in average.items()}
        state.save(path, {**parameters, **averaged, **moments}, {"step": now, "seconds": done * until})
    print(f"transformer: step {now}, {done:.3f} of the schedule", flush=True)
    return done >= 1


def trained(work: Path) -> Parameters:
    """The averaged parameters of a state, fp32 on the CPU."""
    saved = state.load(work / "transformer.safetensors")
    if saved is None:
        raise SystemExit(f"{work}: no transformer.safetensors, train it first")
    return {n.removeprefix(AVERAGED): t.float() for n, t in saved[0].items() if n.startswith(AVERAGED)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--until", type=float, default=1200.0, help="seconds of training; 0: those of this slice")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--second-phase", type=float, default=SECOND_PHASE, help="1: only pictures of 128x128")
    parser.add_argument("--peak", type=float, default=LEARNING_RATE)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    train(options.work, options.until, options.seconds, options.device, options.peak, options.second_phase)


if __name__ == "__main__":
    main()
