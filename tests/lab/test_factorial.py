"""Factorial designs: their combinations, the names of the variants, and rejected combinations."""

from itertools import combinations

import numpy as np
import pytest
from hydra import compose
from omegaconf import open_dict

from precision_lab.analysis.factorial import designs
from precision_lab.cli import main
from precision_lab.cli.config import build_spec
from precision_lab.errors import InputError
from precision_lab.lab.factorial import combined, label, treatments
from tests.composing import configurations


def spec(*overrides):
    with configurations():
        return build_spec(compose("config", overrides=list(overrides)), [])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_full_factorial_has_every_combination_once(count):
    factors = [f"f{i}" for i in range(count)]
    runs = treatments(factors, {})
    assert runs[:4] == [(), ("f0",), ("f1",), ("f0", "f1")]
    assert set(runs) == {on for n in range(count + 1) for on in combinations(factors, n)}
    assert len(runs) == 2**count


@pytest.mark.parametrize(
    ("count", "generators", "free"),
    [
        (3, {"f2": ["f0", "f1"]}, 2),
        (5, {"f4": ["f0", "f1", "f2", "f3"]}, 4),
        (7, {"f4": ["f0", "f1", "f2"], "f5": ["f1", "f2", "f3"], "f6": ["f0", "f2", "f3"]}, 4),
    ],
    ids=str,
)
def test_a_fraction_holds_the_base_and_is_balanced(count, generators, free):
    factors = [f"f{i}" for i in range(count)]
    runs = treatments(factors, generators)
    assert runs[0] == ()
    assert len(set(runs)) == len(runs) == 2**free
    columns = np.array([[1] + [1 if name in on else -1 for name in factors] for on in runs])
    np.testing.assert_array_equal(columns.T @ columns, len(runs) * np.eye(count + 1))
    for name, sources in generators.items():
        assert all((name in on) == (len(set(sources) & set(on)) % 2 == 1) for on in runs)
    (design,) = designs([label("base", on) for on in runs])
    assert set(design.factors) == set(factors)


@pytest.mark.parametrize(
    ("factors", "generators", "said"),
    [
        (["a"], {}, "at least two"),
        (["a", "b+c"], {}, "joins the names"),
        (["a", "b"], {"c": ["a", "b"]}, "unknown factor 'c'"),
        (["a", "b", "c"], {"c": ["a"]}, "two different factors"),
        (["a", "b", "c"], {"c": ["a", "a"]}, "two different factors"),
        (["a", "b", "c"], {"c": ["a", "c"]}, "no factor without a generator"),
        ([f"f{i}" for i in range(7)], {}, "at most 64"),
    ],
)
def test_designs_that_cannot_be(factors, generators, said):
    with pytest.raises(InputError, match=said):
        treatments(factors, generators)


def test_a_technique_comes_once():
    factors = {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"z": 4}}
    assert combined({"w": 0}, factors, ["a", "c"]) == {"w": 0, "x": 1, "z": 4}
    with pytest.raises(InputError, match="technique x of factor b"):
        combined({}, factors, ["a", "b"])
    with pytest.raises(InputError, match="technique x of factor a"):
        combined({"x": 0}, factors, ["a"])


def test_variants_of_a_factorial_follow_their_base():
    built = spec(
        "+technique@factorial.factors=[fp32_norms,fp32_gates,fp32_rope]",
        "+factorial.generators={fp32_rope: [fp32_norms, fp32_gates]}",
        "factorial.base=half",
        "+variants.half={dtype: float16, expect: any}",
        "+technique@variants.half.technique=[fp32_residual]",
    )
    runs = {variant.name: variant for variant in built.variants}
    assert list(runs) == [
        "baseline",
        "half",
        "half+fp32_norms+fp32_rope",
        "half+fp32_gates+fp32_rope",
        "half+fp32_norms+fp32_gates",
    ]
    last = runs["half+fp32_norms+fp32_gates"]
    assert last.dtype == "float16"
    assert list(last.techniques) == ["fp32_residual", "fp32_norms", "fp32_gates"]


def test_a_factor_of_several_techniques_and_only_some_of_the_runs():
    built = spec(
        "+technique@factorial.factors.scaled=[draw_things_qwen_image]",
        "+technique@factorial.factors=[fp32_norms]",
        "only=[baseline,baseline+scaled+fp32_norms]",
    )
    last = built.variants[-1]
    assert len(built.variants) == 2
    assert list(last.techniques)[-1] == "fp32_norms"
    assert len(last.techniques) == 4


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["factorial.base=bsline"], "factorial.base: unknown variant 'bsline'"),
        (["+technique@variants.baseline.technique=[fp32_norms]"], "technique fp32_norms of factor fp32_norms"),
        (["+factorial.factors.x=1"], "factorial.factors.x is 1, expected techniques by name"),
    ],
    ids=["base", "twice", "kind"],
)
def test_mistakes(overrides, said):
    with pytest.raises(InputError, match=said):
        spec("+technique@factorial.factors=[fp32_norms,fp32_rope]", *overrides)


def test_a_name_that_is_taken():
    with configurations():
        config = compose("config", overrides=["+technique@factorial.factors=[fp32_norms,fp32_rope]"])
    with open_dict(config):
        config.variants["baseline+fp32_norms"] = {}
    with pytest.raises(InputError, match="already"):
        build_spec(config, [])


def test_techniques_that_conflict_refuse_before_anything_is_written(small_checkpoint, tmp_path, capsys):
    out = tmp_path / "run"
    factors = "+technique@factorial.factors=[chunked_attention,unfused_attention]"
    assert main([factors, f"model.path={small_checkpoint}", f"out={out}"]) == 2
    assert "both rewrite" in capsys.readouterr().err
    assert not out.exists()
