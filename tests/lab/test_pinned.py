"""Pinned cases: the contents of the table, its reproducibility, and the name of the operation that changed."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from hydra import compose

from precision_lab.cli.config import build_spec
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Wrapper, select, walk
from precision_lab.instrument.swap import swapped
from precision_lab.lab import pinned
from precision_lab.lab.bench import Bench
from precision_lab.lab.measures import LatencySpec, PinnedCase, PinnedSpec
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.numerics.sketch import SKETCH_COLUMNS, deviation
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record import tables
from tests.composing import configurations
from tests.spread import thinned
from tests.subjects import settings, source

CONF = Path(__file__).parents[2] / "conf"
KEY = ["variant", "case", "branch", "step", "component", "site", "port"]
FAINT = PinnedCase("a blue star", seed=4, settings={"height": 32, "width": 32}, faint=["transformer_blocks.*.*_norm1"])
CASES = {
    "square": PinnedCase("two red circles on a blue background", seed=0, settings={"height": 48, "width": 48}),
    "odd": PinnedCase("a green square", seed=3, settings={"height": 48, "width": 80}),
}


def composed(*overrides):
    with configurations():
        return build_spec(compose("config", overrides=list(overrides)), [])


SITES = composed().pinned.sites
REORDERED = composed().pinned.reordered


def small_spec(checkpoint, out, pinned, guidance_scale):
    """One case of one step, with one variant and no timing."""
    return RunSpec(
        experiment="test",
        source=source(checkpoint),
        settings=settings(steps=1, guidance_scale=guidance_scale, height=32, width=32),
        prompts=["a red circle"],
        seeds=[0],
        variants=[Variant("baseline", "bfloat16")],
        baseline="baseline",
        probes={},
        drift_sites=["proj_out"],
        latency=LatencySpec(0, 0),
        out=out,
        pinned=pinned,
        resolved="x: 1\n",
    )


@pytest.fixture
def spec(small_checkpoint, tmp_path):
    pinned = PinnedSpec(CASES, SITES, steps=2, reordered=REORDERED, record=True)
    return small_spec(small_checkpoint, tmp_path / "run", pinned, guidance_scale=3.0)


class Quiet:
    """Progress that only sums the amounts."""

    def __init__(self):
        self.total, self.done = 0.0, 0.0

    def start(self, total):
        self.total = total

    def advance(self, amount, label):
        self.done += amount

    def note(self, text):
        pass


def changed(spec, out, **changes):
    return dataclasses.replace(spec, out=out, pinned=dataclasses.replace(spec.pinned, **changes))


def described(case):
    return {"prompt": case.prompt, "seed": case.seed, **case.settings}


def measured(bench, out):
    """Runs only the pinned cases in the folder `out`; returns their table."""
    bench.spec = dataclasses.replace(bench.spec, out=out)
    for generation in pinned.generations(bench.spec):
        for file in pinned.make(bench, generation, lambda amount, label: None):
            file.write(out)
    tables.merge(out)
    return tables.read(out, "sketches")


def deviations(table, reference):
    """Both tables' rows by key, and the relative deviation of one from the other, in order of execution."""
    both = table.merge(reference, on=KEY, suffixes=("", "_before"), validate="1:1")
    assert len(both) == len(table) == len(reference)
    before = [f"{name}_before" for name in SKETCH_COLUMNS]
    relative = deviation(both[list(SKETCH_COLUMNS)], both[before], both["rms_before"], both["numel"])
    return both.assign(relative=relative).sort_values(["variant", "case", "order"])


def first_deviating(found):
    """The first row in order of execution that is not identical; NaN is never identical."""
    return found[~(found["relative"] <= 1e-4)].iloc[0]


