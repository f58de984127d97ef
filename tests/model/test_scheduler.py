"""The schedule of noise levels against FlowMatchEulerDiscreteScheduler of diffusers."""

import inspect
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from omegaconf import OmegaConf

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.settings import Settings
from precision_lab.model.text_to_image.scheduler import QWEN_IMAGE, SchedulerConfig, changed, explicit, sigmas
from precision_lab.settings import checked
from tests.composing import CONF
from tests.spread import thinned

PUBLISHED = asdict(QWEN_IMAGE)
LIGHTNING = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
CONFIGS = {
    "published": PUBLISHED,
    "lightning": PUBLISHED | LIGHTNING,
    "defaults of the class": {},
    "static": {"shift": 3.0},
    "static_stretched": {"shift": 1.7, "shift_terminal": 0.1},
    "linear": PUBLISHED | {"time_shift_type": "linear"},
    "karras": PUBLISHED | {"use_karras_sigmas": True},
    "exponential": PUBLISHED | {"use_exponential_sigmas": True},
    "beta": PUBLISHED | {"use_beta_sigmas": True},
}


def config_of(values) -> SchedulerConfig:
    config, ignored = SchedulerConfig.from_dict(values)
    assert ignored == ()
    return config


def diffusers_sigmas(values, steps: int, num_tokens: int) -> np.ndarray:
    """The sigmas that QwenImagePipeline requests of a scheduler with these keys in its file."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(values)
    read = scheduler.config.get
    mu = calculate_shift(
        num_tokens,
        read("base_image_seq_len", 256),
        read("max_image_seq_len", 4096),
        read("base_shift", 0.5),
        read("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    np.testing.assert_allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1], rtol=1e-7)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize("name", thinned(CONFIGS, ("published", "lightning", "static_stretched", "karras", "beta")))
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
            np.testing.assert_allclose(levels, diffusers_sigmas(CONFIGS[name], int(s), int(n)), rtol=1e-6, atol=0)


def drawn(rng) -> dict:
    """Some keys of a scheduler's file with random values, the others left out."""
    choices = {
        "shift": float(rng.uniform(0.2, 12)),
        "use_dynamic_shifting": bool(rng.integers(2)),
        "base_shift": float(rng.uniform(0.1, 2)),
        "max_shift": float(rng.uniform(0.1, 3)),
        "base_image_seq_len": int(rng.integers(1, 1000)),
        "max_image_seq_len": int(rng.integers(1001, 20000)),
        "shift_terminal": [None, 0.0, float(rng.uniform(0.001, 0.6))][rng.integers(3)],
        "time_shift_type": ["exponential", "linear"][rng.integers(2)],
        ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"][rng.integers(3)]: bool(rng.integers(2)),
        "invert_sigmas": False,
        "num_train_timesteps": 1000,
    }
    return {key: value for key, value in choices.items() if rng.integers(2)}


@pytest.mark.parametrize("seed", range(8))
def test_random_configurations_equal_diffusers(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        values, steps, tokens = drawn(rng), int(rng.integers(2, 60)), int(rng.integers(1, 12000))
        expected = diffusers_sigmas(values, steps, tokens)
        if not np.isfinite(expected).all() or (np.diff(expected) > 0).any():
            with pytest.raises(InputError, match="does not fall"):
                sigmas(config_of(values), steps, tokens)
            continue
        np.testing.assert_allclose(sigmas(config_of(values), steps, tokens), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("base", ["published", "defaults of the class", "static_stretched", "karras"])
def test_lightning_samplers_are_its_own_scheduler_on_every_checkpoint(base, steps):
    """The keys that they leave to the checkpoint do not matter, and neither does the size of the picture."""
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "sampler" / f"lightning{steps}.yaml"))
    settings = checked(Settings, stated)
    assert not settings.guided
    ours = {**asdict(QWEN_IMAGE), **LIGHTNING}
    for tokens in (64, 256, 1024, 4096, 9216):
        levels = settings.levels(config_of(CONFIGS[base]), tokens)
        np.testing.assert_allclose(levels, diffusers_sigmas(ours, steps, tokens), rtol=1e-6, atol=0)
        asked = np.linspace(1, 1 / steps, steps)
        np.testing.assert_allclose(levels[:-1], 3 * asked / (1 + 2 * asked), rtol=1e-6)


def test_missing_keys_take_the_defaults_of_the_class():
    file = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    np.testing.assert_allclose(sigmas(config_of(file), 4, 64), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    defaults = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    for key, value in asdict(SchedulerConfig()).items():
        assert defaults[key].default == value, key


def test_explicit_levels_are_used_as_they_are():
    turbo = [1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568]
    levels = explicit(turbo)
    assert levels.dtype == np.float32
    np.testing.assert_array_equal(levels, np.float32([*turbo, 0]))


@pytest.mark.parametrize(
    ("levels", "named"),
    [
        ([], "expected a list of 1 to 1000"),
        ("1,0.5", "expected a list"),
        (0.5, "expected a list"),
        ([1, 0.5, 0], "the level 0 after the last step is appended"),
        ([1, 0.5, 0.5], "0.5 follows 0.5"),
        ([0.5, 1], "1 follows 0.5"),
        ([2, 1], "holds 2"),
        ([1, True], "holds True"),
        ([1, math.nan], "holds nan"),
        ([1, "a"], "holds 'a'"),
    ],
)
def test_levels_that_are_no_schedule_are_refused(levels, named):
    with pytest.raises(InputError, match=named):
        explicit(levels)


def test_keys_of_the_scheduler_are_changed_by_name():
    config = changed(QWEN_IMAGE, {"use_dynamic_shifting": False, "shift": 3, "shift_terminal": None})
    np.testing.assert_allclose(sigmas(config, 4, 64), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    for changes, named in (
        ({"shfit": 3}, r"sampler\.schedule\.shfit'\. Did you mean .*shift"),
        ({"shift": "3"}, r"sampler\.schedule: shift is '3'"),
        ([3], r"sampler\.schedule is \[3\]"),
    ):
        with pytest.raises(InputError, match=named):
            changed(QWEN_IMAGE, changes)


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
            assert sigmas(QWEN_IMAGE, steps, tokens)[-2] == pytest.approx(0.02, rel=1e-5)
            assert sigmas(replace(QWEN_IMAGE, shift_terminal=0.3), steps, tokens)[-2] == pytest.approx(0.3, rel=1e-6)


def test_published_schedule():
    """50 steps at 1024 x 1024 pixels."""
    levels = sigmas(QWEN_IMAGE, 50, 4096)
    np.testing.assert_allclose(levels[:3], [1, 0.9897, 0.97919], atol=5e-5)
    np.testing.assert_allclose(levels[-4:], [0.0955, 0.05848, 0.02, 0], atol=5e-5)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_rejected(steps):
    with pytest.raises(InputError, match=f"steps is {steps}"):
        sigmas(QWEN_IMAGE, steps, 256)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_shift_type", "exponentail"),
        ("invert_sigmas", True),
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
