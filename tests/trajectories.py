"""Trajectories and pictures that a test makes up, to end in one composition or another."""

import numpy as np

SIZE = 4096


def trajectory(levels, goals, seed=0, noise=0.0):
    """Latents after each Euler step from noise towards goals[step], whose predictions err by `noise`."""
    rng = np.random.default_rng(seed)
    x, following = np.random.default_rng(99).standard_normal(SIZE), [*levels[1:], 0.0]
    latents = []
    for level, low, goal in zip(levels, following, goals, strict=True):
        predicted = goal + noise * rng.standard_normal(SIZE)
        x = predicted + low / level * (x - predicted)
        latents.append(x)
    return latents


def distances(one, other):
    return [float(np.linalg.norm(a - b)) for a, b in zip(one, other, strict=True)]


def levels_of(steps, shift=1.0):
    levels = np.linspace(1, 0, steps + 1)[:-1]
    return (shift * levels / (1 + (shift - 1) * levels)).tolist()


def scene(seed, height=128, width=160):
    """A plain picture with three discs at places that depend on the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), (96, 128, 160), float)
    for _ in range(3):
        place = np.hypot(y - rng.uniform(20, height - 20), x - rng.uniform(20, width - 20))
        picture[place < 18] = rng.uniform(0, 255, 3)
    return picture