def test_what_a_run_with_pinned_cases_leaves(spec):
    progress = Quiet()
    run(changed(spec, spec.out, noise_floor=True), progress)
    assert progress.done == pytest.approx(progress.total)
    assert progress.total == 2 + 2 * 2 * 2, "steps of the reference and the variant, and of two cases made twice"
    table = tables.read(spec.out, "sketches")
    assert list(table.columns)[:6] == ["variant", "case", "prompt", "seed", "height", "width"]
    assert list(table.columns)[-11:] == ["num_nonfinite", "rms", *SKETCH_COLUMNS, "order"]
    assert {str(table[name].dtype) for name in ("rms", *SKETCH_COLUMNS)} == {"float32"}
    assert not table.duplicated(KEY).any()
    assert table.equals(table.sort_values(["variant", "case", "order"], kind="stable", ignore_index=True))
    assert set(table["variant"]) == {"reference", "equivalent"}
    assert set(table[table["site"] != "embed_tokens"]["dtype"]) == {"float32"}, "the rest is stored in bfloat16"
    assert table["num_nonfinite"].eq(0).all()
    assert np.isfinite(table[["rms", *SKETCH_COLUMNS]]).all(axis=None)
    for (_, name), rows in table.groupby(["variant", "case"]):
        case = CASES[name]
        for column, value in described(case).items():
            assert set(rows[column]) == {value}
        by_component = rows.groupby("component")
        assert set(by_component.groups) == {"transformer", "text_encoder", "vae", "pipeline"}
        velocity = rows[rows["site"] == "proj_out"]
        assert velocity[["branch", "step"]].to_numpy().tolist() == [
            ["cond", 0],
            ["uncond", 0],
            ["cond", 1],
            ["uncond", 1],
        ]
        assert set(velocity["shape"]) == {f"1x{case.settings['height'] * case.settings['width'] // 16**2}x64"}
        assert velocity["sigma"].nunique() == 2
        assert rows[rows["component"] == "text_encoder"]["step"].isna().all()
        assert rows[rows["component"] == "vae"][["branch", "step"]].isna().all(axis=None)
        blocks = rows[rows["block"].notna() & (rows["component"] == "transformer")]
        assert blocks.groupby("block").size().tolist() == [37 * 4] * 4
        assert (
            rows[rows["site"] == "to_pixels"]["shape"].item()
            == f"1x{case.settings['height']}x{case.settings['width']}x3"
        )
    manifest = json.loads((spec.out / "manifest.json").read_text())["pinned"]
    assert manifest["cases"]["odd"] == described(CASES["odd"])
    assert (manifest["case"]["steps"], manifest["noise_floor"], manifest["sites"]) == (2, True, list(SITES))

    equivalent = table.query("variant == 'equivalent'").assign(variant="reference")
    noise = deviations(equivalent, table.query("variant == 'reference'"))
    assert noise["relative"].max() < 1e-4
    first = noise[noise["relative"] > 0].groupby("case")["site"].first()
    assert set(first) == {"transformer_blocks.0.attn.to_q"}, "the first whose sums are reordered"


def test_the_rows_are_those_of_the_generation_itself(spec):
    """A range probe observes the same arrays when the square case is generated as the reference of a run."""
    square = CASES["square"]
    spec = dataclasses.replace(
        spec,
        prompts=[square.prompt],
        settings={**spec.settings, "steps": 2, **square.settings},
        probes={"range": RangeCatalogue(sites=SITES, formats=())},
    )
    run(spec, Quiet())
    table = tables.read(spec.out, "sketches").query("case == 'square'")
    seen = tables.read(spec.out, "activations").query("variant == 'reference'")
    both = table.merge(seen, on=KEY[2:], suffixes=("", "_seen"), validate="1:1")
    assert len(both) == len(table) == len(seen)
    assert both["sigma"].dropna().equals(both["sigma_seen"].dropna())
    assert both["order"].tolist() == both["order_seen"].tolist()
    np.testing.assert_allclose(both["rms"], both["rms_seen"], rtol=1e-6)


