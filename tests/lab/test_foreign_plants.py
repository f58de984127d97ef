"""More mistakes of ports, each of which is named, and right ports that compute in another way."""

import mlx.core as mx
import pytest

from precision_lab.lab.one_pass import Pass
from precision_lab.lab.subject import Case
from precision_lab.synthetic.source import QwenImage, QwenImage21
from tests.lab import foreign_plants as plants
from tests.lab import foreign_ports as ports
from tests.lab.test_foreign import SETTINGS, B, judged

pytestmark = pytest.mark.slow

BOTH = [mx.float32, mx.bfloat16]
WRONG = {
    f"{B}.2.attn.attend": (plants.with_scale(1.1), plants.heads_swapped, plants.causal),
    f"{B}.1.img_norm2": (plants.over_tokens, plants.unnormalised),
    f"{B}.2.attn.norm_k": (plants.over_heads,),
    f"{B}.2.txt_mlp.net.0.gelu": (plants.quick_gelu, plants.silu, ports.exact_gelu, plants.erf_gelu_of_mlx),
    "norm_out.silu": (ports.relu,),
    "time_text_embed.timestep_embedder.act": (ports.unchanged,),
    "time_text_embed.time_proj": (plants.milliseconds, plants.unscaled, plants.one_minus, ports.sines_first),
    f"{B}.1.attn.rotary_k": (plants.twisted, plants.shifted, plants.unrotated),
    f"{B}.2.img_add1": (plants.gate_after_tanh, plants.one_plus_gate),
    f"{B}.1.attn.to_v": (plants.transposed, plants.last_row_zero),
    f"{B}.1.attn.to_out.0": (plants.bias_twice,),
    "img_in": (plants.reversed_tokens,),
    "proj_out": (plants.negated,),
}
NORMS = {
    f"{B}.1.txt_norm1": (plants.without_mean, "the norm without its mean subtracted"),
    f"{B}.0.img_norm1": (ports.norm_with_eps(1e-2), "the norm with eps 0.01"),
    f"{B}.0.txt_norm1": (ports.norm_with_eps(1e-3), "the norm with eps 0.001"),
    f"{B}.1.attn.norm_k": (plants.rms_norm_with_eps(1e-3), "the norm with eps 0.001"),
    f"{B}.0.img_norm2": (plants.unbiased, "the norm with the unbiased variance"),
}
WRONG_21 = {
    f"{B}.1.attn.attend": plants.with_scale(1.1),
    f"{B}.1.img_gate2": plants.sigmoid,
    f"{B}.1.img_mlp.activation_fn": ports.exact_gelu,
    f"{B}.2.attn.rotary_q": plants.twisted,
    f"{B}.3.img_modulate1": ports.unchanged,
    f"{B}.0.img_mlp.multiply": plants.first,
    "txt_in.act": plants.erf_gelu_of_mlx,
    "time_text_embed.time_proj": plants.milliseconds,
}
IN_FEWER_BITS = {
    f"{B}.1.img_mod.1": (plants.in_bfloat16, "bfloat16"),
    f"{B}.2.img_add1": (plants.in_bfloat16, "bfloat16"),
    f"{B}.2.img_norm1": (plants.in_float16, "float16"),
    f"{B}.2.attn.attend": (plants.inputs_in_bfloat16, ""),
    "proj_out": (plants.in_bfloat16, "bfloat16"),
}
RIGHT = {
    f"{B}.*.attn.attend": (plants.in_plain_operations, plants.in_float32),
    f"{B}.*.{{img,txt}}_norm{{1,2}}": (plants.norm_in_plain_operations,),
    f"{B}.*.{{img,txt}}_mlp.net.0.gelu": (plants.gelu_of_mlx,),
    f"{B}.*.{{img,txt}}_mod.0": (plants.silu_of_mlx,),
    f"{B}.*.attn.rotary_{{q,k}}": (plants.rotated_in_real_numbers,),
    f"{B}.*.img_mlp.net.{{0.proj,2}}": (ports.other_order_of_sums, plants.in_parts, plants.in_float32),
}
RIGHT_21 = {
    f"{B}.*.attn.attend": plants.in_plain_operations,
    f"{B}.*.img_mlp.activation_fn": plants.silu_of_mlx,
    f"{B}.*.img_mlp.out": ports.other_order_of_sums,
    "txt_in.act": plants.gelu_of_mlx,
}


def named(changes):
    return [
        pytest.param(site, change, id=f"{site} {change.__name__}") for site, all in changes.items() for change in all
    ]


@pytest.fixture(scope="module")
def one(small_checkpoint):
    return Pass(QwenImage("small", str(small_checkpoint)), Case(0, "a green square", 5, SETTINGS))


@pytest.fixture(scope="module")
def one_21(small_checkpoint_21):
    settings = SETTINGS | {"height": 96, "width": 64, "prefix_cache": "none"}
    return Pass(QwenImage21("small", str(small_checkpoint_21)), Case(0, "a green square", 5, settings))


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(("site", "change"), named(WRONG))
def test_the_planted_operation_is_named(one, tmp_path, site, change, dtype):
    assert judged(one, ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: change}))[1] == (site,)


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("site", NORMS)
def test_a_norm_that_rounding_hides_is_named(one, tmp_path, site, dtype):
    change, name = NORMS[site]
    found, operations = judged(one, ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: change}))
    assert operations == (site,)
    assert found.rows[found.first_wrong].fits == name


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("site", WRONG_21)
def test_the_planted_operation_of_2_1_is_named(one_21, tmp_path, site, dtype):
    planted = {site: WRONG_21[site]}
    assert judged(one_21, ports.dump_of_lab(one_21, dtype, tmp_path / "d.safetensors", planted))[1] == (site,)


@pytest.mark.parametrize("site", IN_FEWER_BITS)
def test_an_operation_with_fewer_bits_than_the_rest_is_wrong(one, tmp_path, site):
    change, fmt = IN_FEWER_BITS[site]
    found, operations = judged(one, ports.dump_of_lab(one, mx.float32, tmp_path / "d.safetensors", {site: change}))
    assert operations == (site,)
    assert found.rows[found.first_wrong].rounded == fmt


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize(("site", "change"), named(RIGHT))
def test_a_right_port_that_computes_in_another_way(one, tmp_path, site, change, dtype):
    assert judged(one, ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: change}))[1] is None


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("site", RIGHT_21)
def test_a_right_port_of_2_1_that_computes_in_another_way(one_21, tmp_path, site, dtype):
    planted = {site: RIGHT_21[site]}
    assert judged(one_21, ports.dump_of_lab(one_21, dtype, tmp_path / "d.safetensors", planted))[1] is None


@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_outputs_alone_are_enough(one, tmp_path, dtype):
    """Only what modules of diffusers return, as hooks save it: the planted operation is among those that are named."""
    without_module = ("rotary", "attend", "modulate", "add", "gelu")

    def kept(name):
        return name.endswith(".out") and not any(word in name for word in without_module)

    right = ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", kept=kept)
    assert judged(one, right)[1] is None
    site = f"{B}.1.img_modulate2"
    wrong = ports.dump_of_lab(one, dtype, tmp_path / "d.safetensors", {site: ports.swapped_modulation}, kept)
    assert site in judged(one, wrong)[1]
