"""Writes safetensors files: the headers first, then the tensors, each at its offset, by several threads.

The format is the length of the header (8 bytes, little-endian), the header as JSON, and the data without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from precision_lab.synthetic.statistics import BiasStatistics, Magnitudes, bias_magnitudes
from precision_lab.synthetic.tensors import Tensor

_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Slot:
    """A tensor that is not drawn yet, and the place of its bytes: at `offset` from the start of `file`."""

    tensor: Tensor
    file: Path
    offset: int


def lay_out(folder: Path, stem: str, tensors: Iterable[Tensor], max_bytes: int) -> list[Slot]:
    """Creates files with headers but without data, and returns the slots of all tensors, in order.

    There is one file, `stem`.safetensors, or above `max_bytes` several numbered files and their index. Tensors are
    stored as bf16.
    """
    parts = split(tensors, max_bytes)
    names = [f"{stem}.safetensors"]
    if len(parts) > 1:
        names = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
        _write_index(folder / f"{stem}.safetensors.index.json", names, parts)
    slots = []
    for name, part in zip(names, parts, strict=True):
        header = _header(part)
        (folder / name).write_bytes(header)
        offset = len(header)
        for tensor in part:
            slots.append(Slot(tensor, folder / name, offset))
            offset += tensor.nbytes
    return slots


def fill(slots: Sequence[Slot], workers: int, statistics: BiasStatistics, written: Callable[[int], None]) -> None:
    """Draws the tensors and writes each into its slot, `workers` at a time.

    A tensor depends only on its name and the seed, so the number and the order of workers do not change a byte. Drawing
    and rounding release the GIL. statistics: receives the biases, in the order of the slots. written: called in this
    thread, in the same order, with the bytes of each tensor; an exception that it raises stops the other workers.
    """
    with ThreadPoolExecutor(workers) as pool:
        try:
            for slot, magnitudes in zip(slots, pool.map(_fill, slots), strict=True):
                if magnitudes is not None:
                    statistics.add(slot.tensor.name, magnitudes)
                written(slot.tensor.nbytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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


def _fill(slot: Slot) -> Magnitudes | None:
    """Writes one tensor, piece by piece; returns the magnitudes of the stored values if it is a bias."""
    tensor, magnitudes, size = slot.tensor, None, 0
    with slot.file.open("r+b") as file:
        file.seek(slot.offset)
        for piece in tensor.draw():
            stored = piece.astype(ml_dtypes.bfloat16)
            magnitudes = bias_magnitudes(tensor.name, stored)  # a bias has only one piece
            # arrays of ml_dtypes have no buffer interface
            file.write(np.ascontiguousarray(stored).view(np.uint16).astype("<u2", copy=False).data)
            size += stored.nbytes
    assert size == tensor.nbytes, f"{tensor.name}: drew {size} bytes, announced {tensor.nbytes}"
    return magnitudes


def _write_index(path: Path, names: Sequence[str], parts: Sequence[Sequence[Tensor]]) -> None:
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for part in parts for tensor in part)},
        "weight_map": {tensor.name: name for name, part in zip(names, parts, strict=True) for tensor in part},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
