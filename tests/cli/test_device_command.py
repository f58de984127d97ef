"""`device`: its record is strict, its usage errors are one line, and on a CPU it finds what is known of MLX's CPU.

The whole measurement takes half a minute of processor time and is a slow test. A sample, the parts that take least, is
measured by default.
"""

import json

import pytest

from precision_lab.cli import device, main
from precision_lab.device.behaviour import suite
from precision_lab.device.behaviour.subjects import public_faults
from precision_lab.device.environment import backend
from precision_lab.report.figures import style
from tests.spread import thinned

cpu = pytest.mark.skipif(backend() != "cpu", reason="what MLX does on a CPU")


whole = pytest.mark.slow
SAMPLE = ("functions", "ends of the range", "quantised products", "random numbers")


def run(out):
    """The folder and the record of one run."""
    assert main(["device", f"out={out}"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    return out, json.loads((out / "device.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """One run of some families, and of the public faults of fewer than 40,000 rows; its figure is not written."""
    few = [
        fault for fault in public_faults.faults() if fault.name not in ("quantised_8bit_40000_rows", "gathered_rows")
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "FAMILIES", {name: suite.FAMILIES[name] for name in SAMPLE})
        patch.setattr(suite, "PARTS", len(SAMPLE) * 3)
        patch.setattr(public_faults, "faults", lambda: iter(few))
        patch.setattr(style, "save", lambda drawing, out: None)
        return run(tmp_path_factory.mktemp("device") / "sample")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    return run(tmp_path_factory.mktemp("device") / "here")


@pytest.fixture(scope="module", params=["sampled", pytest.param("everything", marks=whole)])
def measured(request):
    """Of the sample, and in a slow test of the whole."""
    return request.getfixturevalue(request.param)


def answers(record):
    """(op, dtype, property) to the set of answers, one a size."""
    found = {}
    for finding in record["findings"]:
        found.setdefault((finding["op"], finding["dtype"], finding["property"]), set()).add(finding["answer"])
    return found


def test_the_record(measured):
    out, record = measured
    assert record["schema_version"] == device.SCHEMA_VERSION
    assert record["environment"]["mlx"]
    assert "device.json" in [path.name for path in out.iterdir()]
    assert [claim["id"] for claim in record["claims"]] == ["S6"]
    assert record["tf32"].keys() == {"on", "text", "changed"}
    for finding in record["findings"]:
        assert finding["answer"]
        assert finding["evidence"]
        assert (finding["value"] is None) == ("value_reason" in finding)
    judged = {op["op"] for op in record["s6"]["ops"]}
    for op in ("fast.rope", "nn.gelu_approx"):
        assert op in judged


@whole
def test_every_kind_of_operation_is_judged_and_drawn(everything):
    figures = {f"{name}.{kind}" for name in ("device", "device_errors") for kind in ("png", "svg")}
    assert {path.name for path in everything[0].iterdir()} == {"device.json", *figures}
    judged = {op["op"] for op in everything[1]["s6"]["ops"]}
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


KNOWN = pytest.mark.parametrize(
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


@cpu
@whole
@KNOWN
def test_what_is_known_of_mlx_on_a_cpu(everything, op, dtype, about, expected):
    assert answers(everything[1])[op, dtype, about] == {expected}


@cpu
def test_what_a_sample_finds_on_a_cpu(sampled):
    found = answers(sampled[1])
    assert found["array * Python float", "bfloat16", "scalar"] == {"rounded to the format"}
    assert found["max", "float32", "nan"] == {"propagates"}
    assert found["to_fp8", "float32", "overflow"] == {"saturates"}
    verdicts = {op["op"]: op["verdict"] for op in sampled[1]["s6"]["ops"]}
    assert (verdicts["fast.rope"], verdicts["exp"]) == ("refuted", "supported")


@cpu
@whole
def test_verdicts_on_a_cpu(everything):
    verdicts = {op["op"]: op["verdict"] for op in everything[1]["s6"]["ops"]}
    for op in ("softmax", "fast.sdpa", "mean", "fast.rope", "quantized_matmul mxfp4"):
        assert verdicts[op] == "refuted"
    for op in ("matmul", "softmax, precise", "fast.layer_norm", "fast.rms_norm"):
        assert verdicts[op] == "supported"


@cpu
@whole
def test_the_behaviour_of_a_cpu_is_known(everything):
    assert everything[1]["reading"]["matches"] == ["Linux CPU"]
    assert len([finding for finding in everything[1]["findings"] if "bound" in finding]) > 80


@cpu
def test_one_public_fault_on_a_cpu_and_errors_are_within_their_bounds(measured):
    record = measured[1]
    assert {check["name"] for check in record["checks"] if check["verdict"] == "present"} == {"nvfp4_tensor_scale"}
    assert {check["verdict"] for check in record["checks"]} == {"absent", "present"}
    bounded = [finding for finding in record["findings"] if "bound" in finding]
    assert len(bounded) > 50
    for finding in bounded:
        bound = finding["bounds"][finding["meets"]] if "bounds" in finding else finding["bound"]
        assert finding["value"] <= bound, finding
    assert sum(record["parts"].values()) == pytest.approx(record["seconds"], abs=1)


@cpu
@whole
def test_errors_meet_the_bound_of_the_measured_accumulator(everything):
    """Quantised products accumulate in what `accumulator_bits` finds; everything else meets the bound of float32."""
    findings = everything[1]["findings"]
    accumulators = {(f["op"], f["dtype"]): f["answer"] for f in findings if f["property"] == "accumulator_bits"}
    met = [f for f in findings if f["property"] == "rounding_error" and f["parameters"].get("rows") != 1]
    assert len(met) > 60
    for finding in met:
        quantised = finding["op"].startswith("quantized_matmul")
        assert finding["meets"] == (accumulators[finding["op"], finding["dtype"]] if quantised else "float32"), finding


def test_a_record_is_not_overwritten(sampled, capsys):
    assert main(["device", f"out={sampled[0]}"]) == 2
    assert "already holds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    thinned(
        [
            (["tf32=maybe"], "expected true, false or null"),
            (["out=7"], "expected a folder"),
            (["nonsense=1"], "Unknown setting"),
        ],
        keep=2,
    ),
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
