"""Trains the VAE: AutoencoderKLQwenImage21 of diffusers at a twelfth of its widths, on RGBA pictures.

    python -m experiments.micro_21_checkpoint.vae WORK --seconds 170

The colour of a transparent pixel is arbitrary, so the loss does not compare it: it compares the pictures composited
over black and over white, and alpha. At the end, the weights are rounded to bf16 and the statistics of the latents are
written to the configuration, so that later stages use the shipped files.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage21
from safetensors.torch import save_file

from experiments.micro_checkpoint import data, state
from precision_lab.shapes import correct, held_out_scenes, training_scenes

LEARNING_RATE = 2e-3
WARMUP = 200
BATCH = 64
CROP = 64
"""Side in pixels of the windows on which most of the training runs: objects fill four times more of them."""

WHOLE_FROM = 0.75
"""Part of training after which whole pictures are used, with a quarter of the batch."""

PICTURES = 40_000
KL_WEIGHT = 1e-4
"""Weight of the mean divergence per latent value relative to the mean absolute error of pixels in 0 .. 1 x 2. Half of
the micro checkpoint's, which has twice as many latent values a pixel."""

KL_RISE = 0.3
"""Part of training in which that weight rises from zero."""

FIRST_LOGVAR = -5.0
"""Initial log variance of the latents: with unit variance the decoder sees only noise, and learns nothing for long."""

SEED = 1

training_world = partial(training_scenes, transparent=True)


