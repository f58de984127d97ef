"""Distances of final results and pictures between runs, with planted arrays and an independent computation."""

import math

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from precision_lab.analysis.outcomes import Generations, distance, distances
from precision_lab.errors import InputError
from precision_lab.record import results
from tests.fabricated import run_of

SHAPE = (1, 64, 16)


@pytest.fixture
def generations(tmp_path):
    """Makes the generations of a variant, with the results and pictures of its cases by (prompt_id, seed)."""

    def make(name, outcomes, variant="a"):
        run = run_of({}, [variant], tmp_path / name)
        (run.path / "images").mkdir(parents=True, exist_ok=True)
        for (prompt_id, seed), (result, picture, bad) in outcomes.items():
            if result is not None:
                results.write(results.path_of(run.path, variant, prompt_id, seed), result)
            if picture is not None:
                about = PngImagePlugin.PngInfo()
                about.add_text("num_nonfinite", str(bad))
                path = run.path / "images" / f"{variant}__p{prompt_id}__s{seed}.png"
                Image.fromarray(picture).save(path, pnginfo=about)
        return Generations(run, variant)

    return make


def planted(rng, count=3):
    return {
        (0, seed): (rng.normal(size=SHAPE).astype(np.float32), rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), 0)
        for seed in range(count)
    }


def moved(rng, outcomes, size=0.01):
    """Other outcomes near the given ones."""
    found = {}
    for case, (result, picture, _) in outcomes.items():
        noise = rng.integers(-9, 10, picture.shape)
        near = np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)
        found[case] = (result * np.float32(1 + size) + rng.normal(size=SHAPE).astype(np.float32) * size, near, 0)
    return found


@pytest.mark.parametrize("seed", [3, 4])
def test_the_numbers_are_those_of_an_independent_computation(generations, seed):
    rng = np.random.default_rng(seed)
    reference = planted(rng)
    other = moved(rng, reference)
    cases = {case: case for case in reference}
    found = distances(generations("first", reference), generations("second", other), cases)
    for row, case in zip(found.itertuples(), cases, strict=True):
        (expected, picture, _), (result, near, _) = reference[case], other[case]
        error = np.linalg.norm((result.astype(float) - expected).ravel()) / np.linalg.norm(
            expected.astype(float).ravel()
        )
        assert (row.prompt_id, row.seed) == case
        assert row.rel_l2 == pytest.approx(error, rel=1e-6)
        assert row.psnr_db == pytest.approx(peak_signal_noise_ratio(picture, near, data_range=255), abs=1e-9)
        assert row.ssim == pytest.approx(
            structural_similarity(picture, near, channel_axis=-1, data_range=255), abs=1e-12
        )
    whole = distance(generations("first", reference), generations("second", other), cases)
    assert whole.rel_l2 == pytest.approx(np.median(found["rel_l2"]))
    assert whole.rel_l2_worst == found["rel_l2"].max()
    assert (whole.psnr_db, whole.psnr_db_worst) == pytest.approx((found["psnr_db"].median(), found["psnr_db"].min()))
    assert (whole.ssim, whole.ssim_worst) == pytest.approx((found["ssim"].median(), found["ssim"].min()))
    assert (whole.cases, whole.identical, whole.nonfinite) == (3, 0, 0)


def test_cases_are_aligned_not_numbered(generations):
    rng = np.random.default_rng(0)
    outcomes = planted(rng, 1)
    swapped = {(1, 0): outcomes[0, 0], (0, 0): planted(rng, 1)[0, 0]}
    first, second = generations("first", outcomes), generations("second", swapped)
    assert distance(first, second, {(0, 0): (1, 0)}).identical == 1
    assert distance(first, second, {(0, 0): (0, 0)}).identical == 0


