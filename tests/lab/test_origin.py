"""Planted values that are not finite: the module in which they arise is named, never one that only received them."""

import dataclasses
import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.analysis.summary import summarize
from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.lab.measures import LatencySpec
from precision_lab.lab.observing import observing
from precision_lab.lab.origin import origin
from precision_lab.lab.run import run
from precision_lab.lab.spec import RunSpec, Variant
from precision_lab.lab.subject import components_of
from precision_lab.lab.watch import StreamWatch, carriers
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record.run import Run
from precision_lab.report import anomaly
from precision_lab.report.view import View
from precision_lab.techniques.base import applied
from precision_lab.techniques.block_end_clip import BlockEndClip
from precision_lab.techniques.compiled_blocks import CompiledBlocks
from precision_lab.techniques.fast.technique import FusedBlocks
from tests.foreign.denoiser import Source as Denoiser
from tests.spread import thinned
from tests.subjects import case, picture, settings, source
from tests.techniques.configured import SITES

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
BLOCKS = 4
RANGES = RangeCatalogue(tuple(SITES["ranges"]))


class Quiet:
    def start(self, total): ...

    def advance(self, amount, label): ...

    def note(self, text): ...


def planted(checkpoint, folder, change):
    """A copy of a checkpoint after `change(weights)`, which replaces some of the transformer's weights."""
    shutil.copytree(checkpoint, folder)
    weights = mx.load(str(folder / WEIGHTS))
    change(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    return folder


def filled(weights, name, value, share=slice(None)):
    array = np.array(weights[name].astype(mx.float32))
    array[share] = value
    weights[name] = mx.array(array).astype(mx.bfloat16)


def overflowing_add(add, block):
    """A change after which the product in this residual add exceeds float16, and nothing before it does."""
    stream, number = add[:3], int(add[-1])
    path = f"transformer_blocks.{block}."
    update = {
        "img1": "attn.to_out.0.bias",
        "txt1": "attn.to_add_out.bias",
        "img2": "img_mlp.net.2.bias",
        "txt2": "txt_mlp.net.2.bias",
    }[f"{stream}{number}"]

    def change(weights):
        width = weights[path + "img_mod.1.bias"].size // 6
        gate = slice((3 * number - 1) * width, 3 * number * width)
        filled(weights, path + update, 3e4)
        filled(weights, f"{path}{stream}_mod.1.bias", 50.0, gate)

    return change


def judged(source, out, variant, probes=None, **changes):
    """The summary of a run of one case with one variant, and the run."""
    spec = RunSpec(
        experiment="planted",
        source=source,
        settings=changes.pop("settings", settings(steps=2, height=48, width=48)),
        prompts=["a green square"],
        seeds=[3],
        variants=[variant],
        baseline=variant.name,
        probes={"range": RANGES} if probes is None else probes,
        drift_sites=changes.pop("drift_sites", ["pipeline:euler_step"]),
        latency=LatencySpec(0, 0),
        out=out,
    )
    run(dataclasses.replace(spec, **changes), Quiet())
    return summarize(out), Run.open(out)


def named(summary, variant="float16"):
    first = summary.variants[variant].first_nonfinite
    assert first is not None
    return first.component, first.site, first.port, first.step, first.inputs_finite


@pytest.mark.parametrize("seed", thinned(range(4), keep=2))
def test_an_overflow_in_a_residual_add_is_named(small_checkpoint, tmp_path, seed):
    add = ["img_add1", "txt_add1", "img_add2", "txt_add2"][seed]
    block = int(np.random.default_rng(seed).integers(BLOCKS))
    folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add(add, block))
    summary, opened = judged(source(folder), tmp_path / "run", Variant("float16", "float16"))
    assert named(summary) == ("transformer", f"transformer_blocks.{block}.{add}", "out", 0, True)
    first = summary.variants["float16"].first_nonfinite
    assert (first.branch, first.dtype, first.num_nan) == ("cond", "float16", 0)
    assert first.num_inf > 0
    assert summary.variants["reference"].first_nonfinite is None
    (row,) = opened.nonfinite.to_dict("records")
    assert (row["variant"], row["block"], row["stream"]) == ("float16", block, add[:3])
    assert set(opened.generations["variant"]) == {"reference", "float16"}


