"""The embedded few-step adapter: its file, and that the base draws the prompts with it in 4 steps without guidance."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors import safe_open

from experiments.micro_checkpoint.tally import held_out, rounded
from experiments.micro_lightning.evaluate import Case, draw
from precision_lab.cli.paths import checkpoints_dir
from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.model.adapters.adapter import read_adapter
from precision_lab.model.coded import LINEARS, linear_shape
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.pipeline import Pipeline
from precision_lab.model.qwen_image_21.checkpoint import Checkpoint as Checkpoint21
from precision_lab.shapes import correct
from precision_lab.techniques.base import applied
from precision_lab.techniques.lora import LoRA
from tests.composing import CONF
from tests.techniques.configured import named

FILE = checkpoints_dir() / "micro_lightning" / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Checkpoint(checkpoints_dir() / "micro").pipeline(mx.float32)


def test_the_file_is_small_and_in_bfloat16():
    assert FILE.stat().st_size <= 2 << 20
    assert sum(path.stat().st_size for path in checkpoints_dir().rglob("*") if path.is_file()) <= 40 << 20
    with safe_open(FILE, "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 - no iterator
    assert all(np.isfinite(np.array(tensor.astype(mx.float32))).all() for tensor in mx.load(str(FILE)).values())


def test_it_changes_every_linear_of_the_blocks_but_those_of_the_text_that_nothing_reads(pipeline):
    linears = {
        site.path: linear_shape(site.module)
        for site in walk({"transformer": pipeline.transformer})
        if isinstance(site.module, LINEARS) and site.path.startswith("transformer_blocks.")
    }
    changed = read_adapter("package://micro_lightning").deltas(linears)
    unread = {f"transformer_blocks.59.{name}" for name in ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")}
    assert set(linears) - set(changed) <= unread | {"transformer_blocks.59.attn.add_q_proj"}


def test_an_unknown_embedded_adapter_is_named():
    with pytest.raises(InputError, match=r"package://micro_lightening'?: no such file or folder"):
        read_adapter("package://micro_lightening")


def right(pipeline: Pipeline, count: int) -> float:
    """The share of correct pictures of held-out prompts, by the shipped technique and sampler."""
    assert (
        OmegaConf.load(CONF / "technique" / "micro_lightning.yaml").micro_lightning.path == "package://micro_lightning"
    )
    scenes, found = held_out(count), []
    with applied(pipeline.components, named("micro_lightning")) as coverage:
        assert coverage["micro_lightning"].matched >= 800
        for start in range(0, count, 20):
            part = scenes[start : start + 20]
            seeds = range(start, start + len(part))
            images, broken = rounded(
                draw(pipeline, [s.caption for s in part], seeds, Case("adapter", "float32").settings)
            )
            assert broken == 0
            found += [correct(scene, image) for scene, image in zip(part, images, strict=True)]
    return float(np.mean(found))


def test_it_draws_held_out_prompts_in_4_steps_without_guidance(pipeline):
    assert right(pipeline, 5) >= 0.8


@pytest.mark.slow
def test_it_draws_four_of_five_held_out_prompts(pipeline):
    assert right(pipeline, 200) >= 0.8


def test_the_adapter_is_not_for_another_architecture():
    other = Checkpoint21(checkpoints_dir() / "micro_21").pipeline(mx.bfloat16)
    with pytest.raises(InputError, match="is of no linear of this model"):
        LoRA("package://micro_lightning").check_model(walk(other.components))
