"""The numeric switches of a process, and the record of its environment."""

import os

import pytest

from precision_lab.device.environment import environment, numeric_switches, set_numeric_switches


@pytest.fixture
def clean(monkeypatch):
    for name in (*numeric_switches(), "MLX_CUDA_GRAPH_CACHE_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("settings", "value"), [({}, "0"), ({"tf32": False}, "0"), ({"tf32": True}, "1")])
def test_switches_override_the_environment_and_are_recorded(clean, settings, value):
    clean.setenv("MLX_ENABLE_TF32", "2")
    set_numeric_switches(**settings)
    assert environment()["switches"] == numeric_switches(**settings) == {"MLX_ENABLE_TF32": value}


def test_a_capacity_set_by_the_user_is_kept(clean):
    clean.setenv("MLX_CUDA_GRAPH_CACHE_SIZE", "77")
    set_numeric_switches()
    assert os.environ["MLX_CUDA_GRAPH_CACHE_SIZE"] == "77"
