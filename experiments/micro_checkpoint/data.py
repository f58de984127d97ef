"""Training data: pictures of `precision_lab.shapes` rendered on all cores, and their captions as tokens."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from precision_lab.model.qwen_image.prompt import PREFIX_TOKENS, TEMPLATE
from precision_lab.shapes import render, training_scenes

TEXT_TOKENS = 16
"""Caption and the template's five tokens after it, padded to this length."""

NO_CAPTION = " "
"""The caption for unguided training: the negative prompt of the lab's default sampler."""

_CHUNK = 256


@dataclass(frozen=True)
class Pictures:
    """images: (n, height, width, 3) uint8. scenes: (n,) indices into `training_scenes()`."""

    images: np.ndarray
    scenes: np.ndarray


def pictures(count: int, height: int, width: int, seed: int, processes: int | None = None) -> Pictures:
    """`count` pictures of uniformly drawn training scenes, (height, width) pixels, rendered on all cores.

    The same count, size and seed give the same bytes for any number of processes.
    """
    seeds = np.random.SeedSequence([seed, height, width]).spawn(-(-count // _CHUNK))
    with warnings.catch_warnings():
        # Python 3.12 warns about a fork with running threads, such as PyTorch's, but the children only draw with NumPy.
        # Other start methods would import PyTorch and diffusers in each child, which takes longer than drawing.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(processes or os.cpu_count()) as pool:
            parts = pool.map(partial(_chunk, height, width), seeds)
    images, scenes = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return Pictures(images, scenes)


def _chunk(height: int, width: int, seed: np.random.SeedSequence) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scenes = training_scenes()
    drawn = rng.integers(len(scenes), size=_CHUNK)
    return np.stack([render(scenes[i], height, width, rng) for i in drawn]), drawn


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
