"""VAEs of diffusers as oracles, and the same calls in both libraries. Arrays have channels last."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch

from precision_lab.model import weights

DTYPES = {"bfloat16": (torch.bfloat16, mx.bfloat16), "float16": (torch.float16, mx.float16)}


def randomised(model, seed):
    """`model` with random weights, including gammas and biases, whose pixels mostly stay inside (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("gamma"):
                p.copy_(1 + 0.3 * noise)
            elif p.ndim == 1:
                p.copy_(0.2 * noise)
            else:
                fan_in = p[0, :, -1].numel() if p.ndim == 5 else p[0].numel()
                p.copy_(noise * fan_in**-0.5 * (0.4 if "decoder.conv_out" in name else 1.0))
    return model.eval()


def loaded(kind, config_kind, model, folder: Path, dtype=mx.float32, **options):
    """Our VAE with the weights of `model` as diffusers writes them, and the names that it left out."""
    model.save_pretrained(folder, **options)
    config, _ = config_kind.from_dict(json.loads((folder / "config.json").read_text()))
    vae = kind(config)
    ignored = weights.load(vae, folder, kind.sanitize)
    vae.set_dtype(dtype)
    return vae, ignored


def torch_decode(model, latents) -> np.ndarray:
    """Decodes latents (B, h, w, Z), float64, to float64; internally one frame with channels first."""
    frames = torch.tensor(latents.transpose(0, 3, 1, 2)[:, :, None]).to(model.dtype)
    with torch.no_grad():
        return model.decode(frames).sample[:, :, 0].double().numpy().transpose(0, 2, 3, 1)


def torch_encode(model, pixels) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of pixels (B, H, W, C), float64, as float64."""
    frames = torch.tensor(pixels.transpose(0, 3, 1, 2)[:, :, None]).to(model.dtype)
    with torch.no_grad():
        if model.config.attn_scales:
            # diffusers 0.42.1 cannot pass its cache through attention; for one frame the cache changes nothing
            mean, logvar = model.quant_conv(model.encoder(frames)).chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
        else:
            posterior = model.encode(frames).latent_dist
            mean, logvar = posterior.mode(), posterior.logvar
    return tuple(a[:, :, 0].double().numpy().transpose(0, 2, 3, 1) for a in (mean, logvar))


def to_numpy(a: mx.array) -> np.ndarray:
    return np.array(a.astype(mx.float32)).astype(np.float64)


def relative_l2(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def errors_to_float64(vae, model, latents, pixels, torch_dtype, mlx_dtype) -> dict[str, float]:
    """Our error of each result in a 16-bit dtype divided by that of torch. latents, pixels: rounded to that dtype.

    `model` is in that dtype before, and in float64 afterwards.
    """
    latents, pixels = (torch.tensor(a).to(torch_dtype).double().numpy() for a in (latents, pixels))
    moments = vae.encode(mx.array(pixels, mlx_dtype))
    decoded = vae.decode(mx.array(latents, mlx_dtype))
    assert decoded.dtype == moments.mean.dtype == mlx_dtype
    results = [to_numpy(a) for a in (decoded, *moments)]
    torch_results = [torch_decode(model, latents), *torch_encode(model, pixels)]
    model = model.double()
    exact = [torch_decode(model, latents), *torch_encode(model, pixels)]
    return {
        key: relative_l2(a, c) / relative_l2(b, c)
        for key, a, b, c in zip(("decode", "mean", "logvar"), results, torch_results, exact, strict=True)
    }
