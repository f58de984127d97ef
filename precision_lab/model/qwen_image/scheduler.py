"""Sigmas of the flow-match Euler schedule (FlowMatchEulerDiscreteScheduler as Qwen-Image configures it)."""

from __future__ import annotations

import math

import numpy as np

from precision_lab.errors import InputError
from precision_lab.model.qwen_image.config import SchedulerConfig


def sigmas(config: SchedulerConfig, steps: int, num_tokens: int) -> np.ndarray:
    """`steps` noise levels from 1 down to the terminal level, followed by 0: (steps + 1,), fp32.

    The number of image tokens, `num_tokens`, determines the shift. All arithmetic is in fp32, as in the reference. A
    single step has the level 1 and is not stretched; the reference would divide 0 by 0.

    Raises InputError for steps < 1.
    """
    if steps < 1:
        raise InputError(f"sampler.steps is {steps}, expected at least 1")
    levels = np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    if config.use_dynamic_shifting:
        levels = _shift(levels, _mu(config, num_tokens), config.time_shift_type)
    else:
        levels = config.shift * levels / (1 + (config.shift - 1) * levels)
    if config.shift_terminal and steps > 1:
        remaining = 1 - levels
        levels = 1 - remaining / (remaining[-1] / (1 - config.shift_terminal))
    return np.append(levels, 0).astype(np.float32)


def _mu(config: SchedulerConfig, num_tokens: int) -> float:
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return num_tokens * slope + config.base_shift - slope * config.base_image_seq_len


def _shift(levels: np.ndarray, mu: float, kind: str) -> np.ndarray:
    strength = math.exp(mu) if kind == "exponential" else mu
    return strength / (strength + (1 / levels - 1))
