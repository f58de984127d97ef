"""`compare runs=`: what changed first, sites that are mapped, the files that it leaves, and mistakes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis import changes
from precision_lab.analysis.pairing import Renaming, match, renamings
from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image_21.layout import layout as layout_21
from precision_lab.record.manifest import Environment
from tests.fabricated import LANGUAGE_MODEL, run_of

CLEAN = Environment(device="a CPU", backend="cpu", mlx="0.32.4", cores=2, commit="c0ffee", dirty=False)
SITES = ["img_in", *(f"transformer_blocks.{b}.img_mlp" for b in range(4)), "proj_out"]


def table(sites=SITES, dtype="bfloat16", variant="baseline"):
    rng = np.random.default_rng(3)
    rows = [
        {"variant": variant, "prompt_id": 0, "seed": 0, "branch": "cond", "step": step, "component": "transformer"}
        | {"site": site, "port": "out", "dtype": dtype, "shape": "1x4", "order": step * len(sites) + at}
        | {"amax": rng.uniform(1, 9), "rms": rng.uniform(0.1, 1), "mean": 0.0, "min": -1.0, "max": 1.0}
        | {"amin_nonzero": 0.1, "num_nan": 0, "num_inf": 0, "num_zero": 0}
        for step in range(2)
        for at, site in enumerate(sites)
    ]
    return pd.DataFrame(rows).astype({"step": "Int64", "prompt_id": "Int64", "seed": "Int64", "branch": "string"})


def run(activations, **about):
    from precision_lab.record.tables import _typed

    return run_of({"activations": _typed("activations", activations)}, **({"environment": CLEAN} | about))


def first(one, other, renamed=()):
    pairing = match(one.layout, other.layout, (changes.places(one), changes.places(other)), renamed)
    (found,) = changes.first_changes(changes.compared(one, other, pairing), one.layout)
    return found


def test_a_run_equals_itself():
    found = first(run(table()), run(table()))
    assert (found.compared, found.equal, found.first, found.first_beyond) == (12, 12, None, None)


def test_rows_that_hold_no_array_are_not_compared():
    """A probe that measures calls adds rows without dtype and shape."""
    calls = table(["transformer_blocks.0.attn.attend"])[[*changes._KEY, "order"]]
    with_calls = pd.concat([calls, table()], ignore_index=True)
    found = first(run(with_calls), run(with_calls))
    assert (found.compared, found.equal, found.first) == (12, 12, None)


@pytest.mark.parametrize("at", [0, 2, 7, 11])
def test_the_planted_change_is_the_first(at):
    changed = table()
    changed.loc[at:, "amax"] *= 1 + 2**-8
    found = first(run(table()), run(changed))
    assert (found.first["site"], found.first["step"]) == (changed.loc[at, "site"], at // 6)
    assert found.first == found.first_beyond
    assert found.first["units"] == pytest.approx(1, rel=0.01)
    assert found.first["before"] == (changed.loc[at - 1, "site"] if at else "")


def test_rounding_is_allowed_to_another_machine_and_a_larger_change_is_not():
    other = replace(CLEAN, device="another CPU")
    changed = table()
    changed.loc[1:, "rms"] *= 1 + 2**-9
    found = first(run(table()), run(changed, environment=other))
    assert found.first["site"] == SITES[1]
    assert found.first_beyond is None
    changed.loc[3:, "rms"] *= 1 + 2**-5
    assert first(run(table()), run(changed, environment=other)).first_beyond["site"] == SITES[3]


def test_another_dtype_and_a_non_finite_value_count():
    assert first(run(table()), run(table(dtype="float16"))).first["what"] == "bfloat16 to float16"
    lost = table()
    lost.loc[4, "num_inf"] = 1
    assert first(run(table()), run(lost)).first["what"] == "non-finite values"


def test_renamed_sites():
    renamed = table([site.replace("img_mlp", "ffn.img") for site in SITES])
    renamed.loc[2:, "amax"] *= 2
    one, other = run(table()), run(renamed)
    places = (changes.places(one), changes.places(other))
    assert len(match(one.layout, other.layout, places).left) == 4
    given = renamings({"transformer_blocks.*.img_mlp": "transformer_blocks.*.ffn.img"})
    assert not match(one.layout, other.layout, places, given).left
    assert first(one, other, given).first["site"] == SITES[2]


def test_blocks_correspond_one_to_one_and_the_order_only_mirrors_the_pairs():
    def places(depth, port):
        return [("transformer", f"transformer_blocks.{b}", port) for b in range(depth)]

    deep, shallow = places(60, "out.0"), places(32, "out")
    there = match(layout(60), layout_21(32), (deep, shallow))
    back = match(layout_21(32), layout(60), (shallow, deep))
    assert {b: a for a, b in there.pairs.items()} == back.pairs
    assert len(there.pairs) == 32
    assert there.pairs[deep[0]] == shallow[0]
    assert there.pairs[deep[59]] == shallow[31]
    by_index = match(layout(60), layout_21(32), (deep, shallow), blocks="index")
    assert by_index.pairs[deep[31]] == shallow[31]


def test_nothing_in_common_pairs_nothing():
    found = match(layout(2), LANGUAGE_MODEL, ([("transformer", "img_in", "out")], [("model", "norm", "out")]))
    assert not found.pairs
    assert "0 of 1 arrays" in found.words


def test_alternatives_go_side_by_side():
    renaming = Renaming.of("b.*.{img,txt}_mlp", "l.*.{image,text}.ffn")
    assert renaming.apply("b.7.txt_mlp") == "l.7.text.ffn"
    assert renaming.apply("b.7.8.txt_mlp") is None


@pytest.mark.parametrize(("base", "other"), [("a.*", "b"), ("{a,b}.*", "{a,b,c}.*"), ("a..b", "c"), ("a.{b", "c")])
def test_renamings_that_fit_nothing(base, other):
    with pytest.raises(InputError):
        Renaming.of(base, other)


def test_the_files_and_hostile_names(tmp_path, capsys):
    from tests.report.fabricated_run import fabricate

    small = {"blocks": 3, "steps": 2, "prompts": ("a<script>x</script>",), "seeds": (0,), "side": 16, "teacher": False}
    a = fabricate(tmp_path / "a", **small)
    b = tmp_path / "b<img src=x>"
    shutil.copytree(a, b)
    record = json.loads((b / "manifest.json").read_text())
    record["environment"]["device"] = "<script>alert(1)</script>"
    (b / "manifest.json").write_text(json.dumps(record))
    out = tmp_path / "out"
    assert main(["compare", f"runs=['{a}','{b}']", f"out={out}"]) == 0
    assert "report: " in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert {"compare.html", "summary.json", "sites.parquet", "facts.csv", "changes.csv", "figures"} <= names
    summary = json.loads((out / "summary.json").read_text())
    (found,) = summary["beside"].values()
    assert found["equal"]
    assert found["matched"] == found["of"] == found["of_base"]
    page = (out / "compare.html").read_text()
    assert "<script>alert" not in page
    assert "<script>x" not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["base=nowhere"], "base is 'nowhere', expected one of runs"),
        (["names={nothing.*: a.*}"], "matches no array of the base"),
        (["names={img_in: nothing}"], "which the other run has not recorded"),
        (["names=gone.yaml"], "gone.yaml is missing"),
        (["blocks=half"], "blocks is 'half'"),
        (["out="], "out is ''"),
    ],
)
def test_mistakes_leave_nothing(more, message, tmp_path, monkeypatch, capsys, runs):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", f"runs=[{runs[0]},{runs[1]}]", *more]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from tests.report.fabricated_run import fabricate

    folder = tmp_path_factory.mktemp("runs")
    small = {"blocks": 2, "steps": 1, "prompts": ("a",), "seeds": (0,), "side": 16, "teacher": False}
    return [fabricate(folder / name, **small) for name in "ab"]


@pytest.mark.slow
def test_a_technique_planted_in_one_layer_is_where_equality_ends(small_checkpoint, tmp_path, capsys):
    """Two real runs: every operation before the layer is equal, the layer is the first that is not."""
    site = "transformer_blocks.2.attn.to_v"
    quick = ["sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a]", "seeds=[0]"]
    quick += ["latency.min_rounds=0", "latency.max_rounds=0", f"model.path={small_checkpoint}"]
    quick += ["probe.range.sites=[**]", "probe.range.ports=[in,out]"]
    rules = "_target_: precision_lab.techniques.quantized_weights.QuantizedWeights, "
    rules += f"rules: [{{sites: [{site}], bits: 4}}]"
    for name, technique in (("a", "{}"), ("b", f"{{four_bits: {{{rules}}}}}")):
        variant = f"+variants.planted={{dtype: bfloat16, technique: {technique}}}"
        assert main([*quick, variant, f"out={tmp_path / name}"]) == 0
    capsys.readouterr()
    assert main(["compare", f"runs=[{tmp_path / 'a'},{tmp_path / 'b'}]", f"out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    (found,) = json.loads((tmp_path / "out" / "summary.json").read_text())["beside"].values()
    first = {change["variant"]: change["first"] for change in found["changes"]}
    assert (first["reference"], first["baseline"]) == (None, None)
    assert (first["planted"]["site"], first["planted"]["before"]) == (site, f"{site} (in)")
    assert [each["what"] for each in found["configuration"]["planted"]] == ["techniques"]
    assert "its configuration differs: techniques none and four_bits" in said
    assert "0 of 1 results are equal to the bit" in said
