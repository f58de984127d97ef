"""What the other setting of TF32 changes. It takes a process of its own: MLX reads MLX_ENABLE_TF32 once a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from precision_lab.device.environment import backend, numeric_switches

SWITCH = "MLX_ENABLE_TF32"
FAMILIES = ("products", "many rows, broadcasts, masks")
"""The families whose float32 operations MLX may compute with TF32."""

_FIRST_METAL, _FIRST_CUDA = 17, 8
_SECONDS = 120


def is_on() -> bool:
    """Whether MLX has TF32 enabled in this process; it is enabled by default."""
    return os.environ.get(SWITCH, "1") != "0"


def without_effect(backend: str, info: Mapping[str, Any]) -> str | None:
    """Why the setting cannot have an effect on a device, or None if it may have one.

    info: of MLX's default device. The kernels that read the setting need compute capability 8 (CUDA) or neural
    accelerators (Metal: generation 17 of the GPU; MLX requires 18 of phones, which counts as having an effect here).
    """
    if backend == "cpu":
        return "no effect on a CPU: MLX reads the setting in kernels for CUDA and Metal only"
    if backend == "cuda":
        major = info.get("compute_capability_major")
        old = isinstance(major, int) and major < _FIRST_CUDA
        return f"no effect: the GPU has compute capability {major}, and TF32 needs {_FIRST_CUDA}" if old else None
    name = str(info.get("architecture", ""))  # applegpu_g16s: generation 16
    generation = name[-3:-1]
    if generation.isdecimal() and int(generation) < _FIRST_METAL:
        return f"no effect: {name} has no neural accelerators, which MLX uses from generation {_FIRST_METAL} on"
    return None


def compare(findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry `tf32` of device.json: on (in this process), text, and changed: {op, property, parameters, on, off}.

    findings: those of this process, as device.json has them. A child process measures the other setting, unless the
    setting cannot have an effect.
    """
    import mlx.core as mx

    kind = backend()
    reason = without_effect(kind, {} if kind == "cpu" else mx.device_info())
    if reason:
        return {"on": is_on(), "text": f"TF32: {reason}", "changed": []}
    try:
        other = _measure_in_child(not is_on())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {
            "on": is_on(),
            "text": f"TF32: the other setting was not measured ({type(error).__name__})",
            "changed": [],
        }
    changed = differences(findings, other, is_on())
    state, opposite = ("on", "off") if is_on() else ("off", "on")
    text = f"TF32 is {state}. With it {opposite}, {len(changed)} of {len(other)} float32 measurements differ"
    return {"on": is_on(), "text": text, "changed": changed}


def differences(
    findings: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], on: bool
) -> list[dict[str, Any]]:
    """The measurements whose answers differ between this process and one with the other setting."""
    own = {_key(finding): finding["answer"] for finding in findings}
    changed = []
    for finding in other:
        here = own.get(_key(finding))
        if here is not None and here != finding["answer"]:
            named = {name: finding[name] for name in ("op", "property", "parameters")}
            answers = (here, finding["answer"]) if on else (finding["answer"], here)
            changed.append(named | {"on": answers[0], "off": answers[1]})
    return changed


def _key(finding: Mapping[str, Any]) -> str:
    return json.dumps([finding[name] for name in ("op", "dtype", "property", "parameters")], sort_keys=True)


def _measure_in_child(tf32: bool) -> list[dict[str, Any]]:
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        env={**os.environ, **numeric_switches(tf32)},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(child.stdout)
    return found


def measure() -> list[dict[str, Any]]:
    """The float32 findings of this process that TF32 may change."""
    from precision_lab.device.behaviour.storage import FLOAT32
    from precision_lab.device.behaviour.suite import family

    return [finding.record() for name in FAMILIES for finding in family(name, FLOAT32)]


if __name__ == "__main__":
    from precision_lab.device import blas

    blas.preload()
    sys.stdout.write(json.dumps(measure(), allow_nan=False))
