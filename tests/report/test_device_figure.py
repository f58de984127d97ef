"""The device's figure is drawn from any record: no attention, an operation that is not available, one dtype only."""

import pytest

from precision_lab.report.figures import device, device_errors, style


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


def error(op, dtype, value, meets, **sizes):
    bounds = {"float32": 1.0, "float16 or TF32": 60.0}
    named = {"op": op, "property": "rounding_error", "dtype": dtype, "value": value, "parameters": sizes}
    return named | {"bound": 1.0, "bounds": bounds, "meets": meets}


ERRORS = [
    error("matmul, many rows", "float32", 0.5, "float32", rows=4096),
    error("matmul, many rows", "float32", 0.0, "float32", rows=40_000),
    error("fast.sdpa, masks", "float32", 0.5, "float32", head_dim=64, mask="none"),
    error("fast.sdpa, masks", "float32", 7.0, "float16 or TF32", head_dim=64, mask="causal"),
    error("quantized_matmul mxfp4", "float16", 99.0, None, rows=1),
]
CHECKS = [{"name": "a_fault", "verdict": "present"}, {"name": "other", "verdict": "not available"}]


def test_errors_beside_their_bounds_and_faults(tmp_path):
    with style.theme():
        drawing = device_errors.draw(record(OPS, ERRORS) | {"checks": CHECKS})
        style.save(drawing, tmp_path)
    errors, faults = drawing.figure.axes
    labels = [label.get_text() for label in errors.get_yticklabels()]
    assert labels == ["matmul, 4,096 rows", "matmul, 40,000 rows", "fast.sdpa, masks, heads of 64", "quantized mxfp4"]
    assert [text.get_text() for text in errors.texts] == ["float32", "float32", "storage dtype", "wrong"]
    assert [text.get_text() for text in faults.texts] == ["a fault", "present", "other", "not available"]
    assert "Left" in drawing.caption


def test_what_is_missing_is_not_drawn_or_described():
    assert device_errors.draw(record(OPS, ATTENTION)) is None
    with style.theme():
        alone = device_errors.draw(record(OPS, ERRORS))
        faults = device_errors.draw(record(OPS) | {"checks": CHECKS})
    assert len(alone.figure.axes) == len(faults.figure.axes) == 1
    assert not any(word in drawing.caption for word in ("Left", "Right") for drawing in (alone, faults))
    assert "bound" not in faults.caption


def test_limits_are_those_of_the_verdict():
    from precision_lab.device.behaviour import verdict

    assert (device.FLOAT32_LEAST, device.NARROWER_MOST) == (verdict.FLOAT32_LEAST, verdict.NARROWER_MOST)
