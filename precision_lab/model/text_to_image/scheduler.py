"""The noise levels of a generation, as FlowMatchEulerDiscreteScheduler computes them for the Qwen-Image pipelines.

diffusers 0.42.1: the pipeline asks for the levels linspace(1, 1/n, n), or for those that the checkpoint states, and
passes `mu`, which depends on the number of image tokens. The scheduler then shifts the levels (by `mu` if
`use_dynamic_shifting`, else by `shift`), stretches them to `shift_terminal`, spaces them anew if a `use_*_sigmas` is
on, and appends 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from precision_lab.errors import InputError, nearest
from precision_lab.model.config import Config, short

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
"""The only class that is supported."""

_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_LARGEST_SHIFT = 80.0
"""The largest shift: exp(88) is the largest power in the range of fp32, and all levels are 1 long before."""

MAX_STEPS = 1000
"""The largest number of steps, one for each training timestep."""


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """`scheduler/scheduler_config.json` of FlowMatchEulerDiscreteScheduler; the defaults are those of the class.

    Raises InputError for a key whose value changes the levels or the step in a way that is not implemented.
    """

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"
    invert_sigmas: bool = False
    stochastic_sampling: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False

    @classmethod
    def check_class(cls, raw: Mapping[str, Any]) -> None:
        name = raw.get("_class_name", SCHEDULER)
        if name != SCHEDULER:
            raise InputError(
                f"_class_name is {name if isinstance(name, str) and name.isidentifier() else short(name)}; "
                f"the only supported class of a scheduler is {SCHEDULER}"
            )

    def __post_init__(self) -> None:
        if self.time_shift_type not in ("exponential", "linear"):
            raise InputError(
                f"time_shift_type is {self.time_shift_type!r}. "
                + nearest(self.time_shift_type, ("exponential", "linear"))
            )
        if self.num_train_timesteps != 1000:
            # the transformer would receive a timestep that differs from sigma
            raise InputError(f"num_train_timesteps is {self.num_train_timesteps}, expected 1000")
        if self.base_image_seq_len == self.max_image_seq_len:
            raise InputError(
                f"base_image_seq_len and max_image_seq_len are both {self.max_image_seq_len}, expected two numbers: "
                "the shift is interpolated between them"
            )
        for key in ("shift", "base_shift", "max_shift"):
            value = getattr(self, key)
            if not -_LARGEST_SHIFT <= value <= _LARGEST_SHIFT or (key == "shift" and value <= 0):
                least = "above 0" if key == "shift" else f"from {-_LARGEST_SHIFT:g}"
                raise InputError(f"{key} is {value}, expected a number {least} to {_LARGEST_SHIFT:g}")
        if self.shift_terminal is not None and not 0 <= self.shift_terminal < 1:
            raise InputError(f"shift_terminal is {self.shift_terminal}, expected a noise level from 0 to below 1")
        for key in ("invert_sigmas", "stochastic_sampling"):
            if getattr(self, key):
                raise InputError(f"{key} is true, which is not supported: the Euler step here adds no noise")
        on = [key for key in _SPACINGS if getattr(self, key)]
        if len(on) > 1:
            raise InputError(f"{on[0]} and {on[1]} are both true, expected at most one")


QWEN_IMAGE = SchedulerConfig(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02)
"""The scheduler of Qwen/Qwen-Image."""


def sigmas(config: SchedulerConfig, steps: int, num_tokens: int, asked: Sequence[float] | None = None) -> np.ndarray:
    """`steps` noise levels from 1 down to the terminal level, followed by 0: (steps + 1,), fp32.

    asked: the levels that the pipeline asks for, before the shift; None: linspace(1, 1/n, n).

    The number of image tokens, `num_tokens`, determines the shift if it is dynamic. The shift is in fp32, as in the
    reference. A single step has the level 1 and is not stretched; the reference would divide 0 by 0.

    Raises InputError for steps < 1, and for a schedule whose levels rise or are not finite.
    """
    if steps < 1:
        raise InputError(f"sampler.steps is {steps}, expected at least 1")
    with np.errstate(all="ignore"):
        levels = np.linspace(1.0, 1 / steps, steps) if asked is None else np.array(asked)
        levels = np.append(_levels(config, levels.astype(np.float32), num_tokens), 0).astype(np.float32)
    if not np.isfinite(levels).all() or (np.diff(levels) > 0).any():
        raise InputError(
            f"the schedule of {steps} steps and {num_tokens} image tokens does not fall from 1 to 0, it begins with "
            f"{', '.join(f'{level:.3g}' for level in levels[:4])}. Change its shift"
        )
    return levels


def explicit(levels: Any) -> np.ndarray:
    """The given noise levels as they are, followed by 0: (len(levels) + 1,), fp32.

    Raises InputError unless they are numbers in (0, 1] that fall.
    """
    if not isinstance(levels, list | tuple) or not 1 <= len(levels) <= MAX_STEPS:
        raise InputError(f"sampler.sigmas is {levels!r}, expected a list of 1 to {MAX_STEPS} noise levels")
    before = 1.0
    for number, level in enumerate(levels):
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level <= 1:
            last = "; the level 0 after the last step is appended" if level == 0 else ""
            raise InputError(f"sampler.sigmas holds {level!r}, expected noise levels above 0 and at most 1{last}")
        if number and not level < before:
            raise InputError(f"sampler.sigmas: {level} follows {before}, expected levels that fall")
        before = level
    return np.array([*levels, 0], dtype=np.float32)


def changed(config: SchedulerConfig, changes: Mapping[str, Any]) -> SchedulerConfig:
    """The scheduler with some keys of its configuration changed. Raises InputError for unknown keys and bad values."""
    if not isinstance(changes, Mapping):
        raise InputError(f"sampler.schedule is {changes!r}, expected keys like {{shift: 3.0}}")
    known = asdict(config)
    for key in changes:
        if key not in known:
            raise InputError(f"Unknown setting 'sampler.schedule.{key!s}'. {nearest(str(key), known)}")
    try:
        return SchedulerConfig.from_dict({**known, **changes})[0]
    except InputError as error:
        raise InputError(f"sampler.schedule: {error}") from error


def _levels(config: SchedulerConfig, levels: np.ndarray, num_tokens: int) -> np.ndarray:
    if config.use_dynamic_shifting:
        levels = _shift(levels, _mu(config, num_tokens), config.time_shift_type)
    else:
        levels = config.shift * levels / (1 + (config.shift - 1) * levels)
    if config.shift_terminal and len(levels) > 1:
        remaining = 1 - levels
        levels = 1 - remaining / (remaining[-1] / (1 - config.shift_terminal))
    return _spaced(config, levels)


def _mu(config: SchedulerConfig, num_tokens: int) -> float:
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return num_tokens * slope + config.base_shift - slope * config.base_image_seq_len


def _shift(levels: np.ndarray, mu: float, kind: str) -> np.ndarray:
    strength = math.exp(min(mu, _LARGEST_SHIFT)) if kind == "exponential" else mu
    return strength / (strength + (1 / levels - 1))


def _spaced(config: SchedulerConfig, levels: np.ndarray) -> np.ndarray:
    """The levels between the first and the last of `levels`, spaced anew, in float64; unchanged by default.

    Karras et al. 2022 (rho 7, the reference's value), exponential, or quantiles of a beta distribution with parameters
    0.6 (Lee et al. 2024).
    """
    high, low = float(levels[0]), float(levels[-1])
    share = np.linspace(0.0, 1.0, len(levels))
    if config.use_karras_sigmas:
        return (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    if config.use_exponential_sigmas:
        return np.exp(np.linspace(math.log(high), math.log(low), len(levels)))
    if config.use_beta_sigmas:
        from scipy.stats import beta  # half a second that other schedules do not need

        return low + beta.ppf(1 - share, 0.6, 0.6) * (high - low)
    return levels