def test_an_overflow_that_a_technique_clips_is_still_named(small_checkpoint, tmp_path):
    folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add("img_add2", 1))
    variant = Variant("float16", "float16", {"clip": BlockEndClip()})
    summary, _ = judged(source(folder), tmp_path / "run", variant)
    assert summary.variants["float16"].num_nonfinite.value == 0, "no recorded array shows it"
    assert named(summary) == ("transformer", "transformer_blocks.1.img_add2", "out", 0, True)


@pytest.mark.parametrize("probes", [{}, None], ids=["no probes", "ranges"])
def test_an_overflow_inside_a_feed_forward_is_named(small_checkpoint, tmp_path, probes):
    def change(weights):
        filled(weights, "transformer_blocks.2.img_mlp.net.0.proj.weight", 6e4)

    folder = planted(small_checkpoint, tmp_path / "checkpoint", change)
    summary, _ = judged(source(folder), tmp_path / "run", Variant("float16", "float16"), probes)
    assert named(summary) == ("transformer", "transformer_blocks.2.img_mlp.net.0.proj", "out", 0, True)


@pytest.mark.parametrize("seed", thinned(range(4), keep=2))
def test_a_weight_that_is_nan_names_its_module(small_checkpoint, tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = []

    def change(weights):
        block = int(rng.integers(BLOCKS))
        names.append(str(rng.choice([name for name in weights if name.startswith(f"transformer_blocks.{block}.")])))
        filled(weights, names[0], np.nan, tuple(int(rng.integers(n)) for n in weights[names[0]].shape))

    folder = planted(small_checkpoint, tmp_path / "checkpoint", change)
    summary, _ = judged(source(folder), tmp_path / "run", Variant("plain", "bfloat16"))
    for variant in ("reference", "plain"):
        assert named(summary, variant) == ("transformer", names[0].rpartition(".")[0], "out", 0, True)


def test_before_and_after_the_loop(small_checkpoint, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, file, name in (
        (before, "text_encoder", "layers.0.mlp.up_proj"),
        (after, "vae", "decoder.mid_block.resnets.0.conv1"),
    ):
        shutil.copytree(small_checkpoint, folder)
        (path,) = (folder / file).glob("*.safetensors")
        weights = mx.load(str(path))
        (stored,) = [key for key in weights if key.endswith(f"{name}.weight")]
        filled(weights, stored, np.nan, 0)
        mx.save_safetensors(str(path), weights)
        summary, _ = judged(source(folder), tmp_path / f"run-{file}", Variant("plain", "bfloat16"), {})
        assert named(summary, "plain") == (file, name, "out", None, True)


@pytest.mark.parametrize("technique", [FusedBlocks(), CompiledBlocks()], ids=["fast", "compiled"])
def test_the_block_is_named_where_its_inside_cannot_be_observed(small_checkpoint, tmp_path, technique):
    if isinstance(technique, CompiledBlocks):  # on a CPU each block takes the C++ compiler a while
        technique = dataclasses.replace(technique, sites=("transformer_blocks.1",))
    folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add("img_add1", 1))
    variant = Variant("float16", "float16", {"technique": technique})
    summary, _ = judged(source(folder), tmp_path / "run", variant, {}, settings=settings(steps=1, height=48, width=48))
    assert named(summary) == ("transformer", "transformer_blocks.1", "out.0", 0, True)


@dataclasses.dataclass(frozen=True)
class Undeclared:
    """A technique that compiles a block, and does not say that its inside cannot be observed."""

    sites: tuple[str, ...] = ("transformer_blocks.1",)
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site):
        def flat(img, txt, temb, img_rotation, txt_rotation):
            return tuple(site.module(Streams(img, txt), temb, Streams(img_rotation, txt_rotation)))

        class Compiled(Wrapper):
            def __call__(self, x, temb, rotations, mask=None):
                return Streams(*compiled(*x, temb, *rotations))

        compiled = mx.compile(flat)
        return Compiled(site.module)