def test_twice_is_the_same_bit_for_bit(spec, tmp_path):
    first, second = (measured(Bench(spec), tmp_path / name) for name in "ab")
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_without_cases_there_is_nothing(spec):
    progress = Quiet()
    run(changed(spec, spec.out, cases={}), progress)
    assert progress.done == progress.total == 2
    assert not (spec.out / "sketches.parquet").exists()
    assert json.loads((spec.out / "manifest.json").read_text())["pinned"] is None


def test_the_fingerprint_is_of_what_decides_the_sketches(spec):
    def fingerprint(spec):
        return pinned.described(spec).fingerprint

    def with_settings(**changes):
        return dataclasses.replace(spec, settings={**spec.settings, **changes})

    same = [changed(spec, Path("elsewhere"), noise_floor=True), with_settings(steps=7, height=64)]
    odd = dataclasses.replace(CASES["odd"], seed=4)
    others = [
        changed(spec, spec.out, steps=3),
        changed(spec, spec.out, sites=SITES[1:]),
        changed(spec, spec.out, cases={**CASES, "odd": odd}),
        with_settings(guidance_scale=2.0),
        with_settings(guidance_scale=1.0),
        with_settings(negative_prompt="blurred"),
    ]
    assert {fingerprint(each) for each in same} == {fingerprint(spec)}
    assert len({fingerprint(each) for each in (spec, *others)}) == 1 + len(others)


class TestNaming:
    """The first deviating array is that of the changed operation."""

    PARAMETERS = (
        "transformer_blocks.2.attn.to_k.weight",
        "transformer_blocks.0.txt_mod.1.bias",
        "transformer_blocks.3.img_mlp.net.0.proj.weight",
        "transformer_blocks.1.attn.norm_added_q.weight",
        "norm_out.linear.bias",
        "txt_norm.weight",
        "time_text_embed.timestep_embedder.linear_2.weight",
        "text_encoder:layers.1.mlp.up_proj.weight",
        "vae:decoder.up_blocks.1.resnets.0.conv2.weight",
    )

    @pytest.fixture(scope="class")
    @staticmethod
    def before(small_checkpoint, tmp_path_factory):
        spec = RunSpec(
            experiment="test",
            source=source(small_checkpoint),
            settings=settings(guidance_scale=3.0),
            prompts=["x"],
            seeds=[0],
            variants=[Variant("baseline", "bfloat16")],
            baseline="baseline",
            probes={},
            drift_sites=[],
            latency=LatencySpec(0, 0),
            out=tmp_path_factory.mktemp("before"),
            pinned=PinnedSpec({"odd": CASES["odd"]}, SITES, record=True),
        )
        bench = Bench(spec)
        return bench, measured(bench, spec.out)

    @pytest.mark.parametrize("address", thinned(PARAMETERS, keep=4))
    def test_a_parameter_changed_by_a_hundredth(self, before, tmp_path, address):
        bench, reference = before
        path, _, name = address.rpartition(".")
        (site,) = select(path, walk(bench.components("float32")))
        original = site.module[name]
        site.module[name] = 1.01 * original
        try:
            found = deviations(measured(bench, tmp_path / "after"), reference)
        finally:
            site.module[name] = original
        guilty = first_deviating(found)
        assert (guilty["component"], guilty["site"]) == (site.component, site.path)
        assert (found[: found.index.get_loc(guilty.name)]["relative"] == 0).all()

    @pytest.mark.parametrize(
        ("path", "altered"),
        [
            ("pos_embed", lambda call, *args: Streams(*(mx.roll(x, 1, axis=0) for x in call(*args)))),
            ("transformer_blocks.1.img_add1", lambda call, x, gate, update: call(x, gate * gate, update)),
            ("pipeline:timestep", lambda call, sigma, dtype: call(sigma.astype(mx.bfloat16), dtype)),
            ("norm_out.norm", lambda call, x: x / mx.sqrt(mx.mean(x * x, axis=-1, keepdims=True))),
        ],
        ids=["rope off by one", "gate twice", "timestep in bfloat16", "rms for layer norm"],
    )
    def test_an_operation_changed(self, before, tmp_path, path, altered):
        class Altered(Wrapper):
            def __call__(self, *args):
                return altered(self.inner, *args)

        bench, reference = before
        components = bench.components("float32")
        (site,) = select(path, walk(components))
        with swapped(components, {site: Altered(site.module)}):
            found = deviations(measured(bench, tmp_path / "after"), reference)
        assert first_deviating(found)["site"] == site.path

    def test_a_nan_in_one_token(self, before, tmp_path):
        class Poisoned(Wrapper):
            def __call__(self, x):
                y = self.inner(x)
                return mx.where(mx.arange(y.shape[1])[:, None] == 2, mx.array(float("nan")), y)

        bench, reference = before
        components = bench.components("float32")
        (site,) = select("transformer_blocks.2.txt_mlp.net.2", walk(components))
        with swapped(components, {site: Poisoned(site.module)}):
            found = deviations(measured(bench, tmp_path / "after"), reference)
        guilty = first_deviating(found)
        assert (guilty["site"], guilty["num_nonfinite"]) == (site.path, 64)
        assert np.isnan(guilty[["rms", *SKETCH_COLUMNS]].astype(float)).all()


