"""Planted regressions of Qwen-Image-2.1: every one is caught and named among the first three.

By default one of what 1.x does not have: the mask of the prefix.
"""

import pytest

from tests.analysis.gate import plants_21 as plants

BLOCK = "transformer:transformer_blocks.0."
slow = pytest.mark.slow
TIME = "transformer:time_text_embed.time_proj"


@pytest.mark.parametrize(
    ("plant", "guilty"),
    [
        pytest.param(plants.text_reads_ahead, BLOCK + "attn.attend_prefix", id="text reads ahead"),
        pytest.param(plants.target_begins_late, BLOCK + "attn.attend", id="target begins late", marks=slow),
        pytest.param(plants.prefix_of_another_step, TIME, id="cache of another step", marks=slow),
        pytest.param(
            plants.target_modulated_as_text, BLOCK + "img_modulate1", id="t = 0 row given to targets", marks=slow
        ),
        pytest.param(plants.gate_without_tanh, BLOCK + "img_gate1", id="gate without tanh", marks=slow),
        pytest.param(
            plants.norm_weight_without_one, "transformer:txt_in.text_norm", id="norm weight without 1", marks=slow
        ),
        pytest.param(plants.rope_centre_off_by_one, "transformer:pos_embed", id="RoPE centre off by one", marks=slow),
        pytest.param(
            plants.text_with_final_norm, "transformer:txt_in.text_norm", id="final norm of the text", marks=slow
        ),
        pytest.param(plants.prefix_of_the_image, BLOCK + "attn.attend", id="values for keys", marks=slow),
    ],
)
def test_is_caught_where_it_was_made(gate_21, monkeypatch, plant, guilty):
    plant(monkeypatch)
    verdict = gate_21()
    assert verdict.code == 1
    assert guilty in verdict.first_three


@pytest.mark.slow
def test_the_plain_code_passes_with_other_prompts_and_seeds(gate_21):
    verdict = gate_21(prompts="three large green triangles on a purple background", seeds="11")
    assert verdict.record["violations"] == []
    assert (verdict.code, verdict.record["passed"]) == (0, True)
    assert verdict.record["checks"]["sketches"] > 0