@pytest.mark.parametrize("overflows", [False, True])
def test_a_compiled_block_that_does_not_say_so_is_neither_broken_nor_skipped(small_checkpoint, tmp_path, overflows):
    folder = small_checkpoint
    if overflows:
        folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add("img_add1", 1))
    variant = Variant("float16", "float16", {"technique": Undeclared()})
    summary, _ = judged(source(folder), tmp_path / "run", variant, {}, settings=settings(steps=1, height=48, width=48))
    assert summary.variants["float16"].error is None
    if overflows:
        assert named(summary) == ("transformer", "transformer_blocks.1", "out.0", 0, True)
    else:
        assert summary.variants["float16"].first_nonfinite is None


@dataclasses.dataclass(frozen=True)
class Untouchable:
    """A technique whose block refuses to have a module inside it observed, without saying so."""

    sites: tuple[str, ...] = ("transformer_blocks.0",)
    preserves_function: bool = True
    composes: bool = False

    def rewrite(self, site):
        kind = type(site.module.img_norm1)

        class Refusing(Wrapper):
            def __call__(self, *args):
                if type(self.inner.img_norm1) is not kind:
                    raise InputError("observed")
                return self.inner(*args)

        return Refusing(site.module)


def test_where_a_generation_cannot_be_repeated_the_first_array_is_not_said_to_be_guilty(small_checkpoint, tmp_path):
    folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add("img_add1", 2))
    variant = Variant("float16", "float16", {"technique": Untouchable()})
    summary, opened = judged(source(folder), tmp_path / "run", variant)
    assert summary.variants["float16"].first_nonfinite.inputs_finite is None
    (found,) = (one for one in anomaly.first(View.open(opened.path)) if one.variant == "float16")
    assert not found.arose
    assert found.frames[-1].amax is None


@pytest.mark.parametrize("scale", [1.0, np.inf, 1e5], ids=["finite", "infinite weight", "overflow"])
def test_a_foreign_subject(tmp_path, scale):
    foreign = Denoiser("denoiser", depth=4)
    for dtype in (mx.float32, mx.float16):
        stage = foreign.load(dtype).net.stages[2]
        stage.bias = mx.full(stage.bias.shape, scale).astype(dtype)
    case_settings = {"settings": {"steps": 4, "width": 8}, "drift_sites": ["denoise"]}
    for number, probes in enumerate(({}, {"range": RangeCatalogue(("**",))})):
        summary, _ = judged(foreign, tmp_path / str(number), Variant("float16", "float16"), probes, **case_settings)
        if scale == 1.0:
            assert summary.variants["float16"].first_nonfinite is None
        else:
            assert named(summary) == ("net", "stages.2", "out", 0, True)
        assert (summary.variants["reference"].first_nonfinite is None) == (scale != np.inf)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("techniques", [{}, {"clip": BlockEndClip()}], ids=["plain", "replaced blocks"])
def test_watching_changes_no_bit(small_checkpoint, dtype, techniques):
    subject = source(small_checkpoint).load(dtype)
    components = components_of(subject, subject.components.layout)
    one = case("a green square", 3, steps=2, height=48, width=80)
    with applied(components, techniques):
        plain = picture(subject, one)
        watch = StreamWatch()
        with observing(components, [], watch):
            watched = picture(subject, one, lambda *_: watch.read())
    assert np.array_equal(plain.view(np.uint32), watched.view(np.uint32))
    assert watch.first is None


