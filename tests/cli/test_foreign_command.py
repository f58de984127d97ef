"""`models dump_inputs=` and `compare dump=`: what they print, their exit codes, and mistakes."""

import json
from html import unescape

import mlx.core as mx
import pytest

from precision_lab.cli import main
from precision_lab.lab.one_pass import Pass, read_inputs
from precision_lab.lab.subject import Case
from precision_lab.report.figures.style import Absent
from precision_lab.synthetic.source import QwenImage
from tests.lab import foreign_ports as ports
from tests.spread import thinned


@pytest.fixture
def said(capsys):
    def run(*argv):
        code = main(list(argv))
        found = capsys.readouterr()
        return code, found.out + found.err

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their figure, which takes longer than the rest; test_compared_dump.py draws it."""
    monkeypatch.setattr("precision_lab.report.figures.dump.draw", lambda found: Absent("Deviation", "not drawn"))


@pytest.mark.usefixtures("undrawn")
def test_from_inputs_to_a_verdict(small_checkpoint, tmp_path, said):
    inputs, dump = tmp_path / "inputs.safetensors", tmp_path / "d.safetensors"
    model = ["model=micro", f"model.path={small_checkpoint}", "model.name=small"]
    code, text = said("models", f"dump_inputs={inputs}", *model, "image.height=32", "image.width=48")
    assert code == 0
    assert "1 x 6 x 64" in text
    assert f"compare {' '.join(model)} dump=DUMP" in text
    one = read_inputs(QwenImage("small", str(small_checkpoint)), inputs)
    planted = {"transformer_blocks.2.img_modulate1": ports.swapped_modulation}
    ports.dump_of_lab(one, mx.float32, dump, planted)
    out = tmp_path / "out"
    code, text = said("compare", f"dump={dump}", f"inputs={inputs}", *model, f"out={out}")
    assert code == 1
    assert "wrong from transformer_blocks.2.img_modulate1 on" in text
    assert f"report: {out / 'compare.html'}" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["answers"][0] in text
    assert summary["first_wrong"]["operations"] == ["transformer_blocks.2.img_modulate1"]
    assert summary["answers"][0] in unescape((out / "compare.html").read_text())


@pytest.mark.slow
def test_a_right_port_exits_0(small_checkpoint, tmp_path, said):
    dump = tmp_path / "d.safetensors"
    settings = {"steps": 3, "height": 96, "width": 160, "guidance_scale": 4.0, "negative_prompt": " "}
    case = Case(0, "two red circles on a blue background, left", 0, settings)
    ports.dump_of_lab(Pass(QwenImage("small", str(small_checkpoint)), case), mx.bfloat16, dump)
    code, text = said("compare", f"dump={dump}", "case=wide", f"model.path={small_checkpoint}")
    assert (code, "right within bf16 rounding" in text) == (0, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    thinned(
        [
            (["compare", "dump="], "dump is empty"),
            (["compare", "dump=gone.safetensors"], "gone.safetensors: no such file"),
            (["compare", "dump=gone.safetensors", "out="], "out is ''"),
            (["compare", "dump=gone.safetensors", "dtype=float32"], "has no use for dtype with dump="),
            (["models", "dump_inputs=x", "case=wid"], "no pinned case 'wid'. Did you mean wide?"),
            (["models", "dump_inputs=x", "step=99"], "step is 99, expected 0 to 5"),
        ],
        keep=3,
    ),
)
def test_mistakes(argv, message, tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    code, text = said(*argv)
    assert code == 2
    assert message in text
    assert not list(tmp_path.iterdir())
