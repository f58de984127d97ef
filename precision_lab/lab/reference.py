"""Stores the activations of the reference on disk, so that at most one of its arrays is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from precision_lab.errors import InputError


class ReferenceWriter:
    """Appends fp32 arrays to one flat file; see `writing`."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.index: dict[str, tuple[int, list[int]]] = {}

    def put(self, key: str, array: np.ndarray) -> None:
        """Appends `array` under `key`. Raises InputError if the key exists: an address called twice is ambiguous."""
        if key in self.index:
            raise InputError(
                f"drift.sites: the module of {key} is called twice in one step, so its two arrays have one address. "
                "Name modules that are called once"
            )
        self.index[key] = (self._stream.tell(), list(array.shape))
        self._stream.write(np.ascontiguousarray(array, dtype=np.float32).tobytes())


class ReferenceReader:
    """Reads arrays by key from the memory-mapped file."""

    def __init__(self, path: Path):
        self._index = json.loads(_index_path(path).read_text())
        self._data = np.memmap(path, dtype=np.float32, mode="r") if path.stat().st_size else np.zeros(0, np.float32)

    def get(self, key: str) -> np.ndarray | None:
        """The array stored under `key`, or None without one."""
        if key not in self._index:
            return None
        offset, shape = self._index[key]
        start = offset // 4
        return self._data[start : start + int(np.prod(shape))].reshape(shape)


@contextmanager
def writing(path: Path) -> Iterator[ReferenceWriter]:
    """Context manager that yields a writer. Its files appear at `path` if the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        writer = ReferenceWriter(stream)
        yield writer
    _index_path(path).write_text(json.dumps(writer.index))
    os.replace(temporary, path)


def _index_path(path: Path) -> Path:
    return path.with_suffix(".json")
