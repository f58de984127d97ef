"""The techniques of the guide are short, and work as printed."""

import re

import mlx.core as mx
from hydra import compose

from precision_lab.cli.config import build
from precision_lab.techniques.base import ByPlace, Technique, applied
from tests.composing import configurations
from tests.techniques.configured import CONF
from tests.techniques.small_model import forward, rel_l2, rewritten, small_model

GUIDE = CONF.parent / "experiments" / "guide"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (GUIDE / page).read_text(), flags=re.DOTALL)


def test_a_technique_takes_one_short_file_and_a_yaml_of_four_lines(tmp_path, monkeypatch):
    source, yaml = blocks("own_technique.md", "python")[0], blocks("own_technique.md", "yaml")[0]
    assert len(source.splitlines()) <= 40
    assert len(yaml.splitlines()) <= 4
    # an imported module stays in the process, where other tests have a package of the printed name
    (tmp_path / "package_of_the_guide.py").write_text(source)
    (tmp_path / "technique").mkdir()
    (tmp_path / "technique" / "clip.yaml").write_text(yaml.replace("clip.Block", "package_of_the_guide.Block"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with configurations():
        searched = [f"hydra.searchpath=[file://{tmp_path}]", "technique=[clip]", "++technique.clip.limit=2.0"]
        technique = build(compose("config", overrides=searched).technique.clip, Technique, "clip")
    assert isinstance(technique, Technique)
    assert technique.limit == 2.0
    model = small_model()
    with applied({"transformer": model}, {"clip": technique}) as coverage:
        clipped = forward(model, dtype=mx.float32)
    assert coverage["clip"].matched == 3
    assert rel_l2(clipped, forward(model)) > 1e-3


def test_a_technique_of_several_places_maps_patterns_to_rewrites():
    names = {"__name__": "example"}
    exec(blocks("techniques.md", "python")[0], names)
    technique = names["SmallValues"]()
    assert isinstance(technique, Technique)
    assert isinstance(technique, ByPlace)
    model = small_model()
    for block in model.transformer_blocks:
        for linear in (block.attn.to_out[0], block.attn.to_add_out):
            linear.bias = mx.zeros_like(linear.bias)
    assert rel_l2(rewritten(model, technique), forward(model)) < 1e-6
    assert rel_l2(rewritten(small_model(), technique), forward(small_model())) > 1e-2
