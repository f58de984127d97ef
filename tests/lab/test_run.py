"""A complete run on a small checkpoint: its files, its guarantees, and its handling of errors."""

import dataclasses
import json
import os
import re

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest

from precision_lab.errors import InputError, VariantError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.lab import bench
from precision_lab.lab.measures import LatencySpec
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record.columns import ORDER
from precision_lab.record.tables import LEADING, read
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.quantized_weights import QuantizedWeights
from tests.spread import thinned
from tests.subjects import picture, settings, source
from tests.techniques.configured import SITES

EVERYWHERE = RangeCatalogue(
    sites=("**", "text_encoder:**", "vae:decoder.**", "pipeline:**"), ports=("in", "out"), formats=("float16",)
)
SETTINGS = settings(steps=2, guidance_scale=3.0, height=48, width=80)


class Quiet:
    """Progress that only sums the amounts."""

    def __init__(self):
        self.total, self.done, self.notes = 0.0, 0.0, []

    def start(self, total):
        self.total = total

    def advance(self, amount, label):
        self.done += amount

    def note(self, text):
        self.notes.append(text)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A technique that raises when the model is called."""

    sites: tuple[str, ...] = ("proj_out",)
    preserves_function: bool = False
    composes: bool = True
    error: type[BaseException] = RuntimeError

    def rewrite(self, site):
        error = self.error

        class Raises(Wrapper):
            def __call__(self, *args):
                raise error("planted")

        return Raises(site.module)


@pytest.fixture
def spec(small_checkpoint, tmp_path):
    return RunSpec(
        experiment="test",
        source=source(small_checkpoint),
        settings=SETTINGS,
        prompts=["two red circles on a blue background", "a green square"],
        seeds=[0, 7],
        variants=[
            Variant("baseline", "bfloat16"),
            Variant("scaled", "bfloat16", {"ffn_scaling": FFNScaling([SITES["feed_forwards"]])}),
        ],
        baseline="baseline",
        probes={"range": RangeCatalogue(sites=("transformer_blocks.*", "norm_out", "pipeline:euler_step"))},
        drift_sites=["transformer_blocks.*", "pipeline:euler_step"],
        latency=LatencySpec(min_rounds=2, max_rounds=2, warmup_rounds=0),
        out=tmp_path / "run",
        resolved="x: 1\n",
    )


def small(spec, **changes):
    """One case, no timing."""
    changes = {"prompts": spec.prompts[:1], "seeds": [0], "latency": LatencySpec(0, 0), **changes}
    return dataclasses.replace(spec, **changes)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_with_every_probe_on_the_picture_is_bit_identical(small_checkpoint, dtype):
    subject = source(small_checkpoint).load(dtype)
    case = Case(0, "a green square", 3, SETTINGS)
    before = [(str(site), id(site.module), type(site.module)) for site in walk(subject.components)]
    plain = picture(subject, case)
    recorder = ProbeRecorder(EVERYWHERE)
    with observing(subject.components, [recorder]):
        observed = picture(subject, case)
    assert np.array_equal(plain.view(np.uint32), observed.view(np.uint32))
    assert [(str(site), id(site.module), type(site.module)) for site in walk(subject.components)] == before
    rows = pd.DataFrame(recorder.rows)
    assert set(rows["component"]) == {"transformer", "text_encoder", "vae", "pipeline"}
    assert set(rows["branch"].dropna()) == {"cond", "uncond"}
    blocks = rows[rows["site"].str.fullmatch(r"transformer_blocks\.\d+") & rows["port"].str.startswith("out")]
    assert len(blocks) == 2 * 2 * 2 * len(subject.components["transformer"].transformer_blocks)
    assert not rows.duplicated(["branch", "step", "component", "site", "port"]).any()


def test_what_a_run_leaves(spec):
    progress = Quiet()
    run(spec, progress)
    assert progress.done == pytest.approx(progress.total)
    left = {path.name for path in spec.out.iterdir()}
    assert left == {"config.yaml", "manifest.json", "images", "results", *(f"{table}.parquet" for table in LEADING)}
    assert len(list((spec.out / "images").glob("*.png"))) == 3 * 2 * 2
    manifest = json.loads((spec.out / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["status"] == "complete"
    assert manifest["checkpoint"]["weights"] == "synthetic"
    assert len(manifest["checkpoint"]["fingerprint"]) == 64
    assert manifest["sites"]["scaled"]["ffn_scaling"]["matched"] == 8
    assert manifest["environment"]["switches"].keys() == {"MLX_ENABLE_TF32"}

    activations = read(spec.out, "activations")
    leading = [column.name for column in LEADING["activations"]]
    assert list(activations.columns[: len(leading)]) == leading
    assert activations.columns[-1] == ORDER.name
    key = ["variant", "prompt_id", "seed", "branch", "step", "component", "site", "port"]
    assert not activations.duplicated(key).any()
    assert set(activations["variant"]) == {"reference", "baseline", "scaled"}
    assert set(activations.query("variant == 'baseline'")["dtype"]) == {"bfloat16"}
    assert activations["amax"].gt(0).all()

    drift = read(spec.out, "drift")
    assert set(drift["variant"]) == {"baseline", "scaled"}
    assert set(drift["mode"]) == {"free"}
    assert drift["rel_l2"].between(0, 2).all()
    latents = drift[drift["site"] == "euler_step"]
    assert latents["branch"].isna().all()
    assert len(latents) == 2 * 2 * 2 * 2

    latency = read(spec.out, "latency")
    assert len(latency) == 2 * 2
    assert latency.groupby("round")["order"].apply(lambda order: sorted(order) == [0, 1]).all()


def test_the_manifest_says_what_the_weights_of_each_variant_take(spec):
    rules = [{"sites": "transformer_blocks.*.img_mod.1", "bits": 4, "group_size": 64}]
    quantized = Variant("quantized", "bfloat16", {"img_mod4": QuantizedWeights(rules)})
    spec = small(spec, variants=[*spec.variants, quantized])
    run(spec, Quiet())
    variants = json.loads((spec.out / "manifest.json").read_text())["variants"]
    plain, less = (variants[name]["linear_weights"]["transformer"] for name in ("baseline", "quantized"))
    assert variants["scaled"]["linear_weights"] == variants["baseline"]["linear_weights"]
    assert (plain["bits_per_weight"], plain["bytes"]) == (16, 2 * plain["number"])
    assert less["number"] == plain["number"]
    modulation = 4 * 6 * 64 * 64  # blocks, parts, width squared
    assert plain["bytes"] - less["bytes"] == modulation * (16 - 4 - 2 * 16 / 64) / 8  # a scale and an offset a group
    assert less["bits_per_weight"] == pytest.approx(8 * less["bytes"] / less["number"])
    whole, fewer = (variants[name]["weights"]["transformer"] for name in ("baseline", "quantized"))
    assert fewer["number"] == whole["number"] > plain["number"], "biases and norms too"
    assert whole["bytes"] - fewer["bytes"] == plain["bytes"] - less["bytes"]
    assert set(variants["baseline"]["weights"]) == {"transformer", "text_encoder", "vae"}


def test_the_same_command_gives_the_same_tables(spec, tmp_path):
    first, second = small(spec, out=tmp_path / "a"), small(spec, out=tmp_path / "b")
    for each in (first, second):
        run(each, Quiet())
    for table in ("activations", "drift"):
        pd.testing.assert_frame_equal(read(first.out, table), read(second.out, table), check_exact=True)
    for image in sorted((first.out / "images").iterdir()):
        assert image.read_bytes() == (second.out / "images" / image.name).read_bytes()


def test_block_ranges_are_those_of_hooks_on_diffusers(spec):
    """amax, min, max and rms at every block of the reference, the first forward of each branch."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    spec = small(spec)
    run(spec, Quiet())
    rows = read(spec.out, "activations").query("variant == 'reference' and step == 0 and component == 'transformer'")
    pipeline = spec.source.load(mx.float32).pipeline
    grid = pipeline.grid(SETTINGS["height"], SETTINGS["width"])
    model = QwenImageTransformer2DModel.from_pretrained(spec.source.path, subfolder="transformer").float().eval()
    for branch, prompt in (("cond", spec.prompts[0]), ("uncond", " ")):
        seen = {}
        hooks = [
            block.register_forward_hook(lambda m, args, out, i=i, seen=seen: seen.update({i: (out[1], out[0])}))
            for i, block in enumerate(model.transformer_blocks)
        ]
        with torch.no_grad():
            model(
                hidden_states=torch.from_numpy(np.array(pipeline.noise(0, grid))),
                encoder_hidden_states=torch.from_numpy(np.array(pipeline.encode([prompt]).embeds)),
                timestep=torch.ones(1),
                img_shapes=[[(1, *grid)]],
            )
        for hook in hooks:
            hook.remove()
        assert len(seen) == 4
        for block, outputs in seen.items():
            for port, tensor in enumerate(outputs):
                (row,) = rows.query(
                    f"branch == '{branch}' and site == 'transformer_blocks.{block}' and port == 'out.{port}'"
                ).to_dict("records")
                expected = {
                    "amax": tensor.abs().max(),
                    "min": tensor.min(),
                    "max": tensor.max(),
                    "rms": tensor.double().square().mean().sqrt(),
                }
                for name, value in expected.items():
                    assert row[name] == pytest.approx(float(value), rel=1e-4), (branch, block, port, name)


