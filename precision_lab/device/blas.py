"""Loads an optimised BLAS for MLX on Linux CPUs.

The mlx-cpu wheel bundles the Netlib reference BLAS, which reaches 2-4 GFLOP/s for fp32 products on two cores; OpenBLAS
reaches about 150. A library that exports plain `cblas_sgemm` replaces it if it is loaded with RTLD_GLOBAL before MLX.
The OpenBLAS in the PyPI package scipy-openblas32 exports the symbol with a prefix, which patchelf removes in a cached
copy.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from precision_lab.device.cache import user_cache
from precision_lab.errors import InputError, first_line

# MLX imports only these three; all other symbols keep their prefix.
_SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_PREFIX = "scipy_"
_SWITCH = "PRECISION_LAB_BLAS"
_THREADS = "OPENBLAS_NUM_THREADS"

_state = "the BLAS of the MLX wheel"
_routines: dict[str, Callable[..., None]] = {}


def preload() -> None:
    """Loads OpenBLAS for MLX to use. Must run before the first import of mlx.core; has no effect afterwards.

    PRECISION_LAB_BLAS=off keeps the wheel's BLAS; PRECISION_LAB_BLAS=PATH loads another library. OpenBLAS runs on one
    thread unless OPENBLAS_NUM_THREADS is set, because the products of small models are too short to split. If OpenBLAS
    cannot be loaded, `description` reports the error and MLX uses the wheel's BLAS. Raises InputError if PATH is no
    BLAS that can be loaded: a run must not report the numbers of another.
    """
    global _state
    choice = os.environ.get(_SWITCH, "")
    if not sys.platform.startswith("linux") or choice == "off" or _state.startswith("OpenBLAS"):
        return
    if "mlx.core" in sys.modules:
        _state += " (MLX was imported before another could be loaded)"
        return
    try:
        path = Path(choice) if choice else _unprefixed()
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        if not choice and _THREADS not in os.environ:
            library[f"{_PREFIX}openblas_set_num_threads"](1)
        _routines.update(_routines_of(library))
        if choice and "cblas_sgemm" not in _routines:
            raise OSError("it exports no cblas_sgemm")
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        if choice:
            raise InputError(f"{_SWITCH}={choice} cannot be loaded: {first_line(error)}") from error
        _state += f" ({error})"
        return
    _state = f"OpenBLAS ({path.name})" if not choice else str(path)


def one_thread_for_numpy() -> None:
    """Lets NumPy's own OpenBLAS use one thread, unless OPENBLAS_NUM_THREADS is set. Must run before NumPy is imported.

    For processes that share the cores: a thread that waits for the next product spins for milliseconds on a core that
    another process needs.
    """
    os.environ.setdefault(_THREADS, "1")


def description() -> str:
    """The BLAS that MLX uses for products on the CPU, for the run record."""
    return "Accelerate" if sys.platform == "darwin" else _state


def routine(name: str) -> Callable[..., None] | None:
    """cblas_sgemm or cblas_sgemv from the preloaded library, or None without one. Arrays are passed by address.

    Each call runs on one thread unless OPENBLAS_NUM_THREADS, or another library's own setting, changes that.
    """
    return _routines.get(name)


def _routines_of(library: ctypes.CDLL) -> dict[str, Callable[..., None]]:
    integer, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    array = (address, integer)  # a matrix and its leading dimension, or a vector and its stride
    arguments: dict[str, list[type[ctypes._SimpleCData[Any]]]] = {
        "cblas_sgemm": [*[integer] * 6, real, *array, *array, real, *array],
        "cblas_sgemv": [*[integer] * 4, real, *array, *array, real, *array],
    }
    routines: dict[str, Callable[..., None]] = {}
    for name, types in arguments.items():
        symbol = next((symbol for symbol in (name, _PREFIX + name) if hasattr(library, symbol)), None)
        if symbol:
            function = library[symbol]
            function.restype, function.argtypes = None, types
            routines[name] = function
    return routines


def _unprefixed() -> Path:
    """Path of a copy of scipy-openblas32's library with unprefixed names; created once per version."""
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise OSError("scipy-openblas32 is not installed")
    source = next((Path(spec.origin).parent / "lib").glob("libscipy_openblas*.so"), None)
    if source is None:
        raise OSError("scipy-openblas32 contains no library")
    stat = source.stat()
    version = hashlib.sha256(f"{source.name} {stat.st_size} {_SYMBOLS} {platform.machine()}".encode()).hexdigest()[:12]
    target = _cache() / f"openblas-{version}.so"
    if not target.exists():
        _rename(source, target)
    return target


def _rename(source: Path, target: Path) -> None:
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if patchelf is None:
        raise OSError("patchelf is not installed")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        names = Path(folder) / "names"
        names.write_text("".join(f"{_PREFIX}{symbol} {symbol}\n" for symbol in _SYMBOLS))
        renamed = Path(folder) / target.name
        command = [patchelf, "--rename-dynamic-symbols", str(names), "--output", str(renamed), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        os.replace(renamed, target)


def _cache() -> Path:
    """A writable folder for the copy: the user's cache, or a per-user folder under the temporary folder."""
    folders = [Path(tempfile.gettempdir()) / f"precision_lab-{os.getuid()}"]
    with suppress(OSError):
        folders.insert(0, user_cache())
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise OSError("no writable folder for a copy of OpenBLAS")
