"""Writes a complete synthetic checkpoint to a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from precision_lab.errors import InputError
from precision_lab.record.files import replacing
from precision_lab.synthetic import shards
from precision_lab.synthetic.shape import Shape
from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Source, Tensor

Progress = Callable[[int, int], None]
"""Called with the bytes of weights written so far and the total bytes."""

_BESIDE_WEIGHTS = 8 << 20
"""Bytes reserved for headers, configurations and the tokenizer."""

_COMPONENTS = {"text_encoder": "model", "transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""The stem of the weight files, by component."""


_MOST_WORKERS = 16
"""With 16 workers, at most 11 GiB are held; at full width one worker draws about 90 MB/s (a core of an AMD EPYC)."""


def make(shape: Shape, out: Path, seed: int = 0, progress: Progress | None = None, workers: int | None = None) -> None:
    """Writes a checkpoint in the published layout of its model to the folder `out`, which must be absent or empty.

    The same shape and seed give the same bytes for any number of `workers` (None: one for each core, at most 16).
    Everything is written next to `out` and renamed at the end. Each worker holds one tensor, at most 0.7 GiB for the
    largest shape.

    Raises InputError if `out` exists and is not an empty folder, if it cannot be written, if the disk is too small, if
    the seed is negative, or if the text encoder's vocabulary is smaller than the tokenizer.
    """
    if seed < 0:
        raise InputError(f"seed {seed}, expected 0 or more")
    if shape.text_encoder.vocab_size < shape.vocabulary.size:
        raise InputError(
            f"shape: text_encoder vocab_size {shape.text_encoder.vocab_size}, but the tokenizer has "
            f"{shape.vocabulary.size} tokens; expected at least as many"
        )
    components = shape.tensors(Source(seed))
    total = _total(components)
    with replacing(out, total + _BESIDE_WEIGHTS) as folder:
        statistics = BiasStatistics()
        done = 0

        def written(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total)

        _write_configs(folder, shape)
        slots = [
            slot
            for name, tensors in components.items()
            for slot in shards.lay_out(folder / name, _COMPONENTS[name], tensors, shape.max_shard_bytes)
        ]
        shards.fill(slots, workers or min(_MOST_WORKERS, os.cpu_count() or 1), statistics, written)
        (folder / "README.md").write_text(shape.card(seed, statistics), encoding="utf-8")


def weight_bytes(shape: Shape) -> int:
    """Total size in bytes of the weights of a checkpoint of this shape."""
    return _total(shape.tensors(Source(0)))


def _total(components: Mapping[str, list[Tensor]]) -> int:
    return sum(tensor.nbytes for tensors in components.values() for tensor in tensors)


def _write_configs(folder: Path, shape: Shape) -> None:
    for name, values in shape.configs().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / shape.tokenizer_folder).mkdir()
    shape.write_tokenizer(folder / shape.tokenizer_folder)
