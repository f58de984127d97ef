"""Judges S6, "MLX already uses FP32 in softmax and other ops", for each operation from the measurements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from precision_lab.device.behaviour.finding import Finding

# float32 arithmetic that adds thousands of terms in sequence keeps 17 of its 24 bits; the narrower formats and TF32
# have 8 and 11. A width between the two limits is inconclusive.
FLOAT32_LEAST = 17.0
NARROWER_MOST = 15.0


def judge(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The verdict on each operation: {op, verdict, bits, evidence}. `analysis.claims` judges the claim as a whole.

    An operation is as precise as the narrowest width measured in it: factors, accumulator or interior. Factors count
    for float32 only, because those of a 16-bit format are as wide as the format.
    """
    by_op: dict[str, list[Finding]] = {}
    for finding in findings:
        if _says_width(finding):
            by_op.setdefault(finding.op, []).append(finding)
    return [_judge_op(op, own) for op, own in by_op.items()]


def _says_width(finding: Finding) -> bool:
    if finding.property == "input_bits":
        return finding.dtype == "float32"
    return finding.property in ("accumulator_bits", "interior_bits")


def _judge_op(op: str, findings: list[Finding]) -> dict[str, Any]:
    bits: dict[str, float] = {}
    for finding in findings:
        if finding.outcome.value is not None:
            bits[finding.dtype] = min(bits.get(finding.dtype, 99.0), finding.outcome.value)
    measured = [finding for finding in findings if finding.outcome.value is not None]
    missing = [finding for finding in findings if finding.outcome.value is None]
    if not measured:
        return {"op": op, "verdict": "inconclusive", "bits": {}, "evidence": missing[0].outcome.evidence}
    worst = min(measured, key=lambda finding: finding.outcome.value or 0.0)
    least = worst.outcome.value
    assert least is not None
    if least <= NARROWER_MOST:
        verdict = "refuted"
    else:
        verdict = "supported" if least >= FLOAT32_LEAST and not missing else "inconclusive"
    sizes = "".join(f", {name} {value}" for name, value in worst.parameters.items())
    evidence = f"{worst.dtype}{sizes}: {least:.3g} bits ({worst.property}); {worst.outcome.evidence}"
    return {"op": op, "verdict": verdict, "bits": bits, "evidence": evidence}
