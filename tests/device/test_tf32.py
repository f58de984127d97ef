"""The other setting of TF32: no process where it has no effect, and the changes by name where it has one."""

import json
import subprocess

import mlx.core as mx
import pytest

from precision_lab.device import tf32
from precision_lab.device.environment import backend

AMPERE = {"compute_capability_major": 8}


@pytest.mark.parametrize(
    ("backend", "info", "said"),
    [
        ("cpu", {}, "no effect on a CPU"),
        ("cuda", {"compute_capability_major": 7}, "compute capability 7"),
        ("cuda", AMPERE, None),
        ("cuda", {}, None),
        ("metal", {"architecture": "applegpu_g16s"}, "no neural accelerators"),
        ("metal", {"architecture": "applegpu_g13g"}, "no neural accelerators"),
        ("metal", {"architecture": "applegpu_g17s"}, None),
        ("metal", {"architecture": "a new name"}, None),
        ("metal", {}, None),
    ],
)
def test_devices_on_which_the_setting_has_no_effect(backend, info, said):
    reason = tf32.without_effect(backend, info)
    assert reason is None if said is None else said in reason


def finding(op, answer, **sizes):
    return {"op": op, "dtype": "float32", "property": "input_bits", "parameters": sizes, "answer": answer}


WIDE, NARROW = "float32", "float16 or TF32"


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(tf32, "backend", lambda: "cuda")
    monkeypatch.setattr(mx, "device_info", lambda: AMPERE)


@pytest.mark.parametrize("is_on", [True, False])
def test_what_the_other_setting_changes(monkeypatch, on_cuda, is_on):
    monkeypatch.setenv(tf32.SWITCH, str(int(is_on)))
    here, there = (NARROW, WIDE) if is_on else (WIDE, NARROW)
    own = [finding("matmul", here, rows=64), finding("matmul", WIDE, rows=1), finding("sum", WIDE)]
    other = [finding("matmul", there, rows=64), finding("matmul", WIDE, rows=1)]
    commands = []

    def run(command, env, **kwargs):
        commands.append(command)
        assert env[tf32.SWITCH] == str(int(not is_on))
        return subprocess.CompletedProcess(command, 0, json.dumps(other))

    monkeypatch.setattr(subprocess, "run", run)
    entry = tf32.compare(own)
    assert len(commands) == 1
    assert entry["on"] == is_on
    assert "1 of 2" in entry["text"]
    named = {"op": "matmul", "property": "input_bits", "parameters": {"rows": 64}}
    assert entry["changed"] == [named | {"on": NARROW, "off": WIDE}]


@pytest.mark.parametrize(
    "error", [OSError("no"), subprocess.TimeoutExpired("x", 1), subprocess.CalledProcessError(1, "x")]
)
def test_a_process_that_fails_is_said(monkeypatch, on_cuda, error):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    entry = tf32.compare([])
    assert type(error).__name__ in entry["text"]
    assert entry["changed"] == []


@pytest.mark.skipif(backend() != "cpu", reason="elsewhere a process is started")
def test_no_process_is_started_on_a_cpu(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", run)
    assert "no effect on a CPU" in tf32.compare([])["text"]


@pytest.mark.slow
@pytest.mark.skipif(backend() != "cpu", reason="TF32 makes no difference on a CPU")
def test_the_process_measures_the_same_on_a_cpu():
    own, other = tf32.measure(), tf32._measure_in_child(True)
    assert len(other) > 30
    assert tf32.differences(own, other, on=False) == []
