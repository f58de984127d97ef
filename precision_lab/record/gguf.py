"""The header of a GGUF file, as plain data. Its tensors are not read, and it may come from anybody.

The format is that of `docs/gguf.md` in ggml (https://github.com/ggml-org/ggml), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from precision_lab.errors import InputError, inline

Value = int | float | bool | str | tuple["Value", ...]
"""A metadata value; of an array longer than `KEPT`, only the first ones are kept."""

TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""The name of each type of ggml by its number, the values of a block and its bytes."""

KEPT = 64
_HEADER = 32 << 20
"""Bytes that a header may have, several times what the vocabulary of a language model takes."""
_ENTRIES = 1 << 16
"""Metadata entries, and tensors, that a header may have; a transformer of 20 B weights has 1,933 tensors."""
_NAME = 1024
_RANK = 4
_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


class Tensor(NamedTuple):
    """A tensor in a file: its type, a key of TYPES, its shape with the consecutive values last, and where it is."""

    kind: int
    shape: tuple[int, ...]
    begin: int
    size: int


class Header(NamedTuple):
    """The metadata of a file, and its tensors by name."""

    metadata: dict[str, Value]
    tensors: dict[str, Tensor]


def is_gguf(file: Path) -> bool:
    """Whether a file begins like a GGUF file."""
    try:
        with file.open("rb") as opened:
            return opened.read(4) == b"GGUF"
    except OSError:
        return False


def read_header(file: Path) -> Header:
    """The header of a GGUF file.

    Raises InputError, with the name of the tensor or key, if the file is no GGUF file of a supported version, is
    truncated, or if its header is malformed: a size beyond the file, a repeated name, an unknown type, a row that is
    not whole blocks, an offset that is not aligned, or tensors that overlap.
    """
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            if size < 24:
                raise InputError(f"{file}: not a GGUF file, or truncated at {size} bytes")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parser(file, content, size).header()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


class _Parser:
    def __init__(self, file: Path, content: mmap.mmap, size: int):
        self._file, self._content, self._size = file, content, size
        self._limit = min(size, _HEADER)
        self._at = 0
        self._where = "the header"

    def header(self) -> Header:
        if self._bytes(4) != b"GGUF":
            raise InputError(f"{self._file}: not a GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            big = " It is big-endian." if version and not version & 0xFFFF else ""
            raise InputError(f"{self._file}: GGUF version {version}, expected 2 or 3.{big}")
        tensors, keys = self._count("Q", 24, "tensors"), self._count("Q", 13, "metadata entries")
        if max(tensors, keys) > _ENTRIES:
            raise self._malformed(f"{tensors} tensors and {keys} metadata entries, expected at most {_ENTRIES}")
        metadata: dict[str, Value] = {}
        for index in range(keys):
            self._where = f"metadata entry {index + 1} of {keys}"
            key = self._text(_NAME)
            self._where = f"metadata {inline(key)}"
            if key in metadata:
                raise self._malformed("it is there twice")
            metadata[key] = self._value(self._number("I"))
        entries: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
        for index in range(tensors):
            self._where = f"tensor {index + 1} of {tensors}"
            name = self._text(_NAME)
            self._where = f"tensor {inline(name)}"
            if name in entries:
                raise self._malformed("it is there twice")
            entries[name] = self._tensor()
        self._where = "general.alignment"
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._malformed(f"it is {alignment!r:.40}, expected a power of two")
        data = -(-self._at // alignment) * alignment
        return Header(metadata, self._placed(entries, data, alignment))

    def _tensor(self) -> tuple[int, tuple[int, ...], int, int]:
        """The type, shape, offset in the data, and size of the tensor whose name was read."""
        rank = self._number("I")
        if not 1 <= rank <= _RANK:
            raise self._malformed(f"it has {rank} dimensions, expected 1 to {_RANK}")
        shape = tuple(reversed([self._number("Q") for _ in range(rank)]))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in TYPES:
            raise self._malformed(f"its type has the unknown number {kind}")
        name, values, nbytes = TYPES[kind]
        if 0 in shape or math.prod(shape) > 1 << 48:
            raise self._malformed(f"it has the shape {shape}")
        if shape[-1] % values:
            raise self._malformed(f"its rows have {shape[-1]} values, expected a multiple of {values} in {name}")
        return kind, shape, offset, math.prod(shape) // values * nbytes

    def _placed(
        self, entries: dict[str, tuple[int, tuple[int, ...], int, int]], data: int, alignment: int
    ) -> dict[str, Tensor]:
        before, owner = data, ""
        for name, (_, _, offset, size) in sorted(entries.items(), key=lambda item: item[1][2]):
            self._where = f"tensor {inline(name)}"
            if offset % alignment:
                raise self._malformed(f"its offset {offset} is not a multiple of {alignment}")
            begin = data + offset
            if begin + size > self._size:
                raise InputError(
                    f"{self._file}: truncated: {self._size} bytes, but {self._where} ends at {begin + size}"
                )
            if begin < before:
                raise self._malformed(f"it overlaps tensor {inline(owner)}")
            before, owner = begin + size, name
        return {name: Tensor(kind, shape, data + at, size) for name, (kind, shape, at, size) in entries.items()}

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._text(_HEADER)
        if kind == _BOOL:
            return bool(self._number("B"))
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._malformed(f"its type has the unknown number {kind}")
        inner = self._number("I")
        if inner == _STRING:
            return tuple(self._kept(self._count("Q", 8, "texts")))
        if inner not in _SCALARS:
            raise self._malformed(f"it is an array of type {inner}, expected numbers or texts")
        form = _SCALARS[inner]
        width = struct.calcsize(form)
        count = self._count("Q", width, "numbers")
        values = struct.unpack(f"<{min(count, KEPT)}{form}", self._bytes(min(count, KEPT) * width))
        self._bytes(max(count - KEPT, 0) * width)
        return tuple(map(bool, values)) if inner == _BOOL else values

    def _kept(self, count: int) -> Iterable[str]:
        """The first texts of an array of `count`; passes over all."""
        for index in range(count):
            if index < KEPT:
                yield self._text(_HEADER)
            else:
                self._bytes(self._number("Q"))

    def _text(self, largest: int) -> str:
        length = self._number("Q")
        if length > largest:
            raise self._malformed(f"a text of {length} bytes, expected at most {largest}")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._malformed("a text that is not UTF-8") from error

    def _count(self, form: str, least: int, what: str) -> int:
        """A number of things of at least `least` bytes each, which the rest of the header has room for."""
        count = self._number(form)
        if count > (self._limit - self._at) // least:
            raise self._malformed(f"{count} {what}, more than its bytes can hold")
        return count

    def _number(self, form: str) -> int:
        return int(self._scalar(form))

    def _scalar(self, form: str) -> int | float:
        value: int | float = struct.unpack(f"<{form}", self._bytes(struct.calcsize(form)))[0]
        return value

    def _bytes(self, count: int) -> bytes:
        """The next bytes of the header."""
        if count > self._limit - self._at:
            what = "truncated" if self._limit == self._size else f"its header has more than {_HEADER >> 20} MiB"
            raise InputError(f"{self._file}: {what}: {self._where} ends beyond byte {self._limit}")
        self._at += count
        return self._content[self._at - count : self._at]

    def _malformed(self, why: str) -> InputError:
        return InputError(f"{self._file}: malformed GGUF header: {self._where}: {why}")
