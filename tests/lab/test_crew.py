"""Parallel generations: each runs once, after its reference, on any worker, and the tables are the same."""

import random
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.lab.crew import Crew, workers
from precision_lab.lab.spec import REFERENCE, LatencySpec, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.model.weights import read_json
from precision_lab.record.tables import read
from tests.subjects import source

VARIANTS = [Variant(REFERENCE, "float32"), *(Variant(name, "bfloat16") for name in "abc")]
CASES = [Case(i, "a red circle", seed) for i in (0, 1) for seed in (0, 1)]


class Recorder:
    """Sleeps for a random time instead of generating, and records the worker, generation and time of each call."""

    def __init__(self, seed=0):
        self.made, self.finished = [], []
        self._lock, self._random = threading.Lock(), random.Random(seed)

    def maker(self, name):
        def make(generation):
            with self._lock:
                self.made.append((name, *generation))
                pause = self._random.random() * 0.004
            time.sleep(pause)

        return make

    def own(self):
        self.made.append(("own", None, None))


@pytest.mark.parametrize("helpers", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_generation_waits_for_every_reference_that_it_is_compared_with(helpers, seed):
    own = Variant("reference+a", "float32", settings={"steps": 2}, reference="reference+a")
    variants = [Variant(REFERENCE, "float32"), own, *(Variant(n, "bfloat16", reference=own.name) for n in "ab")]
    variants.append(Variant("c", "bfloat16"))
    seen = Recorder(seed)
    crew = Crew(variants, CASES, seen.finished.append)
    crew.work(seen.maker("first"), [seen.maker(f"helper {i}") for i in range(helpers)], seen.own)
    made = [(variant.name, case) for _, variant, case in seen.made if variant]
    assert len(made) == len(set(made)) == len(variants) * len(CASES)
    for case in CASES:
        order = [name for name, of in made if of == case]
        for variant in variants:
            assert all(order.index(needed) < order.index(variant.name) for needed in variant.needs)
    assert {who for who, variant, _ in seen.made if variant and variant.is_reference} == {"first"}


@pytest.mark.parametrize("helpers", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_everything_is_made_once_and_after_its_reference(helpers, seed):
    seen = Recorder(seed)
    crew = Crew(VARIANTS, CASES, seen.finished.append)
    crew.work(seen.maker("first"), [seen.maker(f"helper {i}") for i in range(helpers)], seen.own)
    generations = [(variant.name, case) for _, variant, case in seen.made if variant]
    assert sorted(generations, key=str) == sorted([(v.name, c) for v in VARIANTS for c in CASES], key=str)
    for case in CASES:
        order = [name for name, made in generations if made == case]
        assert order[0] == REFERENCE
    assert {who for who, variant, _ in seen.made if variant and variant.name == REFERENCE} == {"first"}
    assert {who for who, *_ in seen.made} >= {"own", "first"}
    assert any(who.startswith("helper") for who, *_ in seen.made)
    assert sorted(seen.finished, key=str) == sorted(CASES, key=str)
    references = [i for i, (_, variant, _) in enumerate(seen.made) if variant and variant.name == REFERENCE]
    assert max(references) < [who for who, *_ in seen.made].index("own")


def test_alone_a_case_is_finished_before_the_next():
    seen = Recorder()
    Crew(VARIANTS, CASES, seen.finished.append).work(seen.maker("first"), [], seen.own)
    assert [(v.name, c) for _, v, c in seen.made[:-1]] == [(v.name, c) for c in CASES for v in VARIANTS]
    assert seen.made[-1][0] == "own"
    assert seen.finished == CASES


@pytest.mark.parametrize("who", ["first", "helper"])
def test_what_one_raises_ends_the_work_of_all(who):
    seen = Recorder()

    def fails(generation):
        if generation.variant.name == "b":
            raise OSError(28, "No space left on device")
        seen.maker("x")(generation)

    first, helper = (fails if name == who else seen.maker("y") for name in ("first", "helper"))
    with pytest.raises(OSError, match="No space"):
        Crew(VARIANTS, CASES, seen.finished.append).work(first, [helper], seen.own)
    assert len(seen.made) <= len(VARIANTS) * len(CASES)


def test_an_interruption_does_not_wait_for_helpers():
    asked, release = threading.Event(), threading.Event()

    def stuck(_):
        asked.set()
        release.wait(20)

    def interrupted(generation):
        if generation.variant.name != REFERENCE:
            assert asked.wait(10)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Crew(VARIANTS, CASES, lambda case: None).work(interrupted, [stuck], lambda: None)
    assert time.monotonic() - started < 10
    release.set()


def spec(tmp_path, **changes):
    made = RunSpec(
        experiment="crew",
        source=source("nowhere"),
        settings={"steps": 6},
        prompts=["a red circle", "a green square"],
        seeds=[0, 1],
        variants=VARIANTS[1:],
        baseline="a",
        probes={},
        drift_sites=[],
        latency=LatencySpec(),
        out=tmp_path,
    )
    return replace(made, **changes)


def test_by_default_helpers_are_for_long_runs_of_small_models_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("precision_lab.lab.crew.backend", lambda: "cpu")
    monkeypatch.setattr("precision_lab.lab.crew.cores", lambda: 16)
    assert workers(spec(tmp_path), 72, 20 << 20) == 4
    assert workers(spec(tmp_path), 12, 20 << 20) == 1
    assert workers(spec(tmp_path), 72, 1 << 30) == 1
    assert workers(spec(tmp_path, workers=7), 72, 1 << 30) == 7
    monkeypatch.setattr("precision_lab.lab.crew.cores", lambda: 2)
    assert workers(spec(tmp_path), 72, 20 << 20) == 2
    monkeypatch.setattr("precision_lab.lab.crew.backend", lambda: "cuda")
    assert workers(spec(tmp_path), 72, 20 << 20) == 1


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "two"])
def test_a_wrong_number_is_an_error(tmp_path, wrong):
    with pytest.raises(InputError, match=r"workers is .*, expected null or a number"):
        spec(tmp_path, workers=wrong)


def test_two_processes_leave_the_tables_of_one(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write", lambda run: run.path / "report.html")
    runs = [tmp_path / name for name in ("one", "two")]
    for number, run in enumerate(runs, start=1):
        code = main(
            [
                *("+exp=ffn_scaling", f"model.path={small_checkpoint}", f"out={run}", f"workers={number}"),
                *("sampler.steps=1", "image.height=32", "image.width=48", "pinned.cases=null", "seeds=[0]"),
                *("prompts=[a red circle,two stars]", "latency.min_rounds=0", "latency.max_rounds=0"),
            ]
        )
        assert code == 0, capsys.readouterr().err
    for table in ("activations", "drift"):
        one, two = (read(run, table) for run in runs)
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    pictures = [{file.name: file.read_bytes() for file in (run / "images").iterdir()} for run in runs]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 8
    assert not (runs[1] / "reference").exists()
    assert [read_json(run / "manifest.json")["status"] for run in runs] == ["complete"] * 2
