"""The GPU benchmark: its statistics on samples of known laws, its figures, and a run of the tiny shape on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from experiments.benchmarks.gpu import figures, guidance, mlx_model, report, roofline, store
from experiments.benchmarks.gpu.composition import (
    CATEGORIES,
    block_seconds,
    ceilings,
    compositions,
    own_operations,
    piece_results,
)
from experiments.benchmarks.gpu.mlx_model import SEEN_TIMESTEP, made_inputs, made_transformer, step_of, unseen_timesteps
from experiments.benchmarks.gpu.rounds import WARMUP_ROUNDS, Arm, measure
from experiments.benchmarks.gpu.shapes import FULL, FULL_21, SHAPES, TINY, TINY_21
from experiments.benchmarks.gpu.stored import coded_gigabytes
from experiments.benchmarks.gpu.summary import (
    best_peer,
    chosen,
    depth_samples,
    forward_results,
    guidance_results,
    line,
    paired_by_round,
    power_law,
    probe_results,
    setup_results,
    stored_results,
    unpaired,
)
from experiments.benchmarks.gpu.tables import markdown
from experiments.benchmarks.gpu.targets import judged
from precision_lab.instrument.sites import select, walk
from tests.experiments.fabricated_gpu_benchmark import (
    BLOCK_MS,
    COPY,
    EXPONENT,
    GUIDANCE,
    MILLISECONDS,
    PEAK,
    PROBES,
    STORED,
    record,
    record_21,
)
from tests.spread import slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made():
    return record()


def samples(values, process=0):
    return [{"process": process, "round": i, "seconds": float(v)} for i, v in enumerate(values)]


def test_medians_ratios_and_the_best_peer_are_those_of_the_made_times(made):
    results = forward_results(made)
    assert len(results) == 2 * len(MILLISECONDS)
    for result in results:
        expected = MILLISECONDS[result.arm][FULL.forward_sides.index(result.side)]
        assert result.median == pytest.approx(expected / 1e3, rel=0.01)
        assert len(result.by_process) == 2
        assert len(result.seconds) == 24
        assert result.paired != result.arm.startswith("diffusers")
        if result.fast_ratio is not None:
            fast = MILLISECONDS["ours fast"][FULL.forward_sides.index(result.side)]
            assert result.fast_ratio.estimate == pytest.approx(fast / expected, rel=0.03)
            assert result.fast_ratio.lo < result.fast_ratio.estimate < result.fast_ratio.hi
    assert [best_peer(results, side).arm for side in FULL.forward_sides] == ["mflux", "diffusers compiled"]


def test_pairing_takes_out_what_slows_a_whole_round():
    rng = np.random.default_rng(3)
    load = np.exp(rng.normal(size=30))
    a, b = samples(load * (1.1 + 0.01 * rng.normal(size=30))), samples(load)
    paired, apart = paired_by_round(a, b), unpaired(a, b)
    assert paired.estimate == pytest.approx(1.1, rel=0.02)
    assert paired.half_width < 0.02 < apart.half_width


def test_pairs_are_of_one_process_and_round():
    a = samples([2, 4]) + samples([6, 100], process=1)
    b = samples([1, 2]) + samples([3], process=1)
    assert paired_by_round(a, b).estimate == 2


def test_the_unpaired_interval_covers_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(40):
        a, b = (samples(scale * np.exp(0.1 * rng.normal(size=40))) for scale in (0.5, 1.0))
        ratio = unpaired(a, b, seed=trial)
        covered += ratio.lo <= 0.5 <= ratio.hi
    assert covered >= 33


def test_laws_are_recovered(made):
    tokens = [{**row, "process": 0} for row in made["parts"]["tokens.0"]["rows"]]
    law = power_law(chosen(tokens, arm="ours fast"), "tokens")
    assert law.slope.estimate == pytest.approx(EXPONENT, abs=0.02)
    assert law.slope.lo <= law.slope.estimate <= law.slope.hi
    assert np.allclose(law.local, EXPONENT, atol=0.1)
    depth = [{**row, "process": 0} for row in made["parts"]["depth.0"]["rows"]]
    law = line(chosen(depth, arm="ours plain"), "depth")
    assert law.slope.estimate == pytest.approx(1.7e-3, rel=0.02)
    assert law.constant == pytest.approx(2e-3, rel=0.5)


def test_without_a_part_of_its_own_depth_is_read_off_block_and_forward(made):
    assert depth_samples(made) == (list(store.rows(made, "depth", "time")), "depth")
    parts = {name: part for name, part in made["parts"].items() if name != "depth.0"}
    samples, said = depth_samples({"parts": parts})
    few, many = FULL.piece_depths
    assert said == "block and forward"
    assert {(row["side"], row["depth"]) for row in samples} == {(512, few), (512, many), (512, 60)}
    # by least squares of the made times: the block's, and those of the forward of 60
    times = [2 + BLOCK_MS["ours fast"][0] * depth for depth in (few, many)] + [MILLISECONDS["ours fast"][0]]
    slope = np.polyfit([few, many, 60], times, 1)[0] / 1e3
    assert line(chosen(samples, arm="ours fast"), "depth").slope.estimate == pytest.approx(slope, rel=0.05)
    assert depth_samples({"parts": {}}) == ([], "")


def test_a_law_needs_two_sizes():
    assert power_law([], "tokens") is None
    assert line([{"process": 0, "round": 0, "depth": 1, "seconds": 1.0}], "depth") is None


def test_probes_are_compared_with_the_model_never_touched(made):
    results = probe_results(made)
    assert {(r.arm, r.probes) for r in results} == {
        *(("ours plain", probes) for probes in PROBES),
        *(("ours fast", probes) for probes in ("off", "blocks")),
    }
    for result in results:
        assert result.ratio.estimate == pytest.approx(PROBES[result.probes], rel=0.02)


def test_batches_are_compared_with_one_branch_after_the_other(made):
    results = guidance_results(made)
    assert [(r.arm, r.way) for r in results] == [
        (arm, way) for arm in ("ours fast", "ours plain") for way in sorted(GUIDANCE)
    ]
    for result in results:
        assert result.ratio.estimate == pytest.approx(GUIDANCE[result.way], rel=0.02)


def test_weights_in_fewer_bits_are_compared_with_bfloat16_in_the_same_rounds(made):
    results = stored_results(made)
    assert {(r.format, r.route) for r in results} == {
        (name, route) for name in STORED for route in ("measured", "packed")
    }
    for result in results:
        expected = STORED[result.format] if result.route == "measured" else 4.0
        assert result.ratio.estimate == pytest.approx(expected, rel=0.02)
    assert {(r.coded_gb, r.packed_gb) for r in results if r.format == "affine4"} == {(11.5, 12.0), (None, None)}


def test_memory_of_stored_weights_is_judged_without_their_codes_and_what_bfloat16_needs(made):
    """A second copy of the weights, which is in both packed_gb and beyond_gb, counts."""
    found = {t.subject: t for t in judged(made) if "memory of affine" in t.subject}
    assert len(found) == 4
    assert all(target.measured == pytest.approx(0.5) and target.met for target in found.values())
    more = json.loads(json.dumps(made))
    for row in more["parts"]["stored.0"]["rows"]:
        if row["kind"] == "memory" and row["format"] == "affine8":
            row["packed_gb"] += 2
            row["beyond_gb"] += 2
    assert {t.subject for t in judged(more) if not t.met} == {s for s in found if "affine8" in s}


def test_coded_gigabytes_are_the_bits_of_codes_and_scales():
    """Affine: 16-bit scale and offset for 64 values; mx: 8-bit scale for 32; nvfp4: 8-bit scale for 16."""
    model = made_transformer(TINY, mx.bfloat16)
    weights = sum(s.module.weight.size for s in select(TINY.module("ours").LINEARS, walk({"transformer": model})))
    bits = {"affine4": 4.5, "affine8": 8.5, "mxfp8": 8.25, "mxfp4": 4.25, "nvfp4": 4.5}
    for name, each in bits.items():
        assert coded_gigabytes(model, TINY, name) * 1e9 == weights * each / 8


def test_pieces_and_rest_add_up_to_the_block_as_it_runs(made):
    assert ceilings(piece_results(made)).flops == pytest.approx(PEAK, rel=0.02)
    assert ceilings(piece_results(made)).nbytes == pytest.approx(COPY, rel=0.02)
    found = compositions(made)
    assert [(c.side, c.name) for c in found] == [
        (side, name) for side in FULL.forward_sides for name in ("ours plain", "ours fast", "ideal")
    ]
    for composition in found:
        total = sum(composition.categories.values())
        if composition.name == "ideal":
            fast = next(c for c in found if (c.side, c.name) == (composition.side, "ours fast"))
            assert all(seconds <= 1.03 * fast.categories[name] for name, seconds in composition.categories.items())
        elif composition.categories["rest"]:
            assert total == pytest.approx(composition.whole)
        else:
            assert total >= composition.whole
    measured = block_seconds(made, "ours fast", 1024)
    assert measured == pytest.approx(BLOCK_MS["ours fast"][1] / 1e3, rel=0.1)


def test_targets_are_judged_by_what_was_measured(made):
    found = {(target.subject.split(",")[0], round(target.limit, 3)): target for target in judged(made)}
    at_512 = found["ours fast / best peer (mflux)", 0.5]
    assert at_512.met == (at_512.measured <= 0.5)
    assert at_512.measured == pytest.approx(48 / 103, rel=0.02)
    assert found["ours fast / best peer (diffusers compiled)", 1.0].met
    assert found["peak memory of ours fast", 44].measured == 42.6
    assert {limit for subject, limit in found if subject.startswith("range")} == {1.03, 1.12}
    assert "**no**" not in markdown(made)
    slower = json.loads(json.dumps(made))
    for row in slower["parts"]["probes.0"]["rows"]:
        row["seconds"] *= 1.2 if row["probes"] == "blocks" else 1
    assert [target.limit for target in judged(slower) if not target.met] == [1.03, 1.03]
    assert "**no**" in markdown(slower)
    assert judged({"parts": {}}) == []


def test_fast_is_compared_with_its_own_products_and_attention():
    """Each operation of a block takes a known time, and each forward of 2.1 1.1 times the sum of 32 blocks'."""
    made = record_21(ratio=1.1)
    d, hidden = FULL_21.config.dim, FULL_21.config.hidden
    assert {key[0] for key in piece_results(made)} >= {f"product {d} to {3 * d}", f"product {d} to {2 * hidden}"}
    for side in FULL_21.forward_sides:
        tokens = FULL_21.tokens(side)
        products = 2 * tokens * (4 * d * d + 3 * d * hidden) / PEAK
        attention = 4 * d * tokens * (tokens + FULL_21.text_tokens) / PEAK
        assert own_operations(made, side) == pytest.approx(32 * (products + attention))
    measured = [target.measured for target in judged(made) if "its own products" in target.subject]
    assert measured == pytest.approx([1.1, 1.1])
    assert own_operations(made, 768) is None
    assert own_operations({"parts": {}}, 512) is None


