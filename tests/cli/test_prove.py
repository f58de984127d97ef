"""`prove`: a technique's claim to preserve the function is put to the test, and a false one is an exit code."""

import textwrap

import pytest

from precision_lab.cli import main
from tests.spread import thinned

QUICK = ("draws=1",)


@pytest.fixture
def prove(small_checkpoint, capsys):
    def call(*overrides):
        code = main(["prove", f"model.path={small_checkpoint}", *QUICK, *overrides])
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def row(out, technique):
    return next(line.split() for line in out.splitlines() if line.startswith(f"{technique} "))


def test_an_exact_scaling_is_identical_and_the_naive_one_is_another_function(prove):
    code, out, err = prove("technique=[ffn_scaling_exact,ffn_scaling]")
    assert (code, err) == (0, "")
    assert "prove: ffn_scaling_exact, ffn_scaling: 1 draw of one step each" in out
    assert "6 evaluations. Nothing is written" in out
    assert "for this proof" in out
    assert row(out, "ffn_scaling_exact")[1:3] == ["yes", "identical"]
    assert row(out, "ffn_scaling")[1:5] == ["no", "another", "function", "output"]


def test_another_reference_is_refused(prove):
    code, _, err = prove("technique=[ffn_scaling]", "reference.dtype=bfloat16")
    assert code == 2
    assert "prove compares with the plain model in fp32" in err


def test_a_false_claim_is_exit_code_1(prove, tmp_path, monkeypatch):
    (tmp_path / "liar.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from typing import ClassVar

            from precision_lab import Wrapper


            class _Doubled(Wrapper):
                def __call__(self, x):
                    return 2 * self.inner(x)


            @dataclass(frozen=True)
            class Doubled:
                sites: tuple = ("transformer_blocks.1.img_mlp",)
                preserves_function: ClassVar[bool] = True
                composes: ClassVar[bool] = True

                def rewrite(self, site):
                    return _Doubled(site.module)
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = prove("+technique.doubled._target_=liar.Doubled")
    assert code == 1
    assert row(out, "doubled")[1:4] == ["yes", "another", "function"]


def test_the_techniques_of_an_experiment(prove):
    code, out, _ = prove("+exp=findings", "only=[fp32_norm_out,reordered]")
    assert code == 0
    assert row(out, "fp32_norm_out")[2] in ("identical", "holds")
    assert "together" not in out


@pytest.mark.parametrize(
    ("overrides", "message"),
    thinned(
        [
            ((), "prove needs techniques: technique=[NAME]"),
            (("technique=[ffn_scalign]",), "Did you mean ffn_scaling"),
            (("technique=[ffn_scaling]", "draws=0"), "draws is 0, expected a whole number of at least 1"),
            (("technique=[ffn_scaling]", "noise=[]"), "noise is [], expected patterns of linears"),
            (("technique=[ffn_scaling]", "noise=[nowhere]"), "matches nothing"),
            (
                (
                    "technique=[ffn_scaling]",
                    "+variants.other.technique.ffn_scaling._target_=precision_lab.techniques.ffn_scaling.FFNScaling",
                    "+variants.other.technique.ffn_scaling.sites=['**.img_mlp']",
                ),
                "Technique ffn_scaling has different settings in two variants",
            ),
            (("technique=[ffn_scaling]", "drwas=2"), "Unknown setting 'drwas'. Did you mean draws"),
        ],
        keep=4,
    ),
)
def test_mistakes(prove, overrides, message):
    code, out, err = prove(*overrides)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) <= 2
