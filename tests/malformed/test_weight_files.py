"""Mutated files of weights, in every layout: refused in a line that names tensor and file, in time and in memory."""

import re
from pathlib import Path
from random import Random

import pytest

from tests.malformed.harness import assert_stated, call, dry
from tests.malformed.weight_files import checkpoint_of_one_block, layouts
from tests.malformed.weight_mutations import kinds
from tests.spread import thinned

__all__ = ["dry"]

SMALL = ("image.height=32", "image.width=32", "sampler.steps=1", "prompts=[a star]", "seeds=[0]", "pinned.cases=null")
LAYOUTS = (
    *("gguf", "comfy float", "comfy float8", "comfy scale_weight", "comfy comfy_quant", "comfy metadata"),
    *(
        "published",
        "float8 folder",
        "nf4",
        "nf4 nested",
        "mlx",
        "mflux",
        "lora comfy",
        "lora peft",
        "lora diffusers",
        "lokr",
    ),
)
ALL = [(layout, kind) for layout in LAYOUTS for kind in kinds(layout)]
SAMPLE = Random(5).sample(ALL, 12)
MEMORY = 1 << 30
"""Bytes that reading a malformed file may take."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of one block."""
    return checkpoint_of_one_block(tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.fixture(scope="module")
def valid(base):
    return layouts(base)


def arguments(weights, path, base):
    if weights.adapter:
        return [f"model.path={base}", "technique=[lora]", f'++technique.lora.path="{path}"']
    return [f'model.path="{path}"', f"model.base={base}"]


def attempt(valid, base, folder, layout, kind, inspected=True):
    """Runs a mutant, maybe inspects it too, and judges what came of it."""
    weights = valid[layout]()
    mutant = kinds(layout)[kind](weights, Random(f"{layout} {kind}"))
    path = weights.write(folder / "given")
    target = path if path.is_file() else path / weights.weights_name
    target.write_bytes(mutant.content)
    work = folder / "work"
    work.mkdir()
    before = peak(reset=True)
    outcome = call(["model=micro", *arguments(weights, path, base), *SMALL, "out=run"], work)
    assert peak() - before < MEMORY
    assert_stated(outcome, [path.name] if mutant.fatal else None)
    if outcome.code == 2 and mutant.culprits:
        assert any(culprit and culprit in outcome.err for culprit in mutant.culprits), (mutant.culprits, outcome.err)
    if inspected:
        assert_stated(call(["models", f'inspect="{path}"'], work), None)


def peak(reset=False):
    """The largest resident size of this process in bytes since the last reset; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])


@pytest.mark.parametrize(("layout", "kind"), thinned(SAMPLE, keep=7))
def test_mutated(valid, base, tmp_path, dry, layout, kind):
    attempt(valid, base, tmp_path, layout, kind, inspected=False)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "kind"), ALL)
def test_every_mutation(valid, base, tmp_path, dry, layout, kind):
    attempt(valid, base, tmp_path, layout, kind)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["gguf", "comfy comfy_quant", "published", "nf4", "mlx", "mflux"])
@pytest.mark.parametrize("other", ["deeper", "another model", "absent", "a file", "none"])
def test_bases_that_do_not_match(valid, base, small_checkpoint, small_checkpoint_21, tmp_path, dry, layout, other):
    weights = valid[layout]()
    path = weights.write(tmp_path / "given")
    (tmp_path / "a file").touch()
    bases = {"deeper": small_checkpoint, "another model": small_checkpoint_21, "a file": tmp_path / "a file"}
    given = [] if other == "none" else [f'model.base="{bases.get(other, tmp_path / "absent")}"']
    outcome = call(["model=micro", f'model.path="{path}"', *given, *SMALL, "out=run"], tmp_path)
    assert_stated(outcome, [str(bases.get(other, "checkpoints/micro" if other == "none" else "absent"))])
    if other in ("deeper", "none"):
        assert path.name in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_mutated_is_valid(valid, base, tmp_path, dry, layout):
    weights = valid[layout]()
    path = weights.write(tmp_path / "given")
    outcome = call(["model=micro", *arguments(weights, path, base), *SMALL, "out=run"], tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(ALL) > 300