@pytest.fixture(scope="module")
def faint_bench(small_checkpoint, tmp_path_factory):
    padded = PinnedCase("a green square", seed=3, settings={"height": 32, "width": 32, "padding": 5})
    pinned = PinnedSpec({"faint": FAINT, "padded": padded}, SITES, steps=1, record=True)
    return Bench(small_spec(small_checkpoint, tmp_path_factory.mktemp("run"), pinned, guidance_scale=1.0))


@pytest.fixture(scope="module")
def faint_reference(faint_bench, tmp_path_factory):
    return measured(faint_bench, tmp_path_factory.mktemp("pinned"))


class TestSmallInputsAndPadding:
    """A case with small inputs of norms shows another eps, a padded one a dropped mask."""

    def test_another_eps_is_found_where_it_is(self, faint_bench, faint_reference, tmp_path):
        norm = faint_bench.components("float32")["transformer"].transformer_blocks[2].txt_norm1
        norm.eps = 1e-5
        try:
            found = deviations(measured(faint_bench, tmp_path / "after"), faint_reference)
        finally:
            norm.eps = 1e-6
        guilty = found[found["relative"] > 1e-2].iloc[0]
        assert (guilty["case"], guilty["site"]) == ("faint", "transformer_blocks.2.txt_norm1")
        first = found[(found["case"] == "padded") & (found["relative"] > 1e-2)]
        assert first.empty, "inputs of the usual size do not show it"

    @pytest.mark.parametrize("component", ["transformer", "text_encoder"])
    def test_a_dropped_mask_is_found(self, faint_bench, faint_reference, tmp_path, monkeypatch, component):
        if component == "transformer":
            monkeypatch.setattr("precision_lab.model.qwen_image.transformer._joint_mask", lambda *_: None)
            expected = "transformer_blocks.0.attn.attend"
        else:
            monkeypatch.setattr("precision_lab.model.language_body._causal_mask", lambda _: "causal")
            expected = "layers.0.self_attn.attend"
        found = deviations(measured(faint_bench, tmp_path / "after"), faint_reference)
        guilty = found[found["relative"] > 1e-4].iloc[0]
        assert (guilty["case"], guilty["component"], guilty["site"]) == ("padded", component, expected)

    def test_padding_does_not_change_the_picture(self, faint_bench):
        subject = faint_bench.subject("float32")
        pictures = []
        for padding in (0, 3, 40):
            case = Case(0, "a green square", 3, {"steps": 2, "height": 32, "width": 48, "padding": padding})
            state = subject.start(case)
            assert state.cond.embeds.shape[1] == subject.start(replaced(case, padding=0)).cond.embeds.shape[1] + padding
            assert (state.cond.mask is None) == (padding == 0)
            for number in range(2):
                state = subject.step(state, number).state
            pictures.append(np.array(subject.picture(state)))
        for picture in pictures[1:]:
            np.testing.assert_allclose(picture, pictures[0], atol=1e-2)

    @pytest.mark.parametrize(
        ("case", "message"),
        [
            (PinnedCase("a", settings={"padding": -1}), "padding is -1, expected 0 to 1024 tokens"),
            (PinnedCase("a", settings={"padding": 5000}), "padding is 5000"),
            (PinnedCase("a", faint=["nowhere.*"]), r"pinned\.cases\.odd: .*matches nothing"),
        ],
    )
    def test_what_fits_no_model(self, faint_bench, tmp_path, case, message):
        spec = dataclasses.replace(faint_bench.spec, out=tmp_path / "run", pinned=PinnedSpec({"odd": case}, SITES))
        with pytest.raises(InputError, match=message):
            run(spec, Quiet())
        assert not spec.out.exists()

    def test_small_inputs_are_part_of_the_identity(self, faint_bench):
        plain = dataclasses.replace(FAINT, faint=())
        with_faint, without = (
            pinned.described(
                dataclasses.replace(faint_bench.spec, pinned=PinnedSpec({"faint": case}, SITES, record=True))
            )
            for case in (FAINT, plain)
        )
        assert with_faint.cases["faint"]["faint"] == ["transformer_blocks.*.*_norm1"]
        assert with_faint.fingerprint != without.fingerprint


