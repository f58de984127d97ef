"""The BLAS under MLX on Linux: loaded before MLX or not at all, and a failure never breaks MLX."""

import os
import subprocess
import sys

import pytest

from precision_lab.device import blas

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")

PRODUCT = """
import mlx.core as mx, numpy as np
rng = np.random.default_rng(0)
a, b = rng.standard_normal((2, 96, 700)).astype(np.float32)
c = np.array(mx.array(a) @ mx.array(b).T)
exact = a.astype(np.float64) @ b.astype(np.float64).T
print(np.linalg.norm(c - exact) / np.linalg.norm(exact) < 1e-6)
"""


def after(*statements, **environment):
    """The last two lines printed: the BLAS in use, and whether a product is right."""
    code = "\n".join(["from precision_lab.device import blas", *statements, "print(blas.description())", PRODUCT])
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return process.stdout.strip().splitlines()[-2:]


@linux
def test_openblas_is_found_by_mlx(tmp_path):
    pytest.importorskip("scipy_openblas32")
    for _ in range(2):  # created, then read from the cache
        name, right = after("blas.preload()", XDG_CACHE_HOME=str(tmp_path))
        assert name.startswith("OpenBLAS")
        assert right == "True"
    assert len(list((tmp_path / "precision_lab").glob("openblas-*.so"))) == 1


@linux
@pytest.mark.parametrize(
    ("statements", "environment", "message"),
    [
        (("blas.preload()",), {"PRECISION_LAB_BLAS": "off"}, "of the MLX wheel"),
        (("import mlx.core", "blas.preload()"), {}, "MLX was imported before"),
        (
            ("import shutil; shutil.which = lambda *a, **k: None", "blas.preload()"),
            {"XDG_CACHE_HOME": "{}"},
            "patchelf",
        ),
    ],
    ids=["off", "late", "no patchelf"],
)
def test_mlx_keeps_its_own_blas_where_preloading_fails(tmp_path, statements, environment, message):
    environment = {key: value.format(tmp_path) for key, value in environment.items()}
    name, right = after(*statements, **environment)
    assert message in name
    assert right == "True"


@linux
@pytest.mark.parametrize("library", ["/nowhere/libblas.so", "libm.so.6"])
def test_a_library_that_is_named_and_cannot_be_used_is_an_error(library):
    """A run that silently computes with another BLAS reports the numbers of another."""
    process = subprocess.run(
        [sys.executable, "-m", "precision_lab", "models"],
        capture_output=True,
        text=True,
        env={**os.environ, "PRECISION_LAB_BLAS": library},
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"PRECISION_LAB_BLAS={library} cannot be loaded: ")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_a_stated_number_of_threads_is_kept(given, expected, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    blas.one_thread_for_numpy()
    assert os.environ["OPENBLAS_NUM_THREADS"] == expected
