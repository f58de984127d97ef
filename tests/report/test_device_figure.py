"""The device's figure is drawn from any record: no attention, an operation that is not available, one dtype only."""

import pytest

from precision_lab.report.figures import device, style


def record(ops, findings=()):
    environment = {"device": "a chip", "backend": "cpu", "mlx": "0.0"}
    return {"environment": environment, "s6": {"ops": ops}, "findings": list(findings)}


OPS = [
    {"op": "matmul", "verdict": "supported", "bits": {"float32": 24.0, "float16": 24.0}},
    {"op": "absent", "verdict": "inconclusive", "bits": {}},
]
ATTENTION = [
    {
        "op": "fast.sdpa",
        "property": "interior_bits",
        "dtype": "bfloat16",
        "value": value,
        "parameters": {"queries": queries, "keys": 8, "head_dim": 64},
    }
    for queries, value in ((1, 20.0), (8, None))
]
GROWTH = [
    {"op": "sum", "property": "error_growth", "dtype": "float32", "value": value, "parameters": {"length": length}}
    for length, value in ((64, 0.0), (256, 1e-7), (1024, 2e-7))
]


@pytest.mark.parametrize("findings", [[], ATTENTION, ATTENTION + GROWTH], ids=["none", "attention", "all"])
def test_drawn_from_any_record(findings, tmp_path):
    with style.theme():
        drawing = device.draw(record(OPS, findings))
        png, svg = style.save(drawing, tmp_path)
    assert png.stat().st_size > 10_000
    assert svg.is_file()
    assert "a chip" in drawing.caption
    words = {text.get_text() for axes in drawing.figure.axes for text in axes.texts}
    assert {"supported", "inconclusive"} <= words
    if findings:
        assert {"20", "-"} <= words


def test_limits_are_those_of_the_verdict():
    from precision_lab.device.behaviour import verdict

    assert (device.FLOAT32_LEAST, device.NARROWER_MOST) == (verdict.FLOAT32_LEAST, verdict.NARROWER_MOST)