def encode(vae: AutoencoderKLQwenImage21, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (B, 4, 1, H, W) in -1 .. 1 to mean and log variance, (B, z, 1, H/16, W/16) each."""
    mean, logvar = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLQwenImage21, latents: torch.Tensor) -> torch.Tensor:
    """The inverse, not clamped."""
    return vae.decoder(vae.post_quant_conv(latents), first_chunk=True)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 4) uint8 to (B, 4, 1, H, W) fp32 in -1 .. 1."""
    return (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()[:, :, None]


def to_images(pixels: torch.Tensor) -> np.ndarray:
    """The inverse, clamped and rounded."""
    return ((pixels[:, :, 0].float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def composites(pixels: torch.Tensor) -> torch.Tensor:
    """(B, 7, 1, H, W): colours over black, colours over white, and alpha, in 0 .. 1 where the pixels are in -1 .. 1."""
    color, alpha = ((pixels + 1) / 2).split((3, 1), dim=1)
    black = color * alpha
    return torch.cat((black, black + 1 - alpha, alpha), dim=1)


def load(checkpoint: Path, device: str) -> AutoencoderKLQwenImage21:
    """The VAE of a checkpoint, in fp32."""
    vae = AutoencoderKLQwenImage21.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    return vae.to(device, memory_format=torch.channels_last)


def cropped(images: torch.Tensor, rows: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """(B, side, side, 4) windows of the pictures `rows`, each around a random pixel of an object."""
    chosen = images[rows]
    objects = (chosen != chosen[:, :1, :1]).any(-1)
    pixel = torch.multinomial(objects.flatten(1).float(), 1, generator=generator)[:, 0]
    height, width = objects.shape[1:]
    corners = []
    for place, extent in ((pixel // width, height), (pixel % width, width)):
        shift = torch.randint(side, place.shape, device=place.device, generator=generator)
        corners.append((place - shift).clamp(0, extent - side))
    order = torch.arange(side, device=images.device)
    top, left = corners
    return chosen[
        torch.arange(len(rows), device=images.device)[:, None, None],
        (top[:, None] + order)[:, :, None],
        (left[:, None] + order)[:, None],
    ]


def train(checkpoint: Path, work: Path, seconds: float, device: str, start: str, peak: float) -> None:
    """Trains for `seconds` and stores the weights.

    start: "fresh"; "resume" from the exported weights; or "decoder", which leaves the encoder and the statistics of the
    latents as they are, so that a transformer remains valid.
    """
    resume = start != "fresh"
    torch.manual_seed(SEED)
    gpu = device != "cpu"
    images = data.pictures(PICTURES if gpu else 512, 128, 128, SEED, scenes=training_world, channels=4).images
    images = torch.from_numpy(images).to(device)
    vae = load(checkpoint, device)
    if not resume:
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.reset_parameters()
        vae.quant_conv.bias.data[vae.config.z_dim :] = FIRST_LOGVAR
    frozen = ("encoder.", "quant_conv.") if start == "decoder" else ()
    parameters = {name: p for name, p in vae.named_parameters() if not name.startswith(frozen)}
    vae.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_()
        parameter.grad = torch.zeros_like(parameter)
    rate, weight, record = (torch.zeros(n, device=device) for n in ((), (), (2,)))
    optimizer = torch.optim.Adam(parameters.values(), lr=rate, betas=(0.9, 0.99), fused=gpu, capturable=gpu)

    def step(batch: torch.Tensor) -> torch.Tensor:
        pixels = to_pixels(batch)
        with torch.autocast(device, torch.bfloat16):
            mean, logvar = encode(vae, pixels)
            sample = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            decoded = decode(vae, sample)
        error = 2 * (composites(decoded.float()) - composites(pixels)).abs().mean()
        divergence = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        (error + weight * divergence).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        record.copy_(torch.stack((error.detach(), divergence.detach())))
        return record

    log = state.Log(work / "vae.jsonl")
    generator = torch.Generator(device).manual_seed(SEED + resume)
    clock, now = state.Clock(seconds / 60), 0
    for side, end in ((CROP, WHOLE_FROM), (128, 1.0)):
        count = (BATCH if gpu else 8) * CROP**2 // side**2
        batch = torch.empty(count, side, side, 4, dtype=torch.uint8, device=device)
        run = None
        while (done := 1 - clock.left / seconds) < end:
            rate.fill_(peak * min(1.0, (now + 1) / WARMUP) * (1 - done))
            weight.fill_(KL_WEIGHT if resume else KL_WEIGHT * min(1.0, done / KL_RISE))
            rows = torch.randint(len(images), (count,), device=device, generator=generator)
            batch.copy_(images[rows] if side == 128 else cropped(images, rows, side, generator))
            run = run or state.replayed(partial(step, batch), device)
            run()
            now += 1
            if now % 100 == 0 or not gpu:
                error, divergence = record.tolist()
                log(step=now, side=side, done=done, l1=error, kl=divergence)
                if now % 500 == 0:
                    print(f"vae {now} l1 {127.5 * error:.2f} of 255, kl {divergence:.3f}, {done:.2f} done", flush=True)
    print(f"vae: {now} steps", flush=True)
    export(vae, checkpoint, device, statistics=start != "decoder")


@torch.no_grad()
def export(vae: AutoencoderKLQwenImage21, checkpoint: Path, device: str, statistics: bool) -> None:
    """Rounds the trained weights to bf16 and stores them, with the statistics of the normalised latents if asked."""
    rounded = {name: tensor.bfloat16() for name, tensor in vae.state_dict().items()}
    vae.load_state_dict({name: tensor.float() for name, tensor in rounded.items()})
    drawn = data.pictures(2048 if device != "cpu" else 64, 128, 128, SEED + 1, scenes=training_world, channels=4)
    moments, errors = [], []
    for part in torch.from_numpy(drawn.images).split(64):
        pixels = to_pixels(part.to(device))
        mean, logvar = encode(vae, pixels)
        moments.append(torch.stack([x.mean((0, 2, 3, 4)) for x in (mean, mean.square(), logvar.exp())]))
        errors.append((composites(decode(vae, mean).clamp(-1, 1)) - composites(pixels)).abs().mean().item())
    mean, square, variance = torch.stack(moments).mean(0).double()
    std = (square - mean**2 + variance).sqrt()
    file = checkpoint / "vae" / "config.json"
    config = json.loads(file.read_text())
    if statistics:
        rounded_to = {"latents_mean": mean, "latents_std": std}
        config |= {name: [round(v, 4) for v in values.tolist()] for name, values in rounded_to.items()}
        file.write_text(json.dumps(config, indent=2) + "\n")
    stored = {name: tensor.cpu().contiguous() for name, tensor in rounded.items()}
    save_file(stored, checkpoint / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    used = ((square - mean**2) / std**2).tolist()
    print(f"vae: mean absolute error {255 * np.mean(errors):.3f} of 255; latent channels' shares that pictures use:")
    print(" ".join(f"{share:.2f}" for share in sorted(used, reverse=True)), flush=True)


@torch.no_grad()
def readable(checkpoint: Path, device: str, count: int) -> float:
    """The share of held-out pictures that the checker still reads correctly after encoding and decoding."""
    vae = load(checkpoint, device)
    held_out = partial(held_out_scenes, transparent=True)
    drawn = data.pictures(count, 128, 128, SEED + 2, scenes=held_out, channels=4)
    decoded: list[np.ndarray] = []
    for images in torch.from_numpy(drawn.images).split(50):
        mean, _ = encode(vae, to_pixels(images.to(device)))
        decoded += list(to_images(decode(vae, mean)))
    scenes = (held_out()[row] for row in drawn.scenes)
    right = [correct(scene, image) for scene, image in zip(scenes, decoded, strict=True)]
    return float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, default=170.0)
    parser.add_argument("--start", choices=("fresh", "resume", "decoder"), default="fresh")
    parser.add_argument("--peak", type=float, default=LEARNING_RATE)
    parser.add_argument("--count", type=int, default=600, help="reconstructions that the checker reads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    checkpoint = options.work / "checkpoint"
    train(checkpoint, options.work, options.seconds, options.device, options.start, options.peak)
    share = readable(checkpoint, options.device, options.count)
    print(f"vae: {share:.2%} of {options.count} held-out pictures are read correctly after reconstruction", flush=True)


if __name__ == "__main__":
    main()
