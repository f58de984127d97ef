"""The hardware and software environment. It is recorded with every result: only results from equal ones compare."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from precision_lab.device import allocator, blas, onednn

_PACKAGES = ("mlx", "numpy", "scipy", "ml_dtypes", "safetensors", "transformers", "pandas", "matplotlib", "hydra-core")

# A model with probes creates thousands of small CUDA graphs; MLX aborts if a cache of 400 keeps evicting them.
_CAPACITIES = {"MLX_CUDA_GRAPH_CACHE_SIZE": "10000"}


def numeric_switches(tf32: bool = False) -> dict[str, str]:
    """Environment variables that select the given modes. MLX reads each once per process, when it is first needed.

    MLX_ENABLE_TF32 defaults to 1, which gives an fp32 product on CUDA a relative error of 2.9e-4 instead of 2.2e-7
    (one H100, MLX 0.32.4). It has no effect on a CPU.
    """
    return {"MLX_ENABLE_TF32": str(int(tf32))}


def set_numeric_switches(tf32: bool = False) -> None:
    """Sets the reduced-precision modes of this process, all off by default. Must run before the first MLX operation."""
    os.environ.update(numeric_switches(tf32))
    for name, value in _CAPACITIES.items():
        os.environ.setdefault(name, value)


def backend() -> str:
    """The backend of MLX's default device: cpu, cuda or metal."""
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def gpus() -> int:
    """The number of GPUs that MLX can choose from; 0 on a CPU."""
    import mlx.core as mx

    return 0 if backend() == "cpu" else int(mx.device_count(mx.gpu))


@lru_cache(maxsize=1)
def device_name() -> str:
    """The product name of the processor or GPU in use."""
    import mlx.core as mx

    if backend() != "cpu":
        info: dict[str, Any] = dict(mx.device_info())
        return str(info.get("device_name", "unknown GPU"))
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Device, backend, OS, versions, numeric switches, and the commit if the package runs from a git checkout."""
    versions, (commit, dirty) = _versions(), _checkout()
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "backend": backend(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "mlx": versions["mlx"],
        "blas": blas.description() if backend() == "cpu" else None,
        "onednn": onednn.description() if backend() == "cpu" else None,
        "malloc": allocator.description(),
        "packages": dict(versions),
        "switches": {name: os.environ.get(name) for name in numeric_switches()},
        "commit": commit,
        "dirty": dirty,
    }


@cache
def _versions() -> dict[str, str | None]:
    """The version of each package; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


@cache
def _checkout() -> tuple[str | None, bool | None]:
    """The commit of the git checkout that the package runs from, and whether files differ from it.

    As first seen by this process, which keeps the modules that it has imported.
    """
    git = ("git", "-C", str(Path(__file__).resolve().parents[1]))
    tracked = _output(
        *git, "ls-files", "--error-unmatch", str(Path(__file__).resolve())
    )  # excludes a .venv inside another repository
    commit = _output(*git, "rev-parse", "HEAD") if tracked else None
    return commit, bool(_output(*git, "status", "--porcelain", "--", ".", "../conf")) if commit else None


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