def test_repeating_a_generation_changes_no_random_number(small_checkpoint):
    subject = source(small_checkpoint).load(mx.float32)
    mx.random.seed(11)
    expected = mx.random.normal((4,)).tolist()
    mx.random.seed(11)
    components = components_of(subject, subject.components.layout)
    with applied(components, {"random": Random()}):
        assert origin(subject, components, case("a green square", 3, steps=1, height=48, width=48), 1, 0) is None
    assert mx.random.normal((4,)).tolist() == expected


@dataclasses.dataclass(frozen=True)
class Random:
    """A technique that draws random numbers."""

    sites: tuple[str, ...] = ("proj_out",)
    preserves_function: bool = False
    composes: bool = True

    def rewrite(self, site):
        class Noisy(Wrapper):
            def __call__(self, x):
                return self.inner(x) + 1e-3 * mx.random.normal(self.inner(x).shape)

        return Noisy(site.module)


def test_what_is_watched(small_checkpoint):
    subject = source(small_checkpoint).load(mx.float32)
    components = components_of(subject, subject.components.layout)
    encoder = len(subject.components["text_encoder"].layers)

    def watched():
        return [str(site) for site in carriers(walk(components)) if site.component == "transformer"]

    assert watched() == [f"transformer_blocks.{BLOCKS - 1}"]
    assert len(carriers(walk(components))) == 1 + encoder
    with applied(components, {"clip": BlockEndClip(("transformer_blocks.1",))}):
        adds = {f"transformer_blocks.1.{stream}_add{n}" for stream in ("img", "txt") for n in (1, 2)}
        assert set(watched()) == {"transformer_blocks.1", f"transformer_blocks.{BLOCKS - 1}", *adds}
    with applied(components, {"fast": FusedBlocks()}):
        assert watched() == [f"transformer_blocks.{block}" for block in range(BLOCKS)]


@pytest.mark.parametrize("on_gpu", [False, True], ids=["read together", "launched together"])
def test_the_first_bad_array_of_a_watch_with_its_counts(on_gpu):
    """Both ways to count, of which a device takes one; the second runs as operations where there is no kernel."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = [Outputs() for _ in range(40)]

    class Outputs(nn.Module):
        def __call__(self, x):
            return x, x.astype(mx.float32), mx.array([1, 2])

    net, watch = Net(), StreamWatch()
    watch._on_gpu = on_gpu
    arrays = [mx.ones((3, 5)).astype(mx.bfloat16 if n % 2 else mx.float16) for n in range(40)]
    arrays[33] = mx.where(mx.arange(15).reshape(3, 5) < 4, mx.array(-mx.inf), mx.array(mx.nan)).astype(mx.bfloat16)
    arrays[34] = arrays[35] = arrays[33]
    with observing({"net": net}, [], watch), scope(step=7, branch="b"):
        for n in range(40):
            net.blocks[n](arrays[n])
        watch.read()
    assert watch.first is not None
    names = ("site", "port", "step", "branch", "dtype", "shape", "num_inf", "num_nan")
    assert [watch.first[name] for name in names] == ["blocks.33", "out.0", 7, "b", "bfloat16", "3x5", 4, 11]


def test_the_page_shows_the_module_after_the_arrays_before_it(small_checkpoint, tmp_path):
    folder = planted(small_checkpoint, tmp_path / "checkpoint", overflowing_add("img_add1", 2))
    _, opened = judged(source(folder), tmp_path / "run", Variant("float16", "float16"))
    (found,) = anomaly.first(View.open(opened.path))
    assert (found.variant, found.arose) == ("float16", True)
    *before, last = found.frames
    assert (last.address, last.branch, last.step, last.amax) == ("transformer_blocks.2.img_add1", "cond", 0, None)
    assert len(before) == anomaly.FRAMES
    assert all(frame.amax is not None for frame in before)
    assert before[-1].address.startswith("transformer_blocks.2.attn.")