def test_what_is_computed_once_for_a_text_is_no_forward():
    made = record_21(ratio=1.1)
    assert {result.arm for result in forward_results(made)} == {"ours fast"}
    (setup,) = setup_results(made)
    assert (setup.what, setup.text_tokens, setup.seconds) == ("prefill", 64, [0.004, 0.004])
    assert "| ours fast | prefill | 64 | 4.0 ± 0.0 |" in markdown(made)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_recipe_names_only_categories_and_pieces_that_exist(shape):
    recipes = shape.module("recipes")
    for recipe in (recipes.plain(shape, 16), recipes.fast(shape, 16)):
        assert {category for category, _, _ in recipe} < set(CATEGORIES)
    if shape.name.startswith("tiny"):
        tokens = shape.tokens(shape.forward_sides[0])
        pieces = [piece for group in shape.module("pieces").groups(shape) for piece in group()]
        known = {(piece.name, piece.way, piece.tokens) for piece in pieces}
        assert {key for _, key, _ in (*recipes.plain(shape, tokens), *recipes.fast(shape, tokens))} <= known
        for piece in pieces:
            result = piece.step(piece.start, 0)
            assert not piece.chained or result.shape == piece.start.shape, piece.name


def test_tables_and_figures_come_of_any_part_of_a_record(made, tmp_path):
    store.write(tmp_path / store.FILE, made)
    report.main(tmp_path)
    names = {"forward", "roofline", "block", "laws", "probes"}
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {store.FILE, "tables.md", *(f"{n}.{kind}" for n in names for kind in ("png", "svg"))}
    text = markdown(made)
    assert "Best peer: diffusers compiled" in text
    assert "a / b c" in text  # what would break a table's row
    short = record(rounds=3)["parts"]
    for name in short:
        markdown({"parts": {name: short[name]}})
    empty = {"parts": {}}
    assert markdown(empty)
    draws = (figures.forward, roofline.draw, figures.block, figures.laws, figures.probes)
    assert [draw(empty) for draw in draws] == [None] * len(draws)


