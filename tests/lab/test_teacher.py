"""Local against accumulated error: closed forms on a constructed model, and properties that hold on any model."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.instrument.replica import replica
from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.lab.drift import DriftRecorder, ReferenceRecorder
from precision_lab.lab.measures import TeacherSpec
from precision_lab.lab.observing import observing
from precision_lab.lab.reference import ReferenceReader, writing
from precision_lab.lab.teacher import Teacher
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.base import applied
from tests.subjects import case, picture, source

CASE = case("a red circle", 5, steps=2, guidance_scale=3.0, height=48, width=80)
BLOCKS = ("transformer_blocks.*",)
ERRORS = (2.0**-6, 3 * 2.0**-8, -(2.0**-7), 0.0)


@dataclasses.dataclass(frozen=True)
class Inflated:
    """Block i's image stream times 1 + ERRORS[i]: an error whose size is known."""

    sites: tuple[str, ...] = BLOCKS
    preserves_function: bool = False
    composes: bool = True

    def rewrite(self, site):
        factor = 1 + ERRORS[site.block]

        class Times(Wrapper):
            def __call__(self, *args):
                img, txt = self.inner(*args)
                return Streams(img=img * factor, txt=txt)

        return Times(site.module)


@pytest.fixture
def identity_blocks(small_checkpoint):
    """A pipeline whose blocks add nothing: all gates are zero."""
    subject = source(small_checkpoint).load(mx.float32)
    for block in subject.pipeline.transformer.transformer_blocks:
        for modulation in (block.img_mod, block.txt_mod):
            linear = modulation[1]
            linear.weight, linear.bias = mx.zeros_like(linear.weight), mx.zeros_like(linear.bias)
    return subject


def watched_by(teacher, subject, variants):
    """The picture of the reference's generation while `teacher` observes it."""
    with teacher.shadowing(variants, CASE), teacher.watching(subject.components):
        return picture(subject, CASE, teacher.step)


def teacher_of(subject, sites, steps):
    return Teacher(subject.components.layout, sites, steps)


def test_local_and_accumulated_error_are_those_of_the_closed_form(identity_blocks, tmp_path):
    subject = identity_blocks
    teacher = teacher_of(subject, BLOCKS, {0, 1})
    watched_by(teacher, subject, {"inflated": (subject, mx.float32, {"inflated": Inflated()})})
    local = {(r["block"], r["stream"]): r["rel_l2"] for r in teacher.rows if r["block"] is not None}
    for block, error in enumerate(ERRORS):
        assert local[block, "img"] == pytest.approx(abs(error), rel=1e-6)
        assert local[block, "txt"] == 0

    components = subject.components
    store = tmp_path / "reference.f32"
    with writing(store) as writer, observing(components, [ReferenceRecorder(BLOCKS, writer)]):
        picture(subject, CASE)
    drift = DriftRecorder(BLOCKS, ReferenceReader(store), components.layout.result)
    with applied(components, {"inflated": Inflated()}), observing(components, [drift]):
        picture(subject, CASE)
    first = [r for r in drift.rows if r["step"] == 0 and r["branch"] == "cond" and r["stream"] == "img"]
    accumulated = {r["block"]: r["rel_l2"] for r in first}
    for block in range(len(ERRORS)):
        expected = np.prod([1 + e for e in ERRORS[: block + 1]]) - 1
        assert accumulated[block] == pytest.approx(abs(expected), rel=1e-6)


def test_a_plain_fp32_variant_has_no_local_error(small_checkpoint):
    subject = source(small_checkpoint).load(mx.float32)
    teacher = teacher_of(subject, (*BLOCKS, "{norm_out,proj_out}", "pipeline:*"), {0, 1})
    watched_by(teacher, subject, {"plain": (subject, mx.float32, {})})
    assert {r["site"] for r in teacher.rows} >= {"transformer_blocks.3", "proj_out", "guidance", "euler_step"}
    assert all(r["rel_l2"] == 0 for r in teacher.rows)


def test_a_rounded_variant_errs_locally_by_its_own_rounding(small_checkpoint):
    models = source(small_checkpoint)
    reference = models.load(mx.float32)
    teacher = teacher_of(reference, BLOCKS, {1})
    dtypes = {"bf16": mx.bfloat16, "fp16": mx.float16}
    watched_by(teacher, reference, {name: (models.load(dtype), dtype, {}) for name, dtype in dtypes.items()})
    assert {r["step"] for r in teacher.rows} == {1}
    for name, unit in (("bf16", 2.0**-8), ("fp16", 2.0**-11)):
        errors = [r["rel_l2"] for r in teacher.rows if r["variant"] == name and r["block"] is not None]
        assert len(errors) == 4 * 2 * 2  # blocks, streams, branches
        assert all(0.05 * unit < error < 4 * unit for error in errors)


def test_watching_changes_neither_the_reference_nor_the_modules(small_checkpoint):
    subject = source(small_checkpoint).load(mx.float32)
    before = [(str(s), type(s.module), id(s.module)) for s in walk(subject.components)]
    plain = picture(subject, CASE)
    variants = {"inflated": (subject, mx.float32, {"inflated": Inflated()})}
    watched = watched_by(teacher_of(subject, BLOCKS, {0, 1}), subject, variants)
    np.testing.assert_array_equal(plain, watched)
    assert [(str(s), type(s.module), id(s.module)) for s in walk(subject.components)] == before


def test_a_replica_shares_arrays_and_nothing_else(small_checkpoint):
    model = Checkpoint(small_checkpoint).transformer(mx.float32)
    twin = replica(model)
    ours, theirs = (walk({"transformer": m}) for m in (model, twin))
    assert [(s.path, type(s.module)) for s in ours] == [(s.path, type(s.module)) for s in theirs]
    assert not {id(s.module) for s in ours} & {id(s.module) for s in theirs}
    arrays = dict(tree_flatten(model.parameters()))
    assert all(array is arrays[name] for name, array in tree_flatten(twin.parameters()))
    twin.transformer_blocks[0].img_mlp = None
    assert model.transformer_blocks[0].img_mlp is not None


@pytest.mark.parametrize(
    ("mode", "case", "steps"),
    [("off", 0, set()), ("sampled", 0, {0, 5, 9}), ("sampled", 1, set()), ("full", 3, set(range(10)))],
)
def test_which_steps_are_measured(mode, case, steps):
    assert TeacherSpec(BLOCKS, mode).steps(10, case) == steps


def test_an_unknown_mode_is_refused():
    with pytest.raises(InputError, match=r"drift\.teacher\.mode is 'sample'"):
        TeacherSpec(mode="sample")
