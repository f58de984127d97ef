"""The schedule of a run's tasks: each is done once, after its references, in any slot, and the tables are the same."""

import random
import threading
import time
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from precision_lab import report
from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.lab.engine import WorkerLostError
from precision_lab.lab.measures import LatencySpec
from precision_lab.lab.schedule import MOST_ATTEMPTS, Job, Schedule
from precision_lab.lab.slots import workers
from precision_lab.lab.spec import REFERENCE, RunSpec, Variant
from precision_lab.lab.subject import Case
from precision_lab.lab.tasks import Make, Pin
from precision_lab.model.weights import read_json
from precision_lab.record.tables import read
from tests.subjects import source

VARIANTS = [Variant(REFERENCE, "float32"), *(Variant(name, "bfloat16") for name in "abcd")]
CASES = [Case(i, "a red circle", seed) for i in (0, 1) for seed in (0, 1)]


class Slot:
    """Nothing but a name; what it does is up to `Work.carry`."""

    def __init__(self, name, shares_references=True):
        self.name, self.shares_references = name, shares_references


class Work:
    """The jobs of a run, which sleep for a random time. loses(slot, job): an exception to raise, or None."""

    def __init__(self, variants=VARIANTS, pins=2, seed=0, loses=lambda slot, job: None):
        self.jobs = [Job(v, case, Make(v.name, case), v.name) for case in CASES for v in variants]
        self.jobs += [Job(VARIANTS[0], None, Pin(i), f"pin {i}") for i in range(pins)]
        self.begun, self.made, self.lost, self.finished = [], [], [], []
        self._lock, self._random, self._loses = threading.Lock(), random.Random(seed), loses
        self.schedule = Schedule(self.jobs, self.carry, lambda job, error: self.lost.append(job), self.finished.append)

    def carry(self, slot, job):
        with self._lock:
            self.begun.append((slot.name, job))
            pause, error = self._random.random() * 0.004, self._loses(slot, job)
        time.sleep(pause)
        if error is not None:
            raise error
        with self._lock:
            self.made.append((slot.name, job))

    def work(self, *slots):
        self.schedule.work(slots or [Slot("alone")])
        return self

    def cases_of(self, name):
        return [job.case for slot, job in self.made if slot == name and job.case is not None]