def test_labels_keep_their_order_and_distance():
    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 30):
        positions = sorted(rng.normal(size=n))
        places = np.array(roofline.spread(positions, 0.2))
        assert len(places) == n
        assert (np.diff(places) > 0.2 - 1e-9).all()
    assert roofline.spread([0.0, 1.0], 0.2) == [0.0, 1.0]


def test_a_part_replaces_its_own_rows_only_and_is_on_disk_at_once(tmp_path):
    first = store.PartWriter(tmp_path, "tokens.0", {})
    first.add("time", seconds=1.0)
    first.complete()
    second = store.PartWriter(tmp_path, "tokens.1", {"device": "x"})
    second.add("time", seconds=2.0)
    second.save()
    assert [(r["process"], r["seconds"]) for r in store.rows(store.read(tmp_path), "tokens", "time")] == [
        (0, 1),
        (1, 2),
    ]
    assert [part["complete"] for part in store.read(tmp_path)["parts"].values()] == [True, False]
    store.PartWriter(tmp_path, "tokens.0", {})
    assert [r["seconds"] for r in store.rows(store.read(tmp_path), "tokens", "time")] == [2]
    json.loads((tmp_path / store.FILE).read_text())


def test_an_arm_that_fails_is_left_out_and_the_others_go_on(tmp_path, capsys):
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > WARMUP_ROUNDS + 1:
            raise RuntimeError("out of memory")
        return {"seconds": 1.0}

    writer = store.PartWriter(tmp_path, "tokens.0", {})
    measure(writer, [Arm({"arm": "good"}, lambda: {"seconds": 2.0}), Arm({"arm": "bad"}, failing)], 0, min_rounds=4)
    kept = store.read(tmp_path)
    assert [r["round"] for r in store.rows(kept, "tokens", "time") if r["arm"] == "good"] == [0, 1, 2, 3]
    assert len([r for r in store.rows(kept, "tokens", "time") if r["arm"] == "bad"]) == 1
    (error,) = store.rows(kept, "tokens", "error")
    assert error["error"] == "RuntimeError: out of memory"
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [slow(TINY), TINY_21], ids=["1.x", "2.1"])
def test_made_weights_fill_every_parameter_and_the_output_is_finite(shape):
    model = made_transformer(shape, mx.bfloat16)
    for name, array in tree_flatten(model.parameters()):
        assert array.dtype == mx.bfloat16
        if "norm" in name and name.endswith("weight") and "linear" not in name:
            assert (array == (0 if "text_norm" in name else 1)).all().item()
        elif array.size > 1000:
            assert mx.std(array.astype(mx.float32)).item() == pytest.approx(mlx_model.WEIGHT_SCALE, rel=0.1)
    with mlx_model.ours(model, mlx_model.no_techniques, step_of(shape))() as forward:
        output = forward(made_inputs(shape, 64, mx.bfloat16), SEEN_TIMESTEP)
    assert output.shape == (1, 16, 64)
    assert mx.isfinite(output).all().item()