def test_a_variant_that_overflows_is_a_result(spec):
    @dataclasses.dataclass(frozen=True)
    class Enlarge(FFNScaling):
        output_scale: float = 1e6

    enlarged = Variant("fp16", "float16", {"x": Enlarge([SITES["feed_forwards"]])})
    spec = small(spec, variants=[Variant("baseline", "bfloat16"), enlarged])
    run(spec, Quiet())
    rows = read(spec.out, "activations").query("variant == 'fp16'")
    bad = rows[(rows["num_nan"] + rows["num_inf"]) > 0]
    assert bad["order"].min() == bad["order"].iloc[0]
    assert json.loads((spec.out / "manifest.json").read_text())["errors"] == {}
    drift = read(spec.out, "drift").query("variant == 'fp16' and site == 'euler_step'")
    assert drift["rel_l2"].isna().all()
    assert drift["num_nonfinite"].gt(0).all()


def test_a_variant_that_raises_is_noted_and_the_others_go_on(spec):
    variants = [Variant("baseline", "bfloat16"), Variant("broken", "bfloat16", {"broken": Broken()}), spec.variants[1]]
    spec, progress = small(spec, variants=variants), Quiet()
    run(spec, progress)
    manifest = json.loads((spec.out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert list(manifest["errors"]) == ["broken"]
    assert re.fullmatch(r"RuntimeError: planted \(.*test_run\.py:\d+\).*", manifest["errors"]["broken"])
    assert 'raise error("planted")' in (spec.out / "errors" / "broken.txt").read_text()
    assert set(read(spec.out, "activations")["variant"]) == {"reference", "baseline", "scaled"}
    assert len([note for note in progress.notes if "planted" in note]) == 1


def test_a_technique_that_cannot_be_applied_is_a_failed_variant(spec):
    @dataclasses.dataclass(frozen=True)
    class Unfit(Broken):
        def rewrite(self, site):
            raise TypeError("planted")

    spec = small(spec, variants=[Variant("baseline", "bfloat16"), Variant("unfit", "bfloat16", {"x": Unfit()})])
    run(spec, Quiet())
    errors = json.loads((spec.out / "manifest.json").read_text())["errors"]
    assert re.fullmatch(r"TypeError: planted \(.*test_run\.py:\d+\)", errors["unfit"])
    assert 'raise TypeError("planted")' in (spec.out / "errors" / "unfit.txt").read_text()


def test_a_reference_that_raises_ends_the_run_and_keeps_the_traceback(spec, monkeypatch):
    class Peak:
        sites = ("proj_out",)
        ports = ("out",)

        def measure(self, x):
            raise LookupError("planted in a probe")

    spec = small(spec, probes={"peak": Peak()})
    with pytest.raises(VariantError, match=r"reference failed, .*LookupError: planted in a probe \(.*test_run\.py:\d+"):
        run(spec, Quiet())
    manifest = json.loads((spec.out / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "planted in a probe" in manifest["errors"]["reference"]
    assert "in measure" in (spec.out / "errors" / "reference.txt").read_text()


def test_a_variant_that_raises_only_while_it_is_timed_fails_and_the_others_are_timed(spec, monkeypatch):
    timed = bench.Bench.time_step

    def breaking(self, variant):
        if variant.name == "broken":
            raise RuntimeError("planted in the timing")
        return timed(self, variant)

    monkeypatch.setattr(bench.Bench, "time_step", breaking)
    variants = [Variant("baseline", "bfloat16"), Variant("broken", "bfloat16"), spec.variants[1]]
    spec = small(spec, variants=variants, latency=spec.latency)
    run(spec, Quiet())
    assert "planted in the timing" in json.loads((spec.out / "manifest.json").read_text())["errors"]["broken"]
    assert set(read(spec.out, "latency")["variant"]) == {"baseline", "scaled"}


def test_a_rewrite_without_a_module_is_named(spec):
    @dataclasses.dataclass(frozen=True)
    class Forgetful(Broken):
        def rewrite(self, site):
            pass

    spec = small(spec, variants=[Variant("baseline", "bfloat16", {"mine": Forgetful()})])
    with pytest.raises(InputError, match=r"technique mine: Forgetful\.rewrite returned None for .*, expected a module"):
        run(spec, Quiet())
    assert not spec.out.exists()


def test_an_interrupted_run_is_continued_to_the_same_tables(spec, tmp_path):
    whole = small(spec, out=tmp_path / "whole", seeds=[0, 7])
    run(whole, Quiet())
    interrupted = dataclasses.replace(whole, out=tmp_path / "interrupted")

    class Interrupting(Quiet):
        def advance(self, amount, label):
            super().advance(amount, label)
            if self.done > 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, Interrupting())
    assert json.loads((interrupted.out / "manifest.json").read_text())["status"] == "interrupted"
    assert len(read(interrupted.out, "activations")) > 0, "finished parts are readable before the merge"
    run(dataclasses.replace(interrupted, resume=True), Quiet())
    for table in ("activations", "drift"):
        pd.testing.assert_frame_equal(read(whole.out, table), read(interrupted.out, table), check_exact=True)
    assert not (interrupted.out / "reference").exists()


def test_a_run_killed_while_it_merged_generates_nothing_again(spec, monkeypatch):
    spec = small(spec, variants=spec.variants[:1])
    run(spec, Quiet())
    before = {table: read(spec.out, table) for table in LEADING}
    manifest = spec.out / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "running"}))

    def never(*args):
        raise AssertionError("everything is there")

    monkeypatch.setattr("precision_lab.lab.bench.Bench.make", never)
    run(dataclasses.replace(spec, resume=True), Quiet())
    assert json.loads(manifest.read_text())["status"] == "complete"
    for table, rows in before.items():
        pd.testing.assert_frame_equal(read(spec.out, table), rows, check_exact=True)


