"""The mutation check: mutants are what they say, the sample is fair, and verdicts are what happened."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from experiments.false_alarms.refactors import REFACTORS
from experiments.mutation import trial
from experiments.mutation.mutants import FILES, Mutant, all_mutants, mutants, sample
from experiments.mutation.operators import Edit
from experiments.mutation.table import markdown
from experiments.mutation.trial import Sandbox

ROOT = Path(__file__).resolve().parents[2]


@cache
def population_of(model):
    return all_mutants(ROOT, model)


@pytest.fixture
def population():
    return population_of("micro")


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name == "micro" else name for name in FILES])
def population_of_a_model(request):
    return request.param, population_of(request.param)


def test_every_mutant_is_another_program(population_of_a_model):
    model, population = population_of_a_model
    texts = {file: (ROOT / file).read_text() for file in FILES[model]}
    assert len(population) >= {"micro": 400, "micro_21": 200}[model]
    assert len({mutant.name for mutant in population}) == len(population)
    for mutant in population[::7]:
        mutated = ast.parse(mutant.applied(texts[mutant.file]))
        assert ast.dump(mutated) != ast.dump(ast.parse(texts[mutant.file]))
        assert {line[0] for line in mutant.diff(texts[mutant.file]).splitlines()} == {"-", "+"}


def test_all_files_and_operators_have_some(population_of_a_model):
    model, population = population_of_a_model
    assert {mutant.file for mutant in population} == set(FILES[model])
    assert min(Counter(mutant.operator for mutant in population).values()) >= {"micro": 3, "micro_21": 1}[model]


def test_every_file_that_runs_first_exists():
    for model, files in FILES.items():
        for file in files:
            for test in trial._PARITY[model].files(Path(file).stem):
                assert (ROOT / test).exists(), test


SOURCE = '''
"""A docstring with 1 + 1."""

class Module:
    """Another: x - y."""

    def __init__(self, dim: int, eps: float = 1e-6):
        self.linear = Linear(dim, 4 * dim)
        self._table = np.cos(dim)

    @lru_cache(maxsize=32)
    def __call__(self, x: Literal[3], weight: int | None = None) -> Literal[4]:
        if x < 1:
            raise InputError(f"{x + 1} is too small")
        assert x + 7
        return mx.sum(self.linear(x).astype(mx.float32), axis=-1) - weight
'''


def test_what_computes_is_mutated_and_what_does_not_is_left_alone():
    changes = {(m.operator, m.edit.text) for m in mutants("file.py", SOURCE)}
    assert changes == {
        ("constant", "0.01"),
        ("other_function", "np.sin"),
        ("other_function", "mx.mean"),
        ("dropped_call", "x"),
        ("dropped_cast", "self.linear(x)"),
        ("narrower_format", "mx.bfloat16"),
        ("axis", "-2"),
        ("arithmetic", " + "),
        ("dropped_term", "mx.sum(self.linear(x).astype(mx.float32), axis=-1)"),
        ("dropped_term", "weight"),
        ("another_eps", "1e-05"),
        (
            "evaluated_in_fp32",
            (
                "(mx.sum(self.linear(x.astype(mx.float32)).astype(mx.float32), axis=-1) - weight.astype(mx.float32))"
                ".astype(x.dtype)"
            ),
        ),
        ("rounded_intermediate", "(mx.sum(self.linear(x).astype(mx.float32), axis=-1)).astype(x.dtype)"),
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y = x.astype(mx.float32) * a", "y = x * a"),
        ("y = a * (b + c)", "y = (b + c)"),
        ("y = self.modulate(x, shift, scale)", "y = self.modulate(x, scale, shift)"),
        ("y = mx.fast.layer_norm(x, None, None, eps)", "y = mx.fast.rms_norm(x, None, eps)"),
        ("shift, scale = split(x)", "scale, shift = split(x)"),
        ("y = Streams(img=a(x), txt=b(z))", "y = Streams(img=b(z), txt=a(x))"),
        ("y = x[START:]", "y = x[START + 1:]"),
        ("y = np.arange(n) - n // 2", "y = np.arange(1, n + 1) - n // 2"),
        ("y = mx.concatenate([-b, a], axis=-1)", "y = mx.concatenate([b, a], axis=-1)"),
        ("y = x.transpose(0, 2, 1, 3)", "y = x.transpose(0, 2, 3, 1)"),
        ("y = 'é' if a is not None else b / c", "y = 'é' if a is not None else b * c"),
        ("y = (key <= query) & real", "y = (key < query) & real"),
        ("y = attend(q, k, v, mask=mask)", "y = attend(q, k, v, mask=None)"),
        ("y = 0.044715 * x", "y = 0.044677734375 * x"),
        ("y = mx.maximum(x, 1e-12)", "y = mx.maximum(x, 1e-11)"),
        (
            "class A:\n    def __init__(self):\n        self.n = RMSNorm(dim, eps)",
            "class A:\n    def __init__(self):\n        self.n = RMSNorm(dim, eps=1e-5)",
        ),
    ],
)
def test_the_mistakes_of_ports_are_among_them(before, after):
    assert after in {mutant.applied(before) for mutant in mutants("file.py", before)}


def test_the_sample_takes_from_every_stratum_in_turn(population):
    strata = {(m.file, m.operator) for m in population}
    chosen = sample(population, len(strata), seed=1)
    assert {(m.file, m.operator) for m in chosen} == strata
    assert chosen == sample(population, len(strata), seed=1)
    assert chosen != sample(population, len(strata), seed=2)
    assert chosen[:10] == sample(population, 10, seed=1), "a longer sample goes on where a shorter one ended"
    assert set(sample(population, 10**6, seed=0)) == set(population)


GATE = """
import json, pathlib, sys, time
from precision_lab.model.qwen_image.vae import VALUE

