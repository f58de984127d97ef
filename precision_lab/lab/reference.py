"""Stores the activations of the reference on disk, so that at most one of its arrays is in memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from precision_lab.errors import InputError
from precision_lab.record.files import read_json, write_text
from precision_lab.record.files import writing as not_written


class ReferenceWriter:
    """Appends fp32 arrays to one flat file; see `writing`."""

    def __init__(self, stream: BinaryIO, path: Path):
        self._stream, self._path = stream, path
        self.index: dict[str, tuple[int, list[int]]] = {}

    def put(self, key: str, array: np.ndarray) -> None:
        """Appends `array` under `key`. Raises InputError if the key exists: an address called twice is ambiguous."""
        if key in self.index:
            raise InputError(
                f"drift.sites: the module of {key} is called twice in one step, so its two arrays have one address. "
                "Name modules that are called once"
            )
        self.index[key] = (self._stream.tell(), list(array.shape))
        with not_written(self._path):
            self._stream.write(np.ascontiguousarray(array, dtype=np.float32).tobytes())


class ReferenceReader:
    """Reads arrays by key from the memory-mapped file. Raises InputError if file and index do not belong together."""

    def __init__(self, path: Path):
        size = path.stat().st_size
        try:
            self._index = _checked(read_json(_index_path(path)), size)
        except (InputError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not belong to its index {_index_path(path).name}") from error
        self._data = np.memmap(path, dtype=np.float32, mode="r") if size else np.zeros(0, np.float32)

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
    temporary = path.with_suffix(".tmp")
    with not_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("wb")
    try:
        writer = ReferenceWriter(stream, path)
        yield writer
        with not_written(path):
            stream.close()
        write_text(_index_path(path), json.dumps(writer.index))
        with not_written(path):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # on a full disk, closing fails again
            stream.close()
        with suppress(OSError):
            temporary.unlink()
        raise


def _checked(index: Any, size: int) -> dict[str, tuple[int, list[int]]]:
    """The index, if its arrays fill a file of `size` bytes. Raises ValueError, AttributeError or TypeError if not."""
    end = 0
    for offset, shape in index.values():
        if offset != end or not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"an array at byte {end} is expected")
        end += 4 * math.prod(shape)
    if end != size:
        raise ValueError(f"{end} bytes are expected")
    return dict(index)


def _index_path(path: Path) -> Path:
    return path.with_suffix(".json")