def slots(count, **about):
    return [Slot(f"slot {number}", **about) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_everything_is_done_once_and_after_every_reference_that_it_is_compared_with(count, shares, seed):
    own = Variant("reference+a", "float32", settings={"steps": 2}, reference="reference+a")
    variants = [Variant(REFERENCE, "float32"), own, *(Variant(n, "bfloat16", reference=own.name) for n in "ab")]
    variants.append(Variant("c", "bfloat16"))
    work = Work(variants, seed=seed).work(*slots(count, shares_references=shares))
    assert Counter(job for _, job in work.made) == Counter(work.jobs)
    for case in CASES:
        order = [job.variant.name for _, job in work.made if job.case == case]
        for variant in variants:
            assert all(order.index(needed) < order.index(variant.name) for needed in variant.needs)
    assert Counter(work.finished) == Counter(CASES)


def test_alone_a_case_is_finished_before_the_next():
    work = Work().work()
    assert [job for _, job in work.made] == work.jobs
    assert work.finished == CASES


@pytest.mark.parametrize("seed", range(5))
def test_a_slot_that_cannot_read_the_references_of_others_keeps_to_its_own_cases(seed):
    two = VARIANTS[:3]  # two generations that wait are not worth another reference
    work = Work(two, pins=0, seed=seed).work(*slots(2, shares_references=False))
    where = {case: {slot for slot, job in work.made if job.case == case} for case in CASES}
    assert all(len(names) == 1 for names in where.values())
    assert {name for names in where.values() for name in names} == {"slot 0", "slot 1"}


@pytest.mark.parametrize("seed", range(3))
def test_a_case_of_a_slot_that_is_gone_is_finished_by_one_that_cannot_read_its_references(seed):
    def loses(slot, job):
        return WorkerLostError("gone", is_gone=True) if slot.name == "slot 0" and job.part == "a" else None

    work = Work(VARIANTS[:3], pins=0, seed=seed, loses=loses).work(*slots(2, shares_references=False))
    assert Counter(job for _, job in work.made) == Counter(work.jobs)


def test_an_idle_slot_helps_with_the_last_case():
    only = [job for job in Work().jobs if job.case == CASES[0]]
    work = Work()
    work.schedule._waiting[:] = only
    work.work(*slots(3))
    assert len({slot for slot, _ in work.made}) == 3


@pytest.mark.parametrize("which", [0, 1])
def test_what_one_raises_ends_the_work_of_all(which):
    def fails(slot, job):
        return OSError(28, "No space left on device") if slot.name == f"slot {which}" and job.part == "b" else None

    work = Work(loses=fails)
    with pytest.raises(OSError, match="No space"):
        work.work(*slots(2))
    assert len(work.made) < len(work.jobs)


def test_an_interruption_does_not_wait_for_other_slots():
    asked, release = threading.Event(), threading.Event()

    def carry(slot, job):
        if slot.name == "slot 1":
            asked.set()
            release.wait(20)
        elif not job.variant.is_reference:
            assert asked.wait(10)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Schedule(Work().jobs, carry, lambda *_: None, lambda _: None).work(slots(2))
    assert time.monotonic() - started < 10
    release.set()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_lost_job_is_tried_again_and_one_that_ends_every_process_is_given_up(count, seed):
    rng = random.Random(seed)
    chosen = rng.sample(range(len(Work().jobs)), 6)

    def loses(slot, job):
        number = work.jobs.index(job)
        times = sum(other is job for _, other in work.begun)
        always, once = chosen[:2], chosen[2:]
        return WorkerLostError("gone") if number in always or (number in once and times == 1) else None

    work = Work(seed=seed, loses=loses)
    work.work(*slots(count))
    given_up = {work.jobs[number] for number in chosen[:2]}
    assert set(work.lost) == given_up
    assert Counter(job for _, job in work.made) == Counter(set(work.jobs) - given_up)
    times = Counter(job for _, job in work.begun)
    assert all(times[job] == MOST_ATTEMPTS for job in given_up)
    assert all(times[work.jobs[number]] == 2 for number in chosen[2:])


def test_the_jobs_of_a_slot_that_is_gone_go_to_the_others():
    work = Work(loses=lambda slot, job: WorkerLostError("gone", is_gone=True) if slot.name == "slot 0" else None)
    work.work(*slots(3))
    assert Counter(job for _, job in work.made) == Counter(work.jobs)
    assert sum(slot == "slot 0" for slot, _ in work.begun) == 1
    alone = Work(loses=lambda slot, job: WorkerLostError("gone", is_gone=True))
    with pytest.raises(WorkerLostError, match="no worker is left"):
        alone.work(*slots(2))
    assert not alone.made


def spec(tmp_path, **changes):
    made = RunSpec(
        experiment="schedule",
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
    monkeypatch.setattr("precision_lab.lab.slots.gpus", lambda: 0)
    monkeypatch.setattr("precision_lab.lab.slots.MOST", 4)  # which tests set to 1
    monkeypatch.setattr("precision_lab.lab.slots.cores", lambda: 16)
    assert workers(spec(tmp_path), 72, 20 << 20) == 4
    assert workers(spec(tmp_path), 12, 20 << 20) == 1
    assert workers(spec(tmp_path), 72, 1 << 30) == 1
    assert workers(spec(tmp_path, workers=7), 72, 1 << 30) == 7
    monkeypatch.setattr("precision_lab.lab.slots.cores", lambda: 2)
    assert workers(spec(tmp_path), 72, 20 << 20) == 2
    for number, expected in ((1, 1), (2, 2), (8, 4)):  # there are four cases
        monkeypatch.setattr("precision_lab.lab.slots.gpus", lambda number=number: number)
        assert workers(spec(tmp_path), 72, 40 << 30) == expected
    assert workers(spec(tmp_path, workers=8), 72, 40 << 30) == 8
    monkeypatch.setattr("precision_lab.lab.slots.gpus", lambda: 2)
    with pytest.raises(InputError, match="workers is 3, but MLX sees 2 GPUs: one worker each"):
        workers(spec(tmp_path, workers=3), 72, 40 << 30)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "two"])
def test_a_wrong_number_is_an_error(tmp_path, wrong):
    with pytest.raises(InputError, match=r"workers is .*, expected null or a number"):
        spec(tmp_path, workers=wrong)


def test_two_processes_leave_the_tables_of_one(small_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")
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