def test_a_step_of_2_1_has_the_velocity_of_the_joint_pass_and_computes_a_prefix_once_for_a_text(monkeypatch):
    model = made_transformer(TINY_21, mx.float32)
    passes = TINY_21.module("ours").PASSES
    step, joint = passes[""](model), passes[", joint"](model)
    count = []
    prefill = type(model).prefill
    monkeypatch.setattr(type(model), "prefill", lambda *args: count.append(1) or prefill(*args))
    inputs = [made_inputs(TINY_21, side, mx.float32) for side in TINY_21.forward_sides]
    padded = guidance.batch(inputs[0], 3)
    for timestep in (0.9, 0.2):
        for one in (*inputs, padded):
            ours, theirs = step(one, timestep), joint(one, timestep)
            assert mx.linalg.norm(ours - theirs).item() < 1e-5 * mx.linalg.norm(theirs).item()
    assert len(count) == 3


@pytest.mark.parametrize("shape", [TINY, TINY_21], ids=["1.x", "2.1"])
def test_first_blocks_come_around_again_and_share_their_arrays(shape):
    model = made_transformer(shape, mx.bfloat16)
    deep = mlx_model.first_blocks(model, 5)
    assert len(deep.transformer_blocks) == 5
    assert len(model.transformer_blocks) == shape.config.num_layers
    assert deep.transformer_blocks[3].attn.to_q.weight is model.transformer_blocks[0].attn.to_q.weight
    assert deep.transformer_blocks[3].attn is not deep.transformer_blocks[0].attn


