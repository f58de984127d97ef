"""Checkpoints that many tests read, a cache of their own, and what makes many small tests quick."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from precision_lab.device import blas
from precision_lab.device.environment import set_numeric_switches

# where containers switch bytecode off, each process that a test starts would compile the package anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # of NumPy in the workers that this process starts: one for each core
# as the command line does, before anything imports MLX
blas.preload()
set_numeric_switches()

from precision_lab.synthetic import PRESETS, make, on_demand  # noqa: E402
from tests.composing import shipped_files_read_once  # noqa: E402

# a project of its own, see test_sample_project.py
collect_ignore = ["sample_project"]


def pytest_configure(config: pytest.Config) -> None:
    """Imports torch, unless this process only hands tests to its workers, which start after this."""
    hands_out = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if find_spec("torchvision") and not hands_out:
        import tests.torchvision_operators  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def _shipped_files_read_once() -> Iterator[None]:
    with shipped_files_read_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_process_a_run() -> Iterator[None]:
    """By default no run starts a second process, which imports all and takes a core from the other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("precision_lab.lab.slots.MOST", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tiny operations are up to 50 times slower on two threads, which spend the time waiting for each other."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test writes to the user's own cache, nor does any process it starts."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint with a transformer of 4 blocks, width 64; copy it before changing a file."""
    micro = PRESETS["micro"]
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    make(replace(micro, transformer=replace(micro.transformer, num_layers=4)), folder)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint_21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen-Image-2.1: a complete checkpoint with a transformer of 4 blocks, width 64."""
    micro = PRESETS["micro_21"]
    folder = tmp_path_factory.mktemp("checkpoints") / "small_21"
    make(replace(micro, transformer=replace(micro.transformer, num_layers=4)), folder)
    return folder


@pytest.fixture(scope="session")
def micro_synthetic(user_cache: Path) -> Path:
    """What `model=micro_synthetic` runs: all 60 blocks, streams grow to 5e7; copy it before changing a file."""
    return on_demand("micro")