def test_identical_pictures_are_the_best_not_left_out(generations):
    rng = np.random.default_rng(1)
    reference = planted(rng, 4)
    other = moved(rng, reference)
    for seed in (0, 1, 2):
        other[0, seed] = reference[0, seed]
    cases = {case: case for case in reference}
    found = distance(generations("first", reference), generations("second", other), cases)
    assert (found.psnr_db, found.rel_l2, found.ssim, found.identical) == (math.inf, 0.0, 1.0, 3)
    assert found.psnr_db_worst < 45
    other[0, 1] = moved(rng, reference)[0, 1]
    half = distance(generations("first", reference), generations("third", other), cases)
    assert half.psnr_db < 45, "half of them differ"


def test_what_is_not_finite_is_counted_and_has_no_distance(generations):
    rng = np.random.default_rng(2)
    reference = planted(rng, 3)
    other = dict(reference)
    lost = reference[0, 0][0].copy()
    lost[0, 3, 5] = np.inf
    other[0, 0] = (lost, reference[0, 0][1], 0)
    other[0, 1] = (reference[0, 1][0], np.zeros_like(reference[0, 1][1]), 7)
    cases = {case: case for case in reference}
    found = distances(generations("first", reference), generations("second", other), cases)
    assert found["nonfinite"].tolist() == [True, True, False]
    assert np.isnan(found["rel_l2"][0])
    assert np.isnan(found["psnr_db"][1])
    whole = distance(generations("first", reference), generations("second", other), cases)
    assert (whole.cases, whole.identical, whole.nonfinite) == (3, 1, 2)


def test_what_is_missing_or_of_another_size_is_not_compared(generations):
    rng = np.random.default_rng(5)
    reference = planted(rng, 4)
    other = {
        (0, 0): (None, reference[0, 0][1], 0),
        (0, 1): (reference[0, 1][0][:, :32], reference[0, 1][1][:20], 0),
        (0, 2): (reference[0, 2][0], None, 0),
    }
    cases = {case: case for case in reference}
    found = distances(generations("first", reference), generations("second", other), cases)
    assert found["seed"].tolist() == [0, 2]
    assert found["psnr_db"].isna().tolist() == [False, True]
    assert found["rel_l2"].isna().tolist() == [True, False]
    nothing = distance(generations("third", {}), generations("second", other), cases)
    assert (nothing.cases, nothing.rel_l2, nothing.psnr_db, nothing.ssim_worst) == (0, None, None, None)


def test_a_variant_of_another_name_and_run_can_be_the_reference(generations):
    outcomes = planted(np.random.default_rng(6), 1)
    first, second = generations("first", outcomes, "with_lora"), generations("second", outcomes, "bits4")
    assert distance(first, second, {(0, 0): (0, 0)}).identical == 1


def test_a_large_result_is_not_stored(tmp_path):
    path = results.path_of(tmp_path, "a", 0, 0)
    results.write(path, np.zeros(results.LARGEST // 4 + 1, np.float32))
    assert results.read(path) is None
    results.write(path, np.ones(results.LARGEST // 4, np.float16))
    stored = results.read(path)
    assert stored is not None
    assert (stored.dtype, stored.size) == (np.float32, results.LARGEST // 4)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", (1 << 60).to_bytes(8, "little") + b"{}", b"\0" * (results.LARGEST + 2000)]
)
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = results.path_of(tmp_path, "a", 0, 0)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match="a__p0__s0"):
        results.read(path)


def test_a_tensor_of_another_name_or_dtype_is_named(tmp_path):
    path = results.path_of(tmp_path, "a", 0, 0)
    path.parent.mkdir()
    for tensors in ({"other": np.zeros(3, np.float32)}, {"result": np.zeros(3, np.int32)}):
        save_file(tensors, path)
        with pytest.raises(InputError, match="holds no fp32 tensor"):
            results.read(path)


def test_a_picture_that_cannot_be_read_is_named(generations):
    outcomes = planted(np.random.default_rng(7), 1)
    first, second = generations("first", outcomes), generations("second", outcomes)
    (second.run.path / "images" / "a__p0__s0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(InputError, match=r"a__p0__s0\.png is not a picture"):
        distance(first, second, {(0, 0): (0, 0)})
