"""The examples of the guide work as they are printed."""

import re
from pathlib import Path

import mlx.core as mx
import pytest

from precision_lab.instrument.sites import walk
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.rope import Grid
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.probes.base import Probe
from precision_lab.techniques.base import Technique, applied

GUIDE = Path(__file__).parents[1] / "experiments" / "guide"
CONFIG = TransformerConfig(
    num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, axes_dims_rope=(4, 2, 2)
)


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (GUIDE / page).read_text(), flags=re.DOTALL)


def test_the_technique_and_the_probe():
    technique, probe = python_blocks("extending.md")
    names = {"mx": mx}
    exec(technique, names)
    exec(probe, names)
    clip, kurtosis = names["BlockEndClip"](), names["Kurtosis"]()
    assert isinstance(clip, Technique)
    assert isinstance(kurtosis, Probe)
    model = Transformer(CONFIG)
    with applied({"transformer": model}, {"clip": clip}) as coverage:
        out = model(mx.ones((1, 4, 64)) * 1e6, mx.array([0.5]), mx.ones((1, 3, 8)), Grid(2, 2))
        assert mx.isfinite(out).all()
    assert coverage["clip"].matched == 2
    assert kurtosis.measure(mx.random.normal((200, 200)))["kurtosis"].item() == pytest.approx(3, rel=0.05)


def test_the_names_of_the_page_on_addresses():
    paths = {site.path for site in walk({"transformer": Transformer(CONFIG)})}
    block = {path.removeprefix("transformer_blocks.0.") for path in paths}
    page = (GUIDE / "addresses.md").read_text()
    inside = re.findall(r"`([\w.]+)`", page.partition("Inside a block:")[2].partition("Around the")[0])
    for name in inside:
        if name not in ("txt_", "attn"):
            assert {name, f"attn.{name}", f"img_mlp.{name}"} & block, name
    around = page.partition("Around the\nblocks:")[2].partition("In `pipeline`")[0]
    assert set(re.findall(r"`(\w+)`", around)) <= paths
