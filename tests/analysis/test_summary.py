"""What the summary says of pictures and of near misses."""

import json

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.summary import NEAREST, _images, _near_misses
from precision_lab.lab.folder import save_image


@pytest.mark.parametrize("spoilt", ["variant", "reference"])
def test_a_picture_with_a_value_that_is_not_finite_has_no_psnr(tmp_path, spoilt):
    rng = np.random.default_rng(0)
    for name in ("variant", "reference"):
        for seed in (0, 1):
            pixels = rng.uniform(0, 255, (16, 16, 3)).astype(np.float32)
            if name == spoilt and seed == 1:
                pixels[3, 4, 1] = np.nan
            save_image(tmp_path / "images" / f"{name}__p0__s{seed}.png", pixels)
    expected = {"psnr_db": None, "psnr_db_reason": "nonfinite", "ssim": None, "ssim_reason": "nonfinite"}
    assert _images(tmp_path, "variant", "reference") == expected


def test_finite_pictures_have_one(tmp_path):
    pixels = np.full((16, 16, 3), 100.0, np.float32)
    save_image(tmp_path / "images" / "reference__p0__s0.png", pixels)
    save_image(tmp_path / "images" / "variant__p0__s0.png", pixels + 10)
    assert _images(tmp_path, "variant", "reference")["psnr_db"] == pytest.approx(20 * np.log10(25.5))


def test_near_misses_are_counted_and_the_nearest_described():
    place = {"variant": "v", "prompt_id": 0, "seed": 3, "component": "transformer", "port": "out", "num_nan": 0}
    rows = [
        place | {"site": f"s{i}", "branch": "cond", "step": 1, "dtype": "float16", "amax": amax, "num_inf": 0}
        for i, amax in enumerate([1.0, *(40000.0 + 1000 * n for n in range(NEAREST + 2))])
    ]
    rows.append(
        place | {"site": "latents", "branch": None, "step": None, "dtype": "float16", "amax": 65504.0, "num_inf": 0}
    )
    told = _near_misses(pd.DataFrame(rows))["near_misses"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["count"] == NEAREST + 3
    assert len(told["nearest"]) == NEAREST
    latents = {"component": "transformer", "site": "latents", "port": "out", "branch": None, "step": None}
    latents |= {"prompt_id": 0, "seed": 3, "format": "float16", "headroom_bits": 0.0}
    assert told["nearest"][0] == latents
    bits = [miss["headroom_bits"] for miss in told["nearest"]]
    assert bits == sorted(bits)
    assert told["nearest"][1]["step"] == 1
    assert _near_misses(pd.DataFrame([rows[0]])) == {"near_misses": {"count": 0, "nearest": []}}
