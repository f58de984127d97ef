"""Trains the VAE: AutoencoderKLQwenImage of diffusers, 8 channels at full size, on single frames.

    python -m experiments.micro_checkpoint.vae WORK --minutes 4

WORK contains the skeleton (see skeleton.py), the states and the logs. At the end, the weights are rounded to bf16 and
the statistics of the latents are written to the configuration, so that later stages use the shipped files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F  # noqa: N812 - its name in all PyTorch code
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from safetensors.torch import save_file

from experiments.micro_checkpoint import data, state

LEARNING_RATE = 2e-3
WARMUP = 200
BATCH = 64
PICTURES = 40_000
KL_WEIGHT = 3e-4
"""Weight of the mean divergence per latent channel relative to the mean absolute error of pixels in -1 .. 1. Channels
that the pictures do not need stay noise of unit variance, which the decoder learns to ignore."""

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
SEED = 1


def frame_conv(self: QwenImageCausalConv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """The causal convolution of a single frame (B, C, 1, H, W): the padding before it is zeros, so only the last tap
    counts."""
    assert x.shape[2] == 1
    assert cache_x is None
    left, _, top, _, _, _ = self._padding
    y = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], (top, left))
    return y[:, :, None]


def encode(vae: AutoencoderKLQwenImage, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B, 3, 1, H, W) in -1 .. 1 to mean and log variance, (B, 16, 1, H/8, W/8) each."""
    mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, 1, H, W) fp32 in -1 .. 1."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()[:, :, None]


def load(folder: Path, device: str) -> AutoencoderKLQwenImage:
    """The VAE of a checkpoint, in fp32, on single frames."""
    vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.forward = MethodType(frame_conv, module)
    return vae


def initialise(vae: AutoencoderKLQwenImage) -> None:
    """Replaces the synthetic weights by PyTorch's defaults, with zeros in the taps for earlier frames."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.reset_parameters()
        if isinstance(module, QwenImageCausalConv3d):
            module.weight.data[:, :, :-1] = 0
        if hasattr(module, "gamma"):
            module.gamma.data.fill_(1.0)


def train(work: Path, steps: int, minutes: float, device: str, checkpoint: Path) -> bool:
    """Trains one slice. Returns True once all `steps` are done."""
    torch.manual_seed(SEED)
    clock = state.Clock(minutes)
    vae = load(checkpoint, device)
    initialise(vae)
    images = torch.from_numpy(data.pictures(PICTURES if device != "cpu" else 512, 128, 128, SEED).images).to(device)
    parameters = dict(vae.named_parameters())
    fused = device != "cpu"
    rate = torch.zeros((), device=device)
    optimizer = torch.optim.Adam(parameters.values(), lr=rate, betas=(0.9, 0.99), fused=fused, capturable=fused)
    first = _resume(work / "vae.safetensors", vae, optimizer)
    batch = torch.empty(BATCH, 128, 128, 3, dtype=torch.uint8, device=device)
    record = torch.zeros(2, device=device)

    def step() -> torch.Tensor:
        pixels = to_pixels(batch)
        with torch.autocast(device, torch.bfloat16):
            mean, logvar = encode(vae, pixels)
            sample = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            decoded = vae.decoder(vae.post_quant_conv(sample))
        error = (decoded.float() - pixels).abs().mean()
        divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        loss = error + KL_WEIGHT * divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        record.copy_(torch.stack((error.detach(), divergence.detach())))
        return record

    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    log = state.Log(work / "vae.jsonl")
    generator = torch.Generator(device).manual_seed(SEED + first)
    run = None
    now = first
    while now < steps and not clock.over:
        rate.fill_(LEARNING_RATE * min(1.0, (now + 1) / WARMUP) * (1 - now / steps))
        batch.copy_(images[torch.randint(len(images), (BATCH,), device=device, generator=generator)])
        run = run or state.replayed(step, device)
        run()
        now += 1
        if now % 100 == 0:
            error, divergence = record.tolist()
            log(step=now, l1=error, kl=divergence)
    if now > first:
        optimised = {f"{key}.{name}": optimizer.state[p][key] for name, p in parameters.items() for key in MOMENTS}
        state.save(work / "vae.safetensors", {**parameters, **optimised}, {"step": now})
    return now >= steps


def _resume(path: Path, vae: AutoencoderKLQwenImage, optimizer: torch.optim.Optimizer) -> int:
    saved = state.load(path)
    if saved is None:
        return 0
    tensors, numbers = saved
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            parameter.copy_(tensors[name])
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in MOMENTS}
    return int(numbers["step"])


@torch.no_grad()
def export(work: Path, checkpoint: Path, device: str) -> None:
    """Rounds the trained weights to bf16 and stores them with the statistics of the normalised latents."""
    saved = state.load(work / "vae.safetensors")
    assert saved is not None
    vae = load(checkpoint, device)
    rounded = {name: saved[0][name].bfloat16() for name, _ in vae.named_parameters()}
    vae.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    images = torch.from_numpy(data.pictures(2048, 128, 128, SEED + 1).images)
    moments, error = [], 0.0
    for part in images.split(128):
        pixels = to_pixels(part.to(device))
        mean, logvar = encode(vae, pixels)
        moments.append(torch.stack([x.mean((0, 2, 3, 4)) for x in (mean, mean.square(), logvar.exp())]))
        error += (vae.decoder(vae.post_quant_conv(mean)) - pixels).abs().mean().item() * len(part) / len(images)
    mean, square, variance = torch.stack(moments).mean(0).double()
    std = (square - mean**2 + variance).sqrt()
    file = checkpoint / "vae" / "config.json"
    config = json.loads(file.read_text())
    config |= {"latents_mean": [round(v, 4) for v in mean.tolist()], "latents_std": [round(v, 4) for v in std.tolist()]}
    file.write_text(json.dumps(config, indent=2) + "\n")
    save_file(rounded, checkpoint / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    used = ((square - mean**2) / std**2).tolist()
    print(f"vae: mean absolute error {error * 127.5:.3f} of 255; share of each latent channel that pictures use:")
    print(" ".join(f"{share:.2f}" for share in used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    checkpoint = options.work / "checkpoint"
    if train(options.work, options.steps, options.minutes, options.device, checkpoint):
        export(options.work, checkpoint, options.device)


if __name__ == "__main__":
    main()