@pytest.mark.parametrize("damaged", thinned(["part", "picture", "foreign part", "folder", "arrays"], keep=2))
def test_what_a_resumed_run_would_build_on_is_looked_at(spec, damaged):
    class Interrupting(Quiet):
        def advance(self, amount, label):
            super().advance(amount, label)
            if label.startswith("baseline,") and self.done > 6:
                raise KeyboardInterrupt

    spec = small(spec, variants=spec.variants[:1], seeds=[0, 7])
    with pytest.raises(KeyboardInterrupt):
        run(spec, Interrupting())
    part = next((spec.out / "activations").iterdir())
    wrong = {
        "part": part,
        "picture": next((spec.out / "images").iterdir()),
        "foreign part": part.with_name("part-other__p0__s0.parquet"),
        "folder": spec.out / "latency",
        "arrays": next((spec.out / "reference").glob("*.f32")),
    }[damaged]
    content = part.read_bytes() if damaged == "foreign part" else b"half"
    wrong.write_bytes(content)
    with pytest.raises(InputError) as caught:
        run(dataclasses.replace(spec, resume=True), Quiet())
    assert str(wrong) in str(caught.value)
    assert "Remove it: resume=true makes it again" in str(caught.value)
    wrong.unlink()
    run(dataclasses.replace(spec, resume=True), Quiet())
    assert json.loads((spec.out / "manifest.json").read_text())["status"] == "complete"


