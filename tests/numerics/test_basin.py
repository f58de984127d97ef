"""The basin of a trajectory: a turn planted at a known step, damage that is no turn, and what allows no verdict."""

import math

import numpy as np
import pytest

from precision_lab.numerics.basin import likeness, low_resolution, parting_step, predicted_distances, threshold
from tests.trajectories import SIZE, distances, levels_of, scene, trajectory


@pytest.mark.parametrize("steps", [4, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_turn_is_found_at_the_step_at_which_it_was_planted(steps, shift):
    """Also late in the trajectory, when little of the way is left, and beside small errors of every step."""
    levels = levels_of(steps, shift)
    here, there = np.random.default_rng(1).standard_normal((2, SIZE))
    ref = trajectory(levels, [here] * steps)
    for turn in range(steps):
        goals = [here] * turn + [there] * (steps - turn)
        assert parting_step(distances(trajectory(levels, goals), ref), levels) == turn + 1
        assert parting_step(distances(trajectory(levels, goals, noise=0.02), ref), levels) == turn + 1


def test_the_distance_of_predictions_is_never_overstated():
    """Against the predictions themselves, for trajectories that part in a new direction at every step."""
    levels = levels_of(12)
    goals = np.random.default_rng(4).standard_normal((13, SIZE))
    ref, other = trajectory(levels, [goals[0]] * 12), trajectory(levels, list(goals[1:]))
    actual = [np.linalg.norm(goal - goals[0]) for goal in goals[1:]]
    found = predicted_distances(distances(other, ref), levels)
    assert (found <= np.array(actual) * (1 + 1e-9)).all()
    assert found[0] == pytest.approx(actual[0]), "one direction as yet"
    assert found[-1] == pytest.approx(distances(other, ref)[-1]), "the last step ends at the clean latents"


def low(picture):
    return low_resolution(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("seed", range(4))
def test_damage_and_shifts_stay_within_the_basin_and_another_scene_does_not(seed):
    seeds = [10 * seed + n for n in range(3)]
    least = threshold([low(scene(n)) for n in seeds])
    own, ref = scene(seeds[0]), low(scene(seeds[0]))
    grain = 7.4 * np.random.default_rng(0).standard_normal(own.shape)
    grid = 6.0 * (np.arange(160) % 16 == 0)[None, :, None]
    for damaged in (own, own + grain, own + grid, own * 0.8 + 20, np.roll(own, 2, axis=1), own + np.array([12, 0, -5])):
        assert likeness(low(damaged), ref) > least
    for other in (scene(seeds[0] + 5), scene(seeds[1]), own[:, ::-1]):
        assert likeness(low(other), ref) < least


def test_a_threshold_needs_seeds_that_differ():
    ref = low(scene(0))
    assert threshold([ref]) == threshold([]) == "one seed"
    assert threshold([ref, low(scene(0) + 3)]) == "seeds alike"
    constant = low(np.full((64, 64, 3), 7.0))
    assert threshold([ref, constant]) == "constant reference"
    assert math.isnan(likeness(constant, ref))
    opposite = low(255 - scene(0))
    assert threshold([ref, opposite]) == pytest.approx(0, abs=1e-3)