def replaced(case, **settings):
    return dataclasses.replace(case, settings={**case.settings, **settings})


def test_an_interrupted_run_makes_only_what_is_missing(spec, tmp_path):
    whole = changed(spec, tmp_path / "whole", noise_floor=True)
    run(whole, Quiet())
    interrupted = dataclasses.replace(whole, out=tmp_path / "interrupted")

    class Interrupting(Quiet):
        def advance(self, amount, label):
            super().advance(amount, label)
            if self.done > 2 + 3:  # in the second case
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, Interrupting())
    (part,) = (interrupted.out / "sketches").iterdir()
    assert part == tables.part_path(interrupted.out, "sketches", "reference__square")
    assert set(tables.read(interrupted.out, "sketches")["case"]) == {"square"}, "readable before the merge"
    part.write_bytes(tables_with_mark(part))
    run(dataclasses.replace(interrupted, resume=True), Quiet())
    resumed, made = tables.read(interrupted.out, "sketches"), tables.read(whole.out, "sketches")
    kept = (resumed["variant"] == "reference") & (resumed["case"] == "square")
    assert set(resumed[kept]["prompt"]) == {"kept"}
    pd.testing.assert_frame_equal(resumed.drop(columns="prompt"), made.drop(columns="prompt"), check_exact=True)
    assert not (interrupted.out / "sketches").exists()


def tables_with_mark(part):
    """The bytes of a part that can be distinguished from a regenerated one."""
    return pd.read_parquet(part).assign(prompt="kept").to_parquet(index=False)