class TestRefusals:
    """Nothing is written before the run can start."""

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"settings": SETTINGS | {"height": 100}}, "multiple of 16. Nearest: 96 or 112"),
            ({"drift_sites": ["transformer_blokcs.*"]}, "matches nothing"),
            ({"probes": {"range": RangeCatalogue(sites=("vae:decoder.nowhere",))}}, "matches nothing"),
            ({"variants": [Variant("baseline", "bfloat16", {"f": FFNScaling(sites=("img_mpl",))})]}, "matches nothing"),
            ({"prompts": ["  "]}, "holds '  ', expected text"),
            ({"settings": SETTINGS | {"hieght": 64}}, "Unknown setting 'hieght'. Did you mean height"),
            ({"prompts": ["word " * 1100]}, "expected at most 1024"),
            ({"source": source("/nowhere/at/all")}, "neither a folder nor a Hub id"),
            ({"source": source("synthetic://mirco")}, "unknown preset. Did you mean micro"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_input(self, spec, changes, message):
        spec = dataclasses.replace(spec, **changes)
        with pytest.raises(InputError, match=message):
            run(spec, Quiet())
        assert not spec.out.exists()

    def test_variants_that_do_not_fit_the_model_are_named(self, spec):
        def scaled(site):
            return {"scaling": FFNScaling(sites=(site,))}

        unfit = [Variant(name, "bfloat16", scaled("img_mpl")) for name in "bcdef"]
        spec = dataclasses.replace(spec, variants=[Variant("baseline", "bfloat16", scaled("**.img_mlp")), *unfit])
        with pytest.raises(InputError) as caught:
            run(spec, Quiet())
        first, second = str(caught.value).splitlines()
        assert first.startswith("variants.b: technique scaling: Site pattern 'img_mpl' matches nothing. Did you mean")
        assert second == "5 variants do not fit the model, also c, d, e, ...; only=[NAME] selects others"
        spec = dataclasses.replace(spec, reference=Variant("reference", "float32", scaled("nothing")))
        with pytest.raises(InputError, match=r"^reference: technique scaling: Site pattern 'nothing' [^\n]*$"):
            run(spec, Quiet())
        assert not spec.out.exists()

    def test_a_folder_that_holds_a_run(self, spec):
        spec = small(spec, variants=spec.variants[:1])
        run(spec, Quiet())
        with pytest.raises(InputError, match="already holds a run"):
            run(spec, Quiet())
        with pytest.raises(InputError, match="complete"):
            run(dataclasses.replace(spec, resume=True), Quiet())

    def test_resuming_what_is_not_there_or_differs(self, spec):
        with pytest.raises(InputError, match="holds no run"):
            run(dataclasses.replace(spec, resume=True), Quiet())
        spec.out.mkdir()
        (spec.out / "manifest.json").write_text("{")
        with pytest.raises(InputError, match="not strict JSON"):
            run(dataclasses.replace(spec, resume=True), Quiet())
        (spec.out / "manifest.json").write_text('{"status": "interrupted"}')
        with pytest.raises(InputError, match="schema_version None, expected 2"):
            run(dataclasses.replace(spec, resume=True), Quiet())
        (spec.out / "manifest.json").unlink()
        run(small(spec, variants=spec.variants[:1]), Quiet())
        begun = json.loads((spec.out / "manifest.json").read_text())
        begun["checkpoint"]["fingerprint"] = "0" * 64
        (spec.out / "manifest.json").write_text(json.dumps(begun | {"status": "interrupted"}))
        (spec.out / "config.yaml").write_text("x: 2\n")
        with pytest.raises(InputError, match="differs"):
            run(dataclasses.replace(spec, resume=True), Quiet())
        (spec.out / "config.yaml").write_text(spec.resolved)
        with pytest.raises(InputError, match="begun with another checkpoint"):
            run(dataclasses.replace(spec, resume=True), Quiet())

    def test_resuming_with_another_inflate(self, spec):
        spec = small(spec, variants=spec.variants[:1])
        run(spec, Quiet())
        manifest = spec.out / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"status": "interrupted"}))
        inflated = dataclasses.replace(spec, resume=True, source=source(spec.source.path, inflate=4.0))
        with pytest.raises(InputError, match="begun with another checkpoint"):
            run(inflated, Quiet())

    def test_a_folder_that_cannot_be_made(self, spec, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            run(small(spec, out=tmp_path / "file" / "run"), Quiet())

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("a\0b", "control characters"),
            ("a\nb", "control characters"),
            ("a\udc80b", "bytes that are not UTF-8"),
            ("x" * 300, "File name too long"),
            ("new/" * 40 + "x" * 300, "File name too long"),
            ("file", "Not a directory"),
            ("file/below/it", "Not a directory"),
            ("new/../file", "File exists"),
        ],
        ids=ascii,
    )
    def test_a_name_that_is_no_folder(self, spec, tmp_path, name, said):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=said) as caught:
            run(small(spec, out=tmp_path / name), Quiet())
        assert len(str(caught.value).splitlines()) == 1
        assert [file.name for file in tmp_path.iterdir()] == ["file"], "nothing is left behind"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_is_read_only(self, spec, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(InputError, match="cannot be written: Permission denied"):
            run(small(spec, out=tmp_path / "locked" / "run"), Quiet())

    @pytest.mark.parametrize(
        "changes",
        [
            {"prompts": []},
            {"prompts": [3]},
            {"seeds": []},
            {"seeds": [-1]},
            {"seeds": [0.5]},
            {"seeds": [1, 1]},
            {"variants": []},
            {"variants": [Variant("reference", "bfloat16")]},
            {"baseline": "nobody"},
        ],
        ids=str,
    )
    def test_spec(self, spec, changes):
        with pytest.raises(InputError):
            dataclasses.replace(spec, **changes)

    def test_inflate(self):
        with pytest.raises(InputError, match="Nearest: 4 or 8"):
            source("/nowhere", inflate=5)

    @pytest.mark.parametrize("dtype", ["bf16", "float8", ""])
    def test_dtype(self, dtype):
        with pytest.raises(InputError, match="bfloat16"):
            Variant("baseline", dtype)

    def test_steps(self):
        with pytest.raises(InputError, match="at least 1"):
            settings(steps=0)


def test_models_share_weights_where_that_is_exact(small_checkpoint):
    models = source(small_checkpoint)
    fp32, bf16, fp16 = (models.load(d).pipeline for d in (mx.float32, mx.bfloat16, mx.float16))
    assert fp32.transformer is bf16.transformer
    assert fp16.transformer is not bf16.transformer
    assert (fp32.dtype, bf16.dtype, fp16.dtype) == (mx.float32, mx.bfloat16, mx.float16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_pipeline_of_a_run_is_inflated(small_checkpoint, dtype):
    plain, inflated = (source(small_checkpoint, inflate=factor).load(getattr(mx, dtype)) for factor in (1, 64))
    before, after = (subject.pipeline.transformer.img_in.weight for subject in (plain, inflated))
    assert mx.array_equal(after, 64 * before)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_no_operation_leaves_the_dtype_by_accident(small_checkpoint, dtype):
    """One stray fp32 array would promote everything after it; only arrays that are fp32 by design may differ."""
    subject = source(small_checkpoint).load(dtype)
    by_design = {"time_text_embed.time_proj", "pos_embed", "rotary_emb", "to_pixels", "embed_tokens"}
    recorder = ProbeRecorder(EVERYWHERE)
    with observing(subject.components, [recorder]):
        image = picture(subject, Case(0, "a", 0, SETTINGS))
    rows = pd.DataFrame(recorder.rows)
    rows = rows[rows["port"].str.startswith("out") & ~rows["site"].isin(by_design)]
    assert set(rows["dtype"]) == {str(dtype).rpartition(".")[2]}, rows[["component", "site", "dtype"]].drop_duplicates()
    assert to_numpy(mx.array(image)).shape == (48, 80, 3)
