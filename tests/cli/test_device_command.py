"""`device`: its record is strict, its usage errors are one line, and on a CPU it finds what is known of MLX's CPU."""

import json

import pytest

from precision_lab.cli import device, main
from precision_lab.device.environment import backend

cpu = pytest.mark.skipif(backend() != "cpu", reason="what MLX does on a CPU")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder and the record of one run."""
    out = tmp_path_factory.mktemp("device") / "here"
    assert main(["device", f"out={out}"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    return out, json.loads((out / "device.json").read_text(), parse_constant=refuse)


@pytest.fixture
def answers(measured):
    """(op, dtype, property) to the set of answers, one a size."""
    found = {}
    for finding in measured[1]["findings"]:
        found.setdefault((finding["op"], finding["dtype"], finding["property"]), set()).add(finding["answer"])
    return found


def test_the_record(measured):
    out, record = measured
    assert record["schema_version"] == device.SCHEMA_VERSION
    assert record["environment"]["mlx"]
    assert sorted(path.name for path in out.iterdir()) == ["device.json", "device.png", "device.svg"]
    assert [claim["id"] for claim in record["claims"]] == ["S6"]
    for finding in record["findings"]:
        assert finding["answer"]
        assert finding["evidence"]
        assert (finding["value"] is None) == ("value_reason" in finding)
    judged = {op["op"] for op in record["s6"]["ops"]}
    for op in ("matmul", "softmax", "fast.sdpa", "fast.layer_norm", "fast.rope", "nn.gelu_approx", "mean"):
        assert op in judged


def test_s6_follows_from_the_findings_alone(measured):
    """The verdict again, from the stored numbers: the narrowest of an operation, 16-bit factors aside, at most 15."""
    record = measured[1]
    narrowest = {}
    for finding in record["findings"]:
        about = finding["property"]
        says = about in ("accumulator_bits", "interior_bits") or (about == "input_bits", finding["dtype"]) == (
            True,
            "float32",
        )
        if says and finding["value"] is not None:
            narrowest[finding["op"]] = min(narrowest.get(finding["op"], 99), finding["value"])
    narrow = sum(bits <= 15 for bits in narrowest.values())
    (s6,) = record["claims"]
    assert s6["effect"] == narrow
    assert s6["verdict"] == "refuted" if narrow else s6["verdict"] in ("supported", "inconclusive")
    assert s6.keys() >= {"id", "text", "source", "verdict", "metric", "relation", "effect", "ci95", "noise_floor"}


@cpu
@pytest.mark.parametrize(
    ("op", "dtype", "about", "expected"),
    [
        ("matmul", "bfloat16", "accumulator_bits", "float32"),
        ("softmax", "bfloat16", "normaliser", "off"),
        ("softmax, precise", "bfloat16", "normaliser", "as close as rounding allows"),
        ("fast.sdpa", "bfloat16", "rounds", "q*scale, scores, probabilities"),
        ("attention, plain ops", "float16", "rounds", "q*scale, scores, probabilities"),
        ("sum of rows", "float32", "order", "sequential"),
        ("sum of all", "float32", "count", "stops at 16777216"),
        ("mean", "bfloat16", "divisor", "times rounded 1/n"),
        ("quantized_matmul affine 4-bit", "bfloat16", "accumulator_bits", "bfloat16"),
        ("fast.layer_norm, weighted", "bfloat16", "rounds", "normalised value, product with the weight"),
        ("fast.rms_norm, weighted", "bfloat16", "rounds", "normalised value"),
        ("array * Python float", "bfloat16", "scalar", "rounded to the format"),
        ("max", "float32", "nan", "propagates"),
        ("cast from float32", "float16", "overflow", "inf"),
        ("to_fp8", "float32", "overflow", "saturates"),
        ("to_fp8", "float32", "nan", "swallowed"),
    ],
)
def test_what_is_known_of_mlx_on_a_cpu(answers, op, dtype, about, expected):
    assert answers[op, dtype, about] == {expected}


@cpu
def test_verdicts_on_a_cpu(measured):
    verdicts = {op["op"]: op["verdict"] for op in measured[1]["s6"]["ops"]}
    for op in ("softmax", "fast.sdpa", "mean", "fast.rope", "quantized_matmul mxfp4"):
        assert verdicts[op] == "refuted"
    for op in ("matmul", "softmax, precise", "fast.layer_norm", "fast.rms_norm"):
        assert verdicts[op] == "supported"


@cpu
def test_no_public_fault_on_a_cpu_and_its_behaviour_is_known(measured):
    record = measured[1]
    assert {check["verdict"] for check in record["checks"]} == {"absent"}
    assert record["reading"]["matches"] == ["Linux CPU"]
    bounded = [finding for finding in record["findings"] if "bound" in finding]
    assert len(bounded) > 80
    wide = [finding for finding in bounded if finding["value"] <= finding["bound"]]
    narrow = {finding["op"] for finding in bounded if finding not in wide}
    assert all(op.startswith("quantized_matmul") for op in narrow), "they accumulate in the storage dtype"
    assert sum(record["parts"].values()) == pytest.approx(record["seconds"], abs=1)


def test_a_record_is_not_overwritten(measured, capsys):
    assert main(["device", f"out={measured[0]}"]) == 2
    assert "already holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tf32=maybe"], "expected true, false or null"),
        (["out=7"], "expected a folder"),
        (["nonsense=1"], "Unknown setting"),
    ],
)
def test_usage_errors(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["device", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_tf32_is_one_setting_a_process(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device, "_measured", [False])
    assert main(["device", "tf32=true"]) == 2
    assert "once a process" in capsys.readouterr().err


def test_help_lists_the_command(capsys):
    assert main(["--help"]) == 0
    assert "device" in capsys.readouterr().out
