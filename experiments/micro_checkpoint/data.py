"""Training data: pictures of `precision_lab.shapes` rendered on all cores, and their captions as tokens."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, TEMPLATE
from precision_lab.shapes import Scene, render, training_scenes

TEXT_TOKENS = 16
"""Caption and the template's five tokens after it, padded to this length."""

NO_CAPTION = " "
"""The caption for unguided training: the negative prompt of the lab's default sampler."""

_CHUNK = 256


@dataclass(frozen=True)
class Pictures:
    """images: (n, height, width, channels) uint8. scenes: (n,) indices into the scenes drawn from."""

    images: np.ndarray
    scenes: np.ndarray


def pictures(
    count: int,
    height: int,
    width: int,
    seed: int,
    processes: int | None = None,
    scenes: Callable[[], Sequence[Scene]] = training_scenes,
    channels: int = 3,
) -> Pictures:
    """`count` pictures of uniformly drawn scenes, (height, width) pixels, rendered on all cores.

    With 4 channels, pictures without alpha are opaque. The same count, size, seed and scenes give the same bytes for
    any number of processes.
    """
    seeds = np.random.SeedSequence([seed, height, width]).spawn(-(-count // _CHUNK))
    with warnings.catch_warnings():
        # Python 3.12 warns about a fork with running threads, such as PyTorch's, but the children only draw with NumPy.
        # Other start methods would import PyTorch and diffusers in each child, which takes longer than drawing.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(processes or os.cpu_count()) as pool:
            parts = pool.map(partial(_chunk, height, width, scenes, channels), seeds)
    images, drawn = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return Pictures(images, drawn)


def _chunk(
    height: int, width: int, scenes: Callable[[], Sequence[Scene]], channels: int, seed: np.random.SeedSequence
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    choices = scenes()
    drawn = rng.integers(len(choices), size=_CHUNK)
    images = np.full((_CHUNK, height, width, channels), 255, dtype=np.uint8)
    for image, i in zip(images, drawn, strict=True):
        picture = render(choices[i], height, width, rng)
        image[..., : picture.shape[2]] = picture
    return images, drawn


def tokens(folder: Path, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, PREFIX_TOKENS + TEXT_TOKENS) ids and mask, int64, of the captions within the template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    rows = [tokenizer(TEMPLATE.format(caption))["input_ids"] for caption in captions]
    ids = np.full((len(rows), PREFIX_TOKENS + TEXT_TOKENS), tokenizer.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
