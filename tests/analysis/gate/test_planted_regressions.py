"""Planted regressions: every one is caught, and the guilty site is among the first three that the gate names.

By default two kinds of check that need the model: a deviation of values, and a dtype that nothing after it shows. What
objects to the rate of misrounded values, to sites gone and to NaN has tests on tables.
"""

import pytest

from tests.analysis.gate import plants

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("plant", "guilty", "metric"),
    [
        pytest.param(
            plants.weight_times(8),
            "transformer:transformer_blocks.2.img_mlp.net.0.proj",
            "rel_l2",
            id="one weight times 8",
        ),
        pytest.param(
            plants.norm_out_upcast_removed,
            "transformer:norm_out.norm",
            "dtype",
            id="FP32 norm_out upcast removed",
            marks=slow,
        ),
        pytest.param(
            plants.promoted("transformer_blocks.1.attn.to_out.0"),
            "transformer:transformer_blocks.1.attn.to_out",
            "dtype",
            id="a module promoted to fp32",
            marks=slow,
        ),
        # the attention rounds to the dtype of the queries: nothing after it shows
        pytest.param(
            plants.promoted("transformer_blocks.1.attn.add_v_proj"),
            "transformer:transformer_blocks.1.attn.add_v_proj",
            "dtype",
            id="a module promoted to fp32 whose values are rounded again",
        ),
        pytest.param(
            plants.rope_off_by_one_on_odd_grids,
            "transformer:pos_embed",
            "rel_l2",
            id="RoPE off by one on odd grids",
            marks=slow,
        ),
        pytest.param(
            plants.norm_out_without_bias,
            "transformer:norm_out.linear",
            "rel_l2",
            id="norm_out without bias",
            marks=slow,
        ),
        pytest.param(
            plants.rms_norm_for_layer_norm,
            "transformer:transformer_blocks.0.img_norm1",
            "rel_l2",
            id="RMSNorm in place of LayerNorm",
            marks=slow,
        ),
        pytest.param(
            plants.gate_times(),
            "transformer:transformer_blocks.1.img_add2",
            "rel_l2",
            id="a gate multiplied twice",
            marks=slow,
        ),
        pytest.param(
            plants.nan_in_one_token,
            "transformer:transformer_blocks.3.txt_mlp.net.2",
            "num_nonfinite",
            id="NaN in one token",
            marks=slow,
        ),
        # the schedule is no module: the first that it reaches are the step's width and, one step later, the timestep
        pytest.param(
            plants.terminal_stretch_removed,
            "pipeline:euler_step",
            "rel_l2",
            id="terminal sigma stretch removed",
            marks=slow,
        ),
        pytest.param(
            plants.timestep_in_bfloat16, "pipeline:timestep", "rel_l2", id="timestep rounded to bf16", marks=slow
        ),
        pytest.param(
            plants.timestep_in_bfloat16_inside,
            "transformer:time_text_embed.time_proj",
            "rel_l2",
            id="timestep rounded to bf16 inside the transformer",
            marks=slow,
        ),
        pytest.param(
            plants.site_gone,
            "transformer:transformer_blocks.2.img_modulate2",
            "site gone",
            id="a site gone",
            marks=slow,
        ),
        pytest.param(
            plants.gate_times(1.5),
            "transformer:transformer_blocks.1.img_add2",
            "rel_l2",
            id="one gate times 1.5",
            marks=slow,
        ),
        pytest.param(
            plants.gelu_in_16_bits,
            "transformer:transformer_blocks.*.img_mlp.net.0.gelu",
            "misrounded_pct",
            id="GELU in 16 bits",
            marks=slow,
        ),
        pytest.param(
            plants.gated_add_rounded_once,
            "transformer:transformer_blocks.*.img_add1",
            "misrounded_pct",
            id="GatedAdd rounded once",
            marks=slow,
        ),
        pytest.param(
            plants.another_eps_of_one_norm,
            "transformer:transformer_blocks.2.attn.norm_added_k",
            "rel_l2",
            id="another eps of one norm",
            marks=slow,
        ),
        pytest.param(
            plants.mask_dropped, "transformer:transformer_blocks.0.attn.attend", "rel_l2", id="mask dropped", marks=slow
        ),
    ],
)
def test_is_caught_where_it_was_made(gate, monkeypatch, plant, guilty, metric):
    plant(monkeypatch)
    verdict = gate()
    assert verdict.code == 1
    assert not verdict.record["passed"]
    assert guilty in verdict.first_three
    assert metric in verdict.metrics


def test_the_plain_code_passes_with_other_prompts_and_seeds(gate):
    verdict = gate(prompts="three large green triangles on a purple background", seeds="11")
    assert verdict.record["violations"] == []
    assert (verdict.code, verdict.record["passed"]) == (0, True)
    assert verdict.record["checks"]["sketches"] > 0