def test_unseen_timesteps_are_exact_in_bfloat16_and_never_come_twice():
    values = list(unseen_timesteps())
    assert len({*values, SEEN_TIMESTEP}) == len(values) + 1 > 1000
    assert mx.array(values).astype(mx.bfloat16).astype(mx.float32).tolist() == values


FORWARD = ["forward_mlx", "forward_torch", "same_function_mlx", "same_function_torch"]
PIECES = ["pieces", "block"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "sections", "parts"),
    [
        ("tiny", "forward", FORWARD),
        ("tiny", "pieces", PIECES),
        ("tiny", "tokens", ["tokens"]),
        ("tiny", "depth", ["depth"]),
        ("tiny", "probes", ["probes"]),
        ("tiny", "guidance", ["guidance"]),
        ("tiny", "stored", ["stored"]),
        ("tiny_21", "stored", ["stored"]),
        ("tiny_21", "forward", FORWARD),
        ("tiny_21", "pieces,tokens,depth,probes,guidance", [*PIECES, "tokens", "depth", "probes", "guidance"]),
    ],
)
def test_the_tiny_shapes_run_to_their_end(shape, sections, parts, tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--to", str(tmp_path), "--shape", shape]
    done = subprocess.run([*command, "--only", sections, "--seconds", "1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = store.read(tmp_path)["parts"]
    assert {name.split(".")[0] for name in measured} == set(parts)
    errors = [row for part in measured.values() for row in part["rows"] if row["kind"] == "error"]
    assert all(row["arm"] == "mflux" for row in errors), errors  # an own install, where there is one
    for row in store.rows({"parts": measured}, "same_function_torch", "same_function"):
        assert row["rel_l2"] < (1e-5 if row["dtype"] == "float32" else 2e-2)
    assert list(tmp_path.glob("*.png")) or sections in ("guidance", "stored")