def main():
    out = pathlib.Path(next(a for a in sys.argv if a.startswith("out="))[4:])
    if VALUE == "slow":
        time.sleep(60)
    if VALUE == "mistake":
        print("No such site", file=sys.stderr)
        return 2
    if VALUE == "error":
        1 / 0
    wrong = VALUE == "seen"
    named = {"variant": "reference", "component": "vae", "site": "decoder", "port": "out", "metric": "deviation"}
    named["address"] = "vae:decoder (out.0)"
    out.mkdir()
    (out / "gate.json").write_text(json.dumps({"passed": not wrong, "violations": [named] * wrong}))
    return int(wrong)
"""
PARITY_TEST = """
from precision_lab.model.qwen_image.vae import VALUE

def test_parity():
    assert VALUE != "subtle"
"""


@pytest.fixture
def sandbox(tmp_path):
    """A program whose gate and parity test object to what VALUE says."""
    root = tmp_path / "root"
    for folder in ("precision_lab/model/qwen_image", "precision_lab/checkpoints", "conf", "tests/model"):
        (root / folder).mkdir(parents=True)
    (root / "precision_lab" / "__init__.py").touch()
    (root / "precision_lab" / "cli.py").write_text(GATE)
    (root / "precision_lab" / "report.py").touch()
    (root / "precision_lab" / "device").mkdir()
    (root / "precision_lab" / "device" / "blas.py").write_text("def preload(): pass")
    (root / "precision_lab" / "model" / "qwen_image" / "vae.py").write_text("VALUE = 'good'\n")
    for file in trial._PARITY["micro"].files("vae"):
        (root / file).write_text(PARITY_TEST)
    (root / "pyproject.toml").write_text("")
    (tmp_path / "copy").mkdir()
    return Sandbox(root, tmp_path / "copy", [], timeout=60)


@pytest.mark.parametrize(
    ("value", "by", "evidence"),
    [
        ("seen", trial.GATE, "vae:decoder deviation"),
        ("subtle", trial.PARITY, "tests/model/test_vae.py::test_parity"),
        ("mistake", trial.REFUSED, "No such site"),
        ("error", trial.STILLBORN, "ZeroDivisionError: division by zero"),
        ("slow", trial.TIMEOUT, "after 1 s"),
        ("equal", trial.SURVIVED, ""),
    ],
)
def test_verdicts(sandbox, monkeypatch, value, by, evidence):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no_such_plugin")  # the options of a user are not those of the trial
    file = "precision_lab/model/qwen_image/vae.py"
    sandbox.learn()
    sandbox.timeout = 1 if value == "slow" else 60
    verdict = sandbox.judge(Mutant(file, 1, 8, "constant", Edit(8, 14, repr(value))))
    assert (verdict.by, verdict.evidence) == (by, evidence)
    assert (sandbox.folder / file).read_text() == "VALUE = 'good'\n", "the next mutant starts from the plain code"


def test_a_gate_that_fails_the_plain_code_judges_nothing(sandbox):
    (sandbox.folder / "precision_lab" / "model" / "qwen_image" / "vae.py").write_text("VALUE = 'seen'\n")
    with pytest.raises(RuntimeError, match="does not pass the unchanged code"):
        sandbox.learn()


def test_the_table_counts_only_mutants_that_run():
    place = {
        "file": "precision_lab/model/qwen_image/vae.py",
        "line": 3,
        "operator": "sign",
        "diff": "- a | b\n+ a",
        "seconds": 1.0,
    }
    verdicts = [trial.GATE] * 6 + [trial.PARITY] * 3 + [trial.SURVIVED] + [trial.STILLBORN] * 5
    text = markdown([{**place, "by": by, "evidence": "norm_out"} for by in verdicts])
    assert text.startswith("10 mutants that run, 9 killed (90.0 %)")
    assert "5 raised at once" in text
    assert text.count("| vae.py:3 | sign | `- a \\| b`<br>`+ a` | norm_out | 1 |") == 10


def test_refactors_rewrite_what_is_there():
    texts = {refactor.file: (ROOT / refactor.file).read_text() for refactor in REFACTORS}
    assert len(REFACTORS) >= 20
    assert len({refactor.name for refactor in REFACTORS}) == len(REFACTORS)
    for refactor in REFACTORS:
        ast.parse(refactor.applied(texts[refactor.file]))
