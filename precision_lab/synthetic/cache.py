"""Synthetic checkpoints generated on demand in the user's cache, for the path `synthetic://PRESET`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from precision_lab.device.cache import user_cache
from precision_lab.errors import InputError, nearest
from precision_lab.synthetic.checkpoint import make, weight_bytes
from precision_lab.synthetic.presets import PRESETS
from precision_lab.synthetic.shape import Shape

SCHEME = "synthetic://"

LARGEST = 1_000_000_000
"""Most bytes of weights that are generated on demand; a larger checkpoint needs an explicit command."""


def on_demand(preset: str, seed: int = 0) -> Path:
    """The cached folder of a preset's checkpoint, generated if necessary; the small ones take about a second.

    A folder in the cache is always complete, even if several processes generate it at the same time. Its name contains
    `key`, so that the folder of a different generator is never used. It can be deleted at any time.

    Raises InputError for an unknown preset, for one above `LARGEST` bytes, and if the cache cannot be written.
    """
    setting = f"model.path {SCHEME}{preset}"
    if preset not in PRESETS:
        raise InputError(f"{setting}: unknown preset. {nearest(preset, PRESETS)}")
    shape = PRESETS[preset]
    size = weight_bytes(shape)
    if size > LARGEST:
        raise InputError(
            f"{setting}: {size / 1e9:.1f} GB are not generated on demand. Run once: "
            f"`python -m precision_lab models make={preset} to=DIR`, then model.path=DIR"
        )
    try:
        folder = user_cache() / "synthetic" / f"{preset}-{seed}-{key(shape)}"
        if not _is_complete(folder):
            _make(shape, folder, seed)
    except (InputError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{setting} cannot be kept in the user's cache: {reason}. XDG_CACHE_HOME=DIR selects another folder"
        ) from error
    return folder


def key(shape: Shape, sources: Iterable[Path] | None = None) -> str:
    """12 hexadecimal digits that identify everything except the seed that determines the bytes of a checkpoint.

    This includes the sources of the generator (this package), the shape with the defaults of its configurations, and
    the prompt template, whose words the tokenizer must know. It also includes the version of NumPy, because its random
    numbers may change between versions (NEP 19).
    """
    digest = hashlib.sha256()
    files = sorted(Path(__file__).parent.rglob("*.py") if sources is None else sources)
    assert files, "the package is read from its source files"
    for text in (*(file.read_text(encoding="utf-8") for file in files), repr(shape), shape.template, np.__version__):
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:12]


def _make(shape: Shape, folder: Path, seed: int) -> None:
    try:
        make(shape, folder, seed)
    except (InputError, OSError):
        if not _is_complete(folder):  # otherwise another process was first
            raise


def _is_complete(folder: Path) -> bool:
    return os.path.isfile(folder / "model_index.json")  # Path would raise if the cache may not be read