class TestRefusals:
    """Nothing is written before the run can start."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"cases": {"odd": PinnedCase("a", settings={"height": 100})}},
                r"pinned\.cases\.odd.*multiple of 16. Nearest: 96 or 112",
            ),
            ({"cases": {"odd": PinnedCase("word " * 1100)}}, "expected at most 1024"),
            ({"cases": {"odd": PinnedCase(" ")}}, r"pinned\.cases\.odd: .*holds ' ', expected text"),
            ({"cases": {"odd": PinnedCase("a", settings={"size": 3})}}, r"pinned\.cases\.odd: Unknown setting 'size'"),
            (
                {"cases": {"odd": PinnedCase("a", settings={"height": "tall"})}},
                "height is 'tall', expected a whole number",
            ),
            ({"sites": ["transformer_blokcs.*"]}, "matches nothing"),
        ],
    )
    def test_what_fits_no_model(self, spec, changes, message):
        spec = changed(spec, spec.out, **changes)
        with pytest.raises(InputError, match=message):
            run(spec, Quiet())
        assert not spec.out.exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cases": {"a b": PinnedCase("a")}}, "'a b': expected letters"),
            ({"cases": {"odd": PinnedCase("a", seed=-1)}}, r"pinned\.cases\.odd\.seed holds -1, expected integers"),
            ({"steps": 0}, r"pinned\.steps is 0"),
            ({"noise_floor": True}, r"pinned\.reordered is empty"),
            ({"noise_floor": True, "reordered": REORDERED}, r"expected pinned\.record=true as well"),
            ({"record": "yes"}, r"pinned\.record is 'yes', expected true or false"),
            ({"noise_floor": "yes"}, r"pinned\.noise_floor is 'yes', expected true or false"),
            ({"sites": []}, r"pinned\.sites is empty"),
        ],
    )
    def test_what_is_no_specification(self, changes, message):
        with pytest.raises(InputError, match=message):
            PinnedSpec(**{"cases": CASES, "sites": SITES, **changes})

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["pinned=3"], "pinned is 3, expected settings below it"),
            (["pinned.cases=3"], "pinned.cases is 3, expected cases by name, or null"),
            (["pinned.cases.tall=3"], "pinned.cases.tall is 3, expected prompt, seed and settings, or null"),
            (["pinned.sites=proj_out"], "sites is 'proj_out', expected a list"),
        ],
    )
    def test_configurations(self, overrides, message):
        with pytest.raises(InputError, match=message):
            composed(*overrides)


class TestDefaults:
    """The pinned sites of the shipped configuration."""

    def test_cases_can_be_changed_added_and_taken_away(self):
        assert composed("pinned.cases=null").pinned.cases == {}
        assert set(composed("pinned.cases.tall=null").pinned.cases) == {"wide", "faint"}
        more = composed("+pinned.cases.more={prompt: a, height: 64}", "pinned.cases.tall.seed=5").pinned.cases
        assert more["more"] == PinnedCase("a", settings={"height": 64})
        assert more["tall"].seed == 5

    def test_two_cases_one_of_them_on_an_odd_grid(self, small_checkpoint):
        spec = composed()
        pipeline = Checkpoint(small_checkpoint).pipeline(mx.float32)
        grids = [pipeline.grid(case.settings["height"], case.settings["width"]) for case in spec.pinned.cases.values()]
        assert len(grids) >= 2
        assert any(grid.height % 2 and grid.width % 2 for grid in grids)
        assert any(grid.height > grid.width for grid in grids), "either half would do for rows"
        assert any(grid.height < grid.width for grid in grids)
        assert any(case.settings.get("padding") for case in spec.pinned.cases.values()), "a mask"
        assert any(case.faint for case in spec.pinned.cases.values()), "eps"
        assert spec.pinned.steps == 3
        assert not spec.pinned.noise_floor

    def test_every_operation_is_pinned(self, small_checkpoint):
        """All modules without children are pinned, except those without computation or equal for every block."""
        sites = walk(Checkpoint(small_checkpoint).pipeline(mx.float32).components)
        chosen = set(select(SITES, sites))
        left_out = defaultdict(set)
        for site in sites:
            is_leaf = sum(1 for _ in site.module.modules()) == 1
            encoder = site.component == "vae" and site.path.startswith(("encoder", "quant_conv"))
            if is_leaf and not encoder and site not in chosen:
                left_out[type(site.module).__name__].add(site.path.rpartition("transformer_blocks")[2])
        assert set(left_out) == {"SiLU", "Identity"}
        assert all(path.endswith("_mod.0") for path in left_out["SiLU"])
