"""The settings of a case of Qwen-Image: their ranges, their noise levels, and what is remarked on them."""

import math

import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.settings import Settings
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, sigmas
from precision_lab.settings import checked
from tests.subjects import case, source


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"steps": 100_000_000_000}, "sampler.steps is 100000000000, .* at most 1000"),
        ({"height": 100_000_000}, "image.height is 100000000, expected 1 to 16384"),
        ({"width": 16_400}, "image.width is 16400, expected 1 to 16384"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"max_sequence_length": 1025}, "sampler.max_sequence_length is 1025, expected 1 to 1024"),
        ({"max_sequence_length": 0}, "sampler.max_sequence_length is 0"),
        ({"max_sequence_length": "512"}, "max_sequence_length is '512', expected a whole number"),
        ({"max_sequence_length": True}, "max_sequence_length is True"),
        ({"schedule": {"shift": -1}}, "sampler.schedule: shift is -1"),
        ({"schedule": {"stochastic_sampling": True}}, "sampler.schedule: stochastic_sampling"),
        ({"schedule": "fast"}, "schedule is 'fast', expected keys of scheduler_config.json, like {shift: 3.0}"),
        ({"sigmas": [1, 0.5], "steps": 3}, "has 2 noise levels and sampler.steps is 3"),
        ({"sigmas": [1], "steps": 1, "schedule": {"shift": 2.0}}, "would have no effect"),
    ],
)
def test_values_out_of_range(values, named):
    with pytest.raises(InputError, match=named):
        checked(Settings, values)


def test_noise_levels_are_those_of_the_settings():
    plain = checked(Settings, {"steps": 4}).levels(QWEN_IMAGE, 64)
    np.testing.assert_array_equal(plain, sigmas(QWEN_IMAGE, 4, 64))
    static = {"use_dynamic_shifting": False, "shift": 3, "shift_terminal": None}
    shifted = checked(Settings, {"steps": 4, "schedule": static}).levels(QWEN_IMAGE, 64)
    np.testing.assert_allclose(shifted, [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    given = checked(Settings, {"steps": 2, "sigmas": [1, 0.4]}).levels(QWEN_IMAGE, 64)
    np.testing.assert_array_equal(given, np.float32([1, 0.4, 0]))


def test_prompts_that_diffusers_would_cut_are_remarked_on(small_checkpoint):
    subject = source(small_checkpoint)
    long = case("red " * 700, 0)
    assert subject.remarks(case("red " * 400, 0)) == []
    (remark,) = subject.remarks(long)
    assert "tokens, of which diffusers by default uses the first 512. sampler.max_sequence_length=512" in remark
    (remark,) = subject.remarks(case("red " * 700, 0, max_sequence_length=600))
    assert remark.endswith("of which sampler.max_sequence_length uses the first 600")
    assert subject.remarks(case("red " * 400, 0, max_sequence_length=512)) == []
