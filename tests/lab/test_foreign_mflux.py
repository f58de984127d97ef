"""The example of mflux in the guide's foreign.md: its names are those of the lab, and mflux itself is right."""

import json
import re
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import pytest

from precision_lab.instrument.sites import walk
from precision_lab.lab.foreign import compare
from precision_lab.lab.one_pass import Pass, read_inputs, write_inputs
from precision_lab.lab.subject import Case
from precision_lab.record.dump import Dump
from precision_lab.synthetic.source import QwenImage
from tests.lab.foreign_ports import GUIDE
from tests.lab.test_foreign import SETTINGS

# the linears of mflux 0.24.0 outside of blocks and in each block, as named_modules() has them
OUTSIDE = (
    *("img_in", "txt_in", "proj_out", "norm_out.linear"),
    *("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2"),
)
IN_A_BLOCK = (
    *("img_mod_linear", "txt_mod_linear", "img_ff.mlp_in", "img_ff.mlp_out", "txt_ff.mlp_in", "txt_ff.mlp_out"),
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")),
    *("attn.attn_to_out.0", "attn.to_add_out"),
)


@pytest.fixture(scope="module")
def one(small_checkpoint):
    return Pass(QwenImage("small", str(small_checkpoint)), Case(0, "two red circles", 3, SETTINGS))


def example(transformer, inputs, dump, dtype):
    """Runs the block of the guide."""
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "nn.Linear" in block
    ]
    settings = f"INPUTS, DUMP, DTYPE = {str(inputs)!r}, {str(dump)!r}, mx.{dtype}"
    code, count = re.subn(r"^INPUTS, DUMP, DTYPE = .*$", settings.replace("\\", "/"), code, flags=re.MULTILINE)
    assert count == 1
    call = nn.Linear.__call__
    try:
        exec(code, {"transformer": transformer})
    finally:
        nn.Linear.__call__ = call


class Named(nn.Module):
    """Linears under the names of mflux, each called once with ones."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            *parents, last = name.split(".")
            holder = self
            for parent, after in pairwise((*parents, last)):
                if parent not in holder:
                    holder[parent] = [] if after.isdigit() else nn.Module()
                holder = holder[parent]
            if isinstance(holder, list):
                holder.append(nn.Linear(2, 3))
            else:
                holder[last] = nn.Linear(2, 3)
        self.transformer_blocks = []

    def __call__(self, timestep, size, latents, text, mask):
        assert isinstance(timestep, float)
        assert latents.shape[1] == (size.height // 16) * (size.width // 16)
        assert text.shape[:2] == mask.shape
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module(mx.ones((1, 2), latents.dtype))


def test_the_names_of_the_example(one, tmp_path):
    transformer = Named(OUTSIDE)
    transformer.transformer_blocks = [Named(IN_A_BLOCK) for _ in range(4)]
    inputs, file = tmp_path / "inputs.safetensors", tmp_path / "d.safetensors"
    write_inputs(one, inputs)
    example(transformer, inputs, file, "bfloat16")
    dump = Dump.open(file)
    paths = {site.path for site in walk(one.components(mx.float32)) if site.component == "transformer"}
    named = {name.removesuffix(".in") for name in dump.names}
    assert named <= paths
    assert len(named) == len(OUTSIDE) + 4 * len(IN_A_BLOCK)
    assert {dump.format(name) for name in dump.names if name.endswith(".in")} == {"bfloat16"}


@pytest.mark.slow
def test_mflux_is_right_in_fp32_but_for_one_rounding(one, small_checkpoint, tmp_path):
    """Where mflux is installed. Its package needs CUDA on Linux, so it is no dependency of the tests.

    mflux 0.24.0 casts the SiLU before norm_out's linear to bfloat16, whatever the model computes in.
    """
    model = pytest.importorskip("mflux.models.qwen.model.qwen_transformer.qwen_transformer")
    config = json.loads((small_checkpoint / "transformer" / "config.json").read_text())
    names = ("in_channels", "out_channels", "num_layers", "attention_head_dim", "num_attention_heads", "patch_size")
    transformer = model.QwenTransformer(
        **{name: config[name] for name in names}, joint_attention_dim=config["joint_attention_dim"]
    )
    transformer.pos_embed = model.QwenEmbedRopeMLX(10000, config["axes_dims_rope"], scale_rope=True)
    weights = {}
    for shard in sorted((small_checkpoint / "transformer").glob("*.safetensors")):
        weights |= mx.load(str(shard))
    theirs = {
        "img_mod.1": "img_mod_linear",
        "txt_mod.1": "txt_mod_linear",
        "attn.to_out": "attn.attn_to_out",
        "_mlp.net.0.proj": "_ff.mlp_in",
        "_mlp.net.2": "_ff.mlp_out",
    }
    for ours, name in theirs.items():
        weights = {key.replace(ours, name): value for key, value in weights.items()}
    transformer.load_weights([(key, value.astype(mx.float32)) for key, value in weights.items()])
    inputs, file = tmp_path / "inputs.safetensors", tmp_path / "d.safetensors"
    write_inputs(one, inputs)
    example(transformer, inputs, file, "float32")
    found = compare(read_inputs(one.source, inputs), Dump.open(file))
    assert (found.format, found.unknown) == ("float32", {})
    wrong = [(row.operations, row.rounded) for row in found.rows if row.wrong]
    assert wrong == [(("norm_out.silu",), "bfloat16")]
    assert len(found.rows) > 100
