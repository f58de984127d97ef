"""`compare devices=`: planted differences are named, a file equals itself, and mistakes leave nothing."""

import copy
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from precision_lab.analysis.devices import DIFFERS, NEAR, OTHER, PARTLY, compare
from precision_lab.cli import main
from precision_lab.cli.devices import task
from precision_lab.errors import InputError
from precision_lab.record.device import FILE, DeviceRecord
from precision_lab.report import compared_devices

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
FAULT = {
    "name": "attention_82",
    "title": "attention over 82 tokens",
    "verdict": "absent",
    "answer": "right",
    "measured": "0 of 82 rows",
    "links": ["https://example.org"],
}


@pytest.fixture
def content():
    own = json.loads((REFERENCE / "cpu/device" / FILE).read_text())
    own |= {"checks": [FAULT, FAULT | {"name": "random_normal"}], "reading": {}, "parts": {}}
    kept = ("matmul", "sum of rows", "random.normal", "to_fp8")
    own["findings"] = [finding for finding in own["findings"] if finding["op"] in kept]
    own["s6"]["ops"] = own["s6"]["ops"][:3]
    return own


def save(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps(content))
    return folder


def of(tmp_path, one, other):
    paths = {"a": save(tmp_path / "a", one), "b": save(tmp_path / "b", other)}
    return compare({label: DeviceRecord.read(path) for label, path in paths.items()})


def finding(content, op, about, dtype="float32"):
    return next(f for f in content["findings"] if (f["op"], f["property"], f["dtype"]) == (op, about, dtype))


@pytest.mark.parametrize(
    ("op", "about", "change", "verdict", "group"),
    [
        ("matmul", "input_bits", {"answer": "float16 or TF32", "value": 11}, DIFFERS, "Exactness of products"),
        ("sum of rows", "order", {"answer": "blocked"}, DIFFERS, "Rounding"),
        ("random.normal", "key", {"answer": "ignores the key"}, DIFFERS, "Random numbers"),
        ("to_fp8", "nan", {"answer": "propagates"}, DIFFERS, "Range and non-finite values"),
    ],
)
def test_a_planted_behaviour_is_the_one_that_differs(content, tmp_path, op, about, change, verdict, group):
    other = copy.deepcopy(content)
    finding(other, op, about).update(change)
    found = of(tmp_path, content, other)
    (entry,) = [entry for entry in found.behaviours if entry.verdict != "same"]
    assert (entry.verdict, entry.group) == (verdict, group)
    assert entry.what.startswith(f"{op}, float32: ")
    assert entry.answers[1] == change["answer"]
    lines = compared_devices.answers(found)
    assert any(line.startswith(f"{group}: 1 of ") and f"{change['answer']} (b)" in line for line in lines)


@pytest.mark.parametrize(("value", "verdict"), [(23.2, NEAR), (21.9, OTHER), (10.0, OTHER)])
def test_numbers_differ_from_a_bit_on(content, tmp_path, value, verdict):
    one, other = copy.deepcopy(content), copy.deepcopy(content)
    for own, number in ((one, 23.0), (other, value)):
        finding(own, "matmul", "accumulator_bits").update(answer=f"{number} bits", value=number)
    assert [e.verdict for e in of(tmp_path, one, other).behaviours if e.verdict != "same"] == [verdict]


def test_a_fault_of_one_device_is_named_and_what_one_did_not_measure_is_counted(content, tmp_path):
    other = copy.deepcopy(content)
    other["checks"] = [FAULT | {"verdict": "present", "answer": "wrong", "measured": "82 of 82 rows"}]
    other["findings"] = other["findings"][1:]
    found = of(tmp_path, content, other)
    assert [(e.what, e.verdict) for e in found.faults] == [("attention_82", DIFFERS), ("random_normal", PARTLY)]
    lines = compared_devices.answers(found)
    assert "Public faults of MLX: attention_82: absent (a), present (b)" in lines
    assert "1 behaviours were not measured on every device" in lines
    assert not found.is_equal


def test_other_bits_with_the_same_verdict_are_said(content, tmp_path):
    other = copy.deepcopy(content)
    other["checks"][1] |= {"measured": "SHA-256 8a8c5a6737feea9e..."}
    found = of(tmp_path, content, other)
    assert any("the same verdict from other numbers: random_normal" in line for line in compared_devices.answers(found))


def test_readings_come_from_what_was_measured():
    records = {name: DeviceRecord.read(REFERENCE / name) for name in ("cpu/device", "cuda/device_tf32_on")}
    cpu, cuda = compare(records).readings
    assert cpu.startswith("as on a Linux x86 CPU")
    assert cuda.startswith("as on an H100 with TF32 on")


def test_the_page_the_summary_and_the_terminal(content, tmp_path, capsys):
    other = copy.deepcopy(content)
    other["environment"]["device"] = "<script>alert(1)</script>"
    finding(other, "matmul", "input_bits").update(answer="<img src=x>", value=11)
    folders = [save(tmp_path / "a", content), save(tmp_path / "b", other)]
    out = tmp_path / "out"
    assert main(["compare", f"devices=[{folders[0]},{folders[1] / FILE}]", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert f"report: {out / 'compare.html'}" in said
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (summary["schema_version"], summary["kind"], summary["equal"]) == (1, "devices", False)
    assert list(summary["devices"]) == ["a", "b"]
    assert all(line in said for line in summary["answers"])
    (entry,) = summary["behaviours"]
    assert entry["answers"] == {"a": "float32", "b": "<img src=x>"}
    page = (out / "compare.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_a_file_beside_itself(content, tmp_path, capsys):
    file = save(tmp_path / "a", content) / FILE
    assert main(["compare", f"devices=[{file},{file}]", f"out={tmp_path / 'out'}"]) == 0
    assert "nothing differs" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["equal"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (["{a}"], "two or more device.json files"),
        ([], "two or more device.json files"),
        (["{a}", ""], "two or more device.json files"),
        (["{a}", "gone"], "gone: no such file, expected a device.json"),
        (["{a}", "{foreign}"], "is no device.json"),
        (["{a}", "{later}"], "schema_version 3, expected 1 or 2"),
        (["{a}", "{text}"], "is not strict JSON"),
        (["{a}", "{wrong}"], "findings.0.value is 'x', expected a number"),
    ],
)
def test_mistakes(content, tmp_path, monkeypatch, devices, message):
    files = {"a": save(tmp_path / "a", content), "later": save(tmp_path / "later", content | {"schema_version": 3})}
    files["foreign"] = tmp_path / "package.json"
    files["foreign"].write_text('{"name": "x", "schema_version": 2}')
    files["text"] = tmp_path / "notes.json"
    files["text"].write_text("hello")
    content["findings"][0]["value"] = "x"
    files["wrong"] = save(tmp_path / "wrong", content)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    given = OmegaConf.create({"devices": [each.format(**files) for each in devices], "out": None})
    with pytest.raises(InputError, match=message) as error:
        task(given, [])
    assert len(str(error.value).splitlines()) <= 2
    assert not list(empty.iterdir())


def test_a_mistake_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "devices=[gone]"]) == 2
    assert "two or more device.json files or their folders; got ['gone']" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
