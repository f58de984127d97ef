"""What the summary says of pictures."""

import numpy as np
import pytest

from precision_lab.analysis.summary import _images
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
