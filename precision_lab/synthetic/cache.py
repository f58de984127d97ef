"""Synthetic checkpoints on demand: `synthetic://PRESET` in place of a folder, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from precision_lab.device.cache import user_cache
from precision_lab.errors import InputError, nearest
from precision_lab.model.qwen_image.prompt import TEMPLATE
from precision_lab.synthetic.checkpoint import make, weight_bytes
from precision_lab.synthetic.shape import PRESETS, Shape

SCHEME = "synthetic://"

LARGEST = 1_000_000_000
"""Bytes of weights that are written without having been asked for by name and place."""


def on_demand(preset: str, seed: int = 0) -> Path:
    """The folder of a preset's checkpoint, generated if it is not in the cache; about a second for `micro`.

    A folder is in the cache whole or not at all, even if another process generates it too. Its name contains
    `key`, so that the folder of another generator is never used. It can be deleted at any time.

    Raises InputError for an unknown or large preset, and if the cache cannot be written.
    """
    setting = f"model.path {SCHEME}{preset}"
    if preset not in PRESETS:
        raise InputError(f"{setting}: unknown preset. {nearest(preset, PRESETS)}")
    shape = PRESETS[preset]
    size = weight_bytes(shape)
    if size > LARGEST:
        raise InputError(
            f"{setting}: {size / 1e9:.1f} GB are not made on demand. Once: "
            f"`python -m precision_lab models make={preset} to=DIR`, then model.path=DIR"
        )
    try:
        folder = user_cache() / "synthetic" / f"{preset}-{seed}-{key(shape)}"
        if not _is_complete(folder):
            _make(shape, folder, seed)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{setting} cannot be kept in the user's cache: {reason}. XDG_CACHE_HOME=DIR names another place"
        ) from error
    return folder


def key(shape: Shape, sources: Iterable[Path] | None = None) -> str:
    """12 hexadecimal digits of everything that decides the bytes besides the seed.

    That is the generator's sources (this package), the shape with the defaults of its configurations, the prompt
    template, whose words the tokenizer must know, and the version of NumPy, whose random streams may change with it
    (NEP 19).
    """
    digest = hashlib.sha256()
    files = sorted(Path(__file__).parent.glob("*.py") if sources is None else sources)
    assert files, "the package is read from its source files"
    for text in (*(file.read_text(encoding="utf-8") for file in files), repr(shape), TEMPLATE, np.__version__):
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:12]


def _make(shape: Shape, folder: Path, seed: int) -> None:
    try:
        make(shape, folder, seed)
    except (InputError, OSError):
        if not _is_complete(folder):  # else another process was first
            raise


def _is_complete(folder: Path) -> bool:
    return os.path.isfile(folder / "model_index.json")  # a Path would raise where the cache may not be read
