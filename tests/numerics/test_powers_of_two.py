"""Power-of-two scales: the smallest that suffices, tables by block, headroom."""

import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS, round_to
from precision_lab.numerics.scales import headroom_bits, overflows, scale_at, smallest_scale, table_of

FLOAT16, E4M3 = FORMATS["float16"], FORMATS["float8_e4m3fn"]


@pytest.mark.parametrize(
    ("amax", "fmt", "margin", "scale"),
    [
        (0.0, FLOAT16, 0, 1),
        (65504, FLOAT16, 0, 1),
        (65505, FLOAT16, 0, 2),
        (2 * 65504, FLOAT16, 0, 2),
        (65504, FLOAT16, 1, 2),
        (32752, FLOAT16, 1, 1),
        (5e7, FLOAT16, 0, 1024),
        (448, E4M3, 0, 1),
        (449, E4M3, 0, 2),
        (448, E4M3, 1.5, 4),
    ],
)
def test_known_scales(amax, fmt, margin, scale):
    assert smallest_scale(amax, fmt, margin) == scale


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0, 2.5])
def test_no_smaller_power_of_two_would_do(fmt, margin):
    amax = np.exp2(np.random.default_rng(7).uniform(-30, 100, 500))
    scale = smallest_scale(amax, fmt, margin)
    free = smallest_scale(amax, fmt, margin, least=0.0)
    assert (scale == np.maximum(free, 1)).all()
    assert (amax <= fmt.max * 2.0**-margin * free).all()
    assert (2 * amax > fmt.max * 2.0**-margin * free)[amax > 0].all()
    limit = fmt.max * 2.0**-margin
    assert (np.frexp(scale)[0] == 0.5).all()
    assert (amax / scale <= limit).all()
    assert ((scale == 1) | (amax / (scale / 2) > limit)).all()
    assert (headroom_bits(amax / scale, fmt) >= margin - 1e-12).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_magnitude_overflows_where_rounding_it_does(name):
    fmt = FORMATS[name]
    near = fmt.max * (1 + np.linspace(-0.2, 0.2, 4001))
    assert (overflows(near, fmt) == ~np.isfinite(round_to(near, fmt))).all()


def test_headroom_is_negative_beyond_the_format_and_infinite_for_nothing():
    assert headroom_bits([65504 * 4, 65504 / 8, 0], FLOAT16) == pytest.approx([-2, 3, np.inf])


def test_a_table_says_where_its_scales_begin():
    assert table_of([1, 1, 4, 4, 4, 2]) == {0: 1, 2: 4, 5: 2}
    assert table_of([8, 8]) == 8
    scales = np.exp2(np.random.default_rng(3).integers(0, 3, 40)).tolist()
    assert [scale_at(table_of(scales), block, "here") for block in range(40)] == scales
    with pytest.raises(InputError, match="here: no scale for its block"):
        scale_at({3: 2}, 2, "here")
