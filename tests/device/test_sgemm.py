"""Products by the preloaded BLAS and by NumPy, and loops on all cores."""

import numpy as np
import pytest

from precision_lab.device import blas
from precision_lab.device.sgemm import in_pieces, sgemm


@pytest.fixture(params=["preloaded", "NumPy"])
def library(request, monkeypatch):
    if request.param == "NumPy":
        monkeypatch.setattr(blas, "routine", lambda name: None)
    elif blas.routine("cblas_sgemm") is None:
        pytest.skip("no BLAS was preloaded")


@pytest.mark.parametrize("rows", [0, 1, 3, 5, 130])
@pytest.mark.parametrize("columns", [1, 2, 77])
@pytest.mark.parametrize("inner", [0, 1, 64])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_strided_views(library, rows, columns, inner, transposed):
    rng = np.random.default_rng(rows + columns)
    a = rng.standard_normal((rows, 2, inner), dtype=np.float32)[:, 1]
    shape = (columns, 3, inner) if transposed else (inner, 3, columns)
    b = rng.standard_normal(shape, dtype=np.float32)[:, 1]
    b = b.T if transposed else b
    whole = np.full((rows, columns + 5), np.nan, np.float32)
    sgemm(a, b, whole[:, 2 : 2 + columns])
    np.testing.assert_allclose(whole[:, 2 : 2 + columns], a.astype(np.float64) @ b, rtol=1e-4, atol=1e-5)
    assert np.isnan(whole[:, :2]).all()
    assert np.isnan(whole[:, 2 + columns :]).all()


@pytest.mark.parametrize("length", [0, 1, 10, 97])
def test_pieces_cover_every_element_once(length):
    counts = np.zeros(length, int)

    def count(piece):
        counts[piece] += 1

    in_pieces(count, length, 10)
    assert (counts == 1).all()


def test_overflow_is_silent_and_exceptions_are_raised():
    big = np.full(40, 3e38, np.float32)
    in_pieces(lambda piece: np.multiply(big[piece], big[piece]), 40, 10)

    def fail(piece):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_pieces(fail, 40, 10)
