"""The schedule of noise levels against FlowMatchEulerDiscreteScheduler of diffusers."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.config import SchedulerConfig
from precision_lab.model.qwen_image.scheduler import sigmas

LIGHTNING = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
CONFIGS = {
    "published": {},
    "lightning": LIGHTNING,
    "static": {"use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None},
    "static_stretched": {"use_dynamic_shifting": False, "shift": 1.7, "shift_terminal": 0.1},
    "unshifted": {"use_dynamic_shifting": False, "shift_terminal": None},
    "linear": {"time_shift_type": "linear"},
}


def config_of(values) -> SchedulerConfig:
    config, ignored = SchedulerConfig.from_dict(values)
    assert ignored == ()
    return config


def diffusers_sigmas(config: SchedulerConfig, steps: int, num_tokens: int) -> np.ndarray:
    """The sigmas that QwenImagePipeline requests."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(asdict(config))
    mu = calculate_shift(
        num_tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    np.testing.assert_allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1], rtol=1e-7)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name):
    config = config_of(CONFIGS[name])
    rng = np.random.default_rng(0)
    steps = [2, 3, 4, 8, 20, 50, 100, *rng.integers(2, 200, 8)]
    tokens = [1, 63, 256, 1024, 4096, 6348, 6889, 8192, 16384, *rng.integers(1, 20000, 6)]
    for s in steps:
        for n in tokens:
            levels = sigmas(config, int(s), int(n))
            assert levels.dtype == np.float32
            assert levels.shape == (s + 1,)
            np.testing.assert_allclose(levels, diffusers_sigmas(config, int(s), int(n)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_falls_from_one_to_zero(name, steps):
    levels = sigmas(config_of(CONFIGS[name]), steps, 4096)
    assert levels[0] == 1
    assert levels[-1] == 0
    assert (np.diff(levels) < 0).all()


def test_last_level_is_the_terminal_one():
    for steps in (2, 4, 20, 50):
        for tokens in (1, 256, 4096, 6889):
            assert sigmas(SchedulerConfig(), steps, tokens)[-2] == pytest.approx(0.02, rel=1e-5)
            assert sigmas(SchedulerConfig(shift_terminal=0.3), steps, tokens)[-2] == pytest.approx(0.3, rel=1e-6)


def test_published_schedule():
    """50 steps at 1024 x 1024 pixels."""
    levels = sigmas(SchedulerConfig(), 50, 4096)
    np.testing.assert_allclose(levels[:3], [1, 0.9897, 0.97919], atol=5e-5)
    np.testing.assert_allclose(levels[-4:], [0.0955, 0.05848, 0.02, 0], atol=5e-5)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_rejected(steps):
    with pytest.raises(InputError, match=f"steps is {steps}"):
        sigmas(SchedulerConfig(), steps, 256)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_shift_type", "exponentail"),
        ("invert_sigmas", True),
        ("use_karras_sigmas", True),
        ("stochastic_sampling", True),
        ("num_train_timesteps", 500),
        ("max_image_seq_len", 256),
        ("shift_terminal", "0.02"),
        ("shift", None),
    ],
)
def test_unsupported_settings_are_rejected(key, value):
    with pytest.raises(InputError, match=key):
        SchedulerConfig.from_dict({key: value})
