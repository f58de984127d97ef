"""Language bodies of transformers as oracles, and the same forward pass in both libraries."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch

from precision_lab.model import weights

DTYPES = {"bfloat16": (torch.bfloat16, mx.bfloat16), "float16": (torch.float16, mx.float16)}


def randomised(model, seed):
    """`model` with random weights: attention far from uniform, and norms and biases that are not the defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.3 * noise)
            elif "embed_tokens" in name or p.ndim == 1:
                p.copy_(noise)
            else:
                p.copy_(1.5 * noise * p.shape[-1] ** -0.5)
    return model.eval()


def loaded(kind, config_kind, model, folder: Path, dtype=mx.float32, **options):
    """Our encoder with the weights of `model` as transformers writes them, and the names that it left out."""
    model.save_pretrained(folder, **options)
    config, _ = config_kind.from_dict(json.loads((folder / "config.json").read_text()))
    encoder = kind(config)
    ignored = weights.load(encoder, folder, kind.sanitize)
    encoder.set_dtype(dtype)
    return encoder, ignored


def ours(encoder, ids, mask=None, dtype=mx.float32) -> np.ndarray:
    """The result of our encoder, in float64."""
    out = encoder(mx.array(ids), None if mask is None else mx.array(mask), dtype)
    assert out.dtype == dtype
    return np.array(out.astype(mx.float32)).astype(np.float64)


def relative_l2(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def padding(lengths, total, side) -> np.ndarray:
    """Masks (B, L) of prompts of these lengths, padded on one side to `total` tokens."""
    positions = np.arange(total)
    rows = [positions < n if side == "right" else positions >= total - n for n in lengths]
    return np.stack(rows).astype(np.int64)
