"""Products of bfloat16 and of fp32 matrices by oneDNN, if it is installed and the processor multiplies bfloat16.

No BLAS on PyPI multiplies bfloat16, and in fp32 oneDNN's product with a bias takes 0.9 of OpenBLAS's time (two cores of
a Zen 4). AVX512_BF16 and AMX multiply two bfloat16 numbers exactly, add in fp32, and treat subnormal inputs and outputs
as zero; apart from these, the result is as accurate as an fp32 product of the widened matrices.

The package onednn-cpu-gomp ships the library without a Python module, so this module calls its C interface, version 3
(github.com/uxlfoundation/oneDNN, include/oneapi/dnnl/dnnl.h), through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_int, c_int64, c_void_p
from functools import cache
from importlib import metadata
from typing import NamedTuple

import numpy as np

from precision_lab.errors import InputError, first_line

_PACKAGE = "onednn-cpu-gomp"
_SWITCH = "PRECISION_LAB_ONEDNN"

# from dnnl_types.h
_CPU, _IN_ORDER, _SUCCESS = 1, 1, 0
_TYPES = {"float32": 3, "bfloat16": 2}
_SOURCE, _WEIGHTS, _BIAS, _DESTINATION = 1, 33, 41, 17
_ISA_WITH_BFLOAT16 = 0xE7  # avx512_core_bf16: its own bit and those of the instruction sets it extends


class _Argument(ctypes.Structure):
    _fields_ = (("index", c_int), ("memory", c_void_p))


def available() -> bool:
    """Whether `linear` can be called. PRECISION_LAB_ONEDNN=off disables it; a path there selects another library.

    Raises InputError if that path cannot be loaded.
    """
    return _library() is not None


def description() -> str | None:
    """The library and version behind `linear`, to record with a result; None if it is not available."""
    library = _library()
    if library is None:
        return None
    library.dnnl_version.restype = POINTER(c_int)
    version = ".".join(str(part) for part in library.dnnl_version()[:3])
    return f"oneDNN {version}"


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
    """Writes x @ weight.T + bias to `out`, accumulated in fp32 and rounded once, on the calling thread.

    x: (m, k), weight: (n, k), bias: (n,), out: (m, n); all bfloat16 or all float32, with contiguous last axes. Raises
    RuntimeError if oneDNN reports a failure.
    """
    arrays = [x, weight.T, *([] if bias is None else [bias[None]]), out]
    _this_thread().product(arrays)(arrays)


class _Layout(NamedTuple):
    """The shape, strides (in elements) and dtype of a matrix."""

    shape: tuple[int, int]
    strides: tuple[int, int]
    dtype: str

    @classmethod
    def of(cls, matrix: np.ndarray) -> _Layout:
        rows, columns = matrix.shape
        down, right = (stride // matrix.itemsize for stride in matrix.strides)
        return cls((rows, columns), (down, right), matrix.dtype.name)

    @property
    def arguments(self) -> tuple[object, int, object]:
        """The arguments by which the library describes a matrix: sizes, data type, strides."""
        return (c_int64 * 2)(*self.shape), _TYPES[self.dtype], (c_int64 * 2)(*self.strides)


class _Thread:
    """The library's objects for one thread. They must not be shared: scratch memory belongs to a thread."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        _openmp().omp_set_num_threads(1)  # for this thread only: our own threads share the pieces of a product
        self.engine = _create(library.dnnl_engine_create, _CPU, ctypes.c_size_t(0))
        self.queue = _create(library.dnnl_stream_create, self.engine, _IN_ORDER)
        self._products: dict[object, _Product] = {}

    def product(self, arrays: Sequence[np.ndarray]) -> _Product:
        layouts = tuple(_Layout.of(array) for array in arrays)
        if layouts not in self._products:
            self._products[layouts] = _Product(self, layouts)
        return self._products[layouts]


class _Product:
    """A compiled product of matrices of fixed shapes and strides: source, weights, optional bias, and destination."""

    def __init__(self, thread: _Thread, layouts: Sequence[_Layout]):
        self._thread, library = thread, thread.library
        describe = library.dnnl_memory_desc_create_with_strides
        descriptors = [_create(describe, 2, *layout.arguments) for layout in layouts]
        source, weights, *bias, destination = descriptors
        operands = (source, weights, bias[0] if bias else None, destination)
        matmul = _create(library.dnnl_matmul_primitive_desc_create, thread.engine, *operands, None)
        self._primitive = _create(library.dnnl_primitive_create, matmul)
        self._memories = [_create(library.dnnl_memory_create, memory, thread.engine, None) for memory in descriptors]
        indices = (_SOURCE, _WEIGHTS, *([_BIAS] if bias else []), _DESTINATION)
        pairs = (_Argument(i, m.value) for i, m in zip(indices, self._memories, strict=True))
        self._arguments = (_Argument * len(indices))(*pairs)
        for descriptor in descriptors:
            library.dnnl_memory_desc_destroy(descriptor)
        library.dnnl_primitive_desc_destroy(matmul)

    def __call__(self, arrays: Sequence[np.ndarray]) -> None:
        library, queue = self._thread.library, self._thread.queue
        for memory, array in zip(self._memories, arrays, strict=True):
            _check(library.dnnl_memory_set_data_handle(memory, c_void_p(array.ctypes.data)))
        _check(library.dnnl_primitive_execute(self._primitive, queue, len(self._arguments), self._arguments))
        _check(library.dnnl_stream_wait(queue))


_threads = threading.local()


def _this_thread() -> _Thread:
    if not hasattr(_threads, "own"):
        library = _library()
        assert library is not None
        _threads.own = _Thread(library)
    own: _Thread = _threads.own
    return own


def _create(create: Callable[..., int], *arguments: object) -> c_void_p:
    """Calls a function of the library that writes a handle to its first argument, and returns the handle."""
    handle = c_void_p()
    _check(create(byref(handle), *arguments))
    return handle


def _check(status: int) -> None:
    if status != _SUCCESS:
        raise RuntimeError(f"oneDNN failed with status {status}")


@cache
def _library() -> ctypes.CDLL | None:
    path = os.environ.get(_SWITCH, "")
    try:
        library = ctypes.CDLL(path or _installed()) if path != "off" else None
        _openmp()
    except (OSError, metadata.PackageNotFoundError) as error:
        if path:
            raise InputError(f"{_SWITCH}={path} cannot be loaded: {first_line(error)}") from error
        return None
    if path not in ("", "off") and not hasattr(library, "dnnl_get_effective_cpu_isa"):
        raise InputError(f"{_SWITCH}={path} is not oneDNN")
    usable = library is not None and library.dnnl_get_effective_cpu_isa() & _ISA_WITH_BFLOAT16 == _ISA_WITH_BFLOAT16
    return library if usable else None


def _installed() -> str:
    """The path of the installed package's library. Raises PackageNotFoundError or OSError."""
    for file in metadata.files(_PACKAGE) or ():
        if file.name == "libdnnl.so.3":
            return str(file.locate())
    raise OSError(f"{_PACKAGE} contains no library")


@cache
def _openmp() -> ctypes.CDLL:
    """The OpenMP runtime that oneDNN is linked with."""
    return ctypes.CDLL("libgomp.so.1")
