"""An optimised BLAS for MLX on Linux CPUs.

The mlx-cpu wheel ships the Netlib reference BLAS, which reaches 2-4 GFLOP/s for fp32 products on two cores where
OpenBLAS reaches about 150. A library that exports an unprefixed `cblas_sgemm`, loaded globally before MLX, takes its
place. The OpenBLAS of the PyPI package scipy-openblas32 exports it with a prefix; patchelf removes the prefix in a
cached copy.
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

# MLX imports only these three; all other symbols keep their prefix.
_SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_PREFIX = "scipy_"
_SWITCH = "PRECISION_LAB_BLAS"

_state = "the BLAS of the MLX wheel"
_routines: dict[str, Callable[..., None]] = {}


def preload() -> None:
    """Loads OpenBLAS for MLX; must run before the first import of mlx.core, and has no effect after it.

    PRECISION_LAB_BLAS=off keeps the BLAS of the wheel, PRECISION_LAB_BLAS=PATH loads another library. OpenBLAS uses one
    thread unless OPENBLAS_NUM_THREADS is set: the products of small models are too short to share. If loading fails,
    `description` gives the reason and MLX keeps its own BLAS.
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
        if not choice and "OPENBLAS_NUM_THREADS" not in os.environ:
            library[f"{_PREFIX}openblas_set_num_threads"](1)
        _routines.update(_routines_of(library))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        _state += f" ({error})"
        return
    _state = f"OpenBLAS ({path.name})" if not choice else str(path)


def description() -> str:
    """The BLAS that computes MLX's CPU products, to record with a result."""
    return "Accelerate" if sys.platform == "darwin" else _state


def routine(name: str) -> Callable[..., None] | None:
    """cblas_sgemm or cblas_sgemv of the preloaded library, which takes arrays by address; None if there is none.

    A call uses one thread, unless OPENBLAS_NUM_THREADS or a setting of another library says otherwise.
    """
    return _routines.get(name)


def _routines_of(library: ctypes.CDLL) -> dict[str, Callable[..., None]]:
    integer, real, address = ctypes.c_int, ctypes.c_float, ctypes.c_void_p
    array = (address, integer)  # a matrix and its leading dimension, a vector and its stride
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
    """The path of a copy of scipy-openblas32's library with unprefixed names, created once per version."""
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
    """A writable folder for the copy: the user's cache, or this user's own folder under the temporary folder."""
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
