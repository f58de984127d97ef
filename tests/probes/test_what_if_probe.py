"""The what-if probe on arrays and in the shipped configuration's names."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.probes.base import BatchProbe
from precision_lab.probes.what_if import WhatIf


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_one_array_and_many_agree(dtype):
    probe = WhatIf(sites=("**",))
    assert isinstance(probe, BatchProbe)
    rng = np.random.default_rng(2)
    arrays = [mx.array(rng.standard_normal((1, n, 128)) * 100).astype(dtype) for n in (3, 8, 3)]
    for x, together in zip(arrays, probe.measure_each(arrays), strict=True):
        assert probe.measure(x) == pytest.approx(together, nan_ok=True)
        assert together["sqnr_db_affine8"] > together["sqnr_db_affine4"] + 15
        assert together["sqnr_db_mxfp8"] > together["sqnr_db_mxfp4"]


def test_a_stream_beyond_the_range():
    scalars = WhatIf(sites=("**",), formats=("nvfp4", "float8_e4m3fn")).measure(mx.full((1, 2, 64), 4096.0))
    assert scalars["overflow_pct_nvfp4"] == scalars["overflow_pct_float8_e4m3fn"] == 100
    assert scalars["sqnr_db_nvfp4"] == pytest.approx(20 * np.log10(4096 / (4096 - 2688)))
    assert np.isnan(scalars["sqnr_db_float8_e4m3fn"])


def test_unknown_formats_are_refused():
    with pytest.raises(InputError, match="mxfp8"):
        WhatIf(sites=("**",), formats=("mxfp9",))
