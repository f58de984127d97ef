"""Safetensors files written piece by piece, so that no more than one tensor is in memory.

Format: 8 bytes little-endian length of the header, the header as JSON, the data without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from precision_lab.synthetic.statistics import BiasStatistics
from precision_lab.synthetic.tensors import Tensor

_HEADER_ALIGNMENT = 8


def write(
    folder: Path,
    stem: str,
    tensors: Iterable[Tensor],
    max_bytes: int,
    statistics: BiasStatistics,
    written: Callable[[int], None],
) -> None:
    """Writes `tensors` as bf16 to `stem`.safetensors or, above `max_bytes`, to numbered files and their index.

    written: called with the bytes of each piece. statistics: is shown every tensor's stored values.
    """
    parts = split(tensors, max_bytes)
    names = [f"{stem}.safetensors"]
    if len(parts) > 1:
        names = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
        _write_index(folder / f"{stem}.safetensors.index.json", names, parts)
    for name, part in zip(names, parts, strict=True):
        _write_file(folder / name, part, statistics, written)


def split(tensors: Iterable[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """Consecutive groups of at most `max_bytes` each; a larger tensor is a group of its own."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    return groups


def _write_index(path: Path, names: Sequence[str], parts: Sequence[Sequence[Tensor]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for part in parts for tensor in part)},
        "weight_map": {tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_file(
    path: Path, tensors: Sequence[Tensor], statistics: BiasStatistics, written: Callable[[int], None]
) -> None:
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            size = 0
            for piece in tensor.draw():
                stored = piece.astype(ml_dtypes.bfloat16)
                statistics.add(tensor.name, stored)
                # ml_dtypes' arrays have no buffer interface of their own
                file.write(np.ascontiguousarray(stored).view(np.uint16).astype("<u2", copy=False).data)
                size += stored.nbytes
                written(stored.nbytes)
            assert size == tensor.nbytes, f"{tensor.name}: drew {size} bytes, announced {tensor.nbytes}"


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
