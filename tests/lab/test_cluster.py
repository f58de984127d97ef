"""Workers of a Dask cluster: the same tables as one process, whatever is killed, and refusals that name the worker."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import dask
import psutil
import pytest
from distributed import LocalCluster

from precision_lab import report
from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.lab import engine, slots, station
from precision_lab.model.weights import read_json
from precision_lab.record import tables
from tests.spread import thinned

TABLES = ("activations", "drift", "generations", "sketches")
SMALL = (
    *("+exp=ffn_scaling", "sampler.steps=1", "image.height=32", "image.width=48", "seeds=[0]", "only=[baseline,tf]"),
    *("prompts=[a red circle,two stars,a green square]", "+variants.tf.process.tf32=true"),
    *("drift.teacher.mode=full", "pinned.record=true", "pinned.steps=1"),
    *("latency.min_rounds=0", "latency.max_rounds=0"),
)
PLAIN = ("only=[baseline]",)


WITHOUT_FIGURES = """
import sys
from precision_lab import cli, report
report.write = lambda run, beside=None: run.path
"""


def small(args):
    """The settings of the small experiment but those that the arguments give."""
    given = {argument.split("=")[0] for argument in args}
    return [each for each in SMALL if each.split("=")[0] not in given]


def start(workers):
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=50)


@pytest.fixture(scope="module")
def cluster():
    with start(2) as started:
        yield started


@pytest.fixture
def call(small_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the small experiment into tmp_path/NAME; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")

    def called(name, *args):
        code = main([*small(args), f"model.path={small_checkpoint}", f"out={tmp_path / name}", *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


def made_alone(small_checkpoint, run, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda run, beside=None: run.path / "report.html")
        assert main([*small(args), f"model.path={small_checkpoint}", f"out={run}", *args]) == 0
    return run


@pytest.fixture(scope="module")
def alone(small_checkpoint, tmp_path_factory):
    """The run of one process."""
    return made_alone(small_checkpoint, tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def plain(small_checkpoint, tmp_path_factory):
    """The same without the variant that needs processes of its own."""
    return made_alone(small_checkpoint, tmp_path_factory.mktemp("plain") / "run", *PLAIN)


def assert_same(run, alone):
    for table in TABLES:
        assert (run / f"{table}.parquet").read_bytes() == (alone / f"{table}.parquet").read_bytes(), table
    for folder in ("images", "results"):
        files = [{file.name: file.read_bytes() for file in (path / folder).iterdir()} for path in (run, alone)]
        assert files[0] == files[1]
    assert read_json(run / "manifest.json")["status"] == "complete"
    assert not (run / "reference").exists()
    assert not list(run.rglob("*.tmp"))


def test_a_table_of_every_kind_is_compared(plain):
    assert all(len(tables.read(plain, table)) for table in TABLES)
    drift = tables.read(plain, "drift")
    assert set(drift["mode"]) == {"free", "teacher"}


def test_the_tables_of_plain_variants_are_those_of_one_process(call, cluster, plain, tmp_path):
    """Two workers; each starts one process, where the slow test below starts two."""
    code, _, err = call("run", f"engine={cluster.scheduler_address}", "workers=2", *PLAIN)
    assert code == 0, err
    assert_same(tmp_path / "run", plain)
    made = read_json(tmp_path / "run" / "manifest.json")["workers"]
    parts = [part for worker in made for part in worker["parts"]]
    assert len(parts) == len(set(parts)) == 3 * 2 + 3
    assert all(worker["name"].startswith("tcp://") and worker["mlx"] and worker["device"] for worker in made)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_the_tables_are_those_of_one_process(call, cluster, alone, tmp_path, number):
    code, _, err = call("run", f"engine={cluster.scheduler_address}", f"workers={number}")
    assert code == 0, err
    assert_same(tmp_path / "run", alone)
    made = read_json(tmp_path / "run" / "manifest.json")["workers"]
    assert 1 <= len(made) <= number
    parts = [part for worker in made for part in worker["parts"]]
    assert len(parts) == len(set(parts)) == 3 * 3 + 3
    assert all(worker["name"].startswith("tcp://") and worker["mlx"] and worker["device"] for worker in made)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_so_are_those_of_several_processes_of_this_machine(call, alone, tmp_path, number):
    code, _, err = call("run", f"workers={number}")
    assert code == 0, err
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_references_are_made_again_where_the_run_folder_is_not_seen(call, cluster, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(station, "sees", lambda order: False)
    code, _, err = call("run", f"engine={cluster.scheduler_address}")
    assert code == 0, err
    assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_steps_are_timed_by_one_worker(call, cluster, tmp_path):
    rounds = ("latency.min_rounds=2", "latency.max_rounds=2", "latency.warmup_rounds=0")
    code, _, err = call("run", f"engine={cluster.scheduler_address}", *rounds)
    assert code == 0, err
    latency = tables.read(tmp_path / "run", "latency")
    assert sorted(latency["variant"]) == ["baseline", "baseline", "tf", "tf"]


def workers_of(started):
    """The processes of Dask's workers that are there, and the processes that they started for tasks."""
    dask = [psutil.Process(worker.pid) for worker in started.workers.values()]
    tasks = [child for process in dask for child in children(process) if "spawn_main" in " ".join(child.cmdline())]
    return dask, tasks


def children(process):
    with suppress(psutil.NoSuchProcess):  # a zombie is one, too
        return [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]
    return []


def running(small_checkpoint, folder, *args):
    """The experiment in a process of its own."""
    arguments = [*SMALL, f"model.path={small_checkpoint}", f"out={folder}", *args]
    program = f"{WITHOUT_FIGURES}if __name__ == '__main__':\n    sys.exit(cli.main({arguments!r}))\n"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL)


class TestRefusals:
    def refused(self, call, tmp_path, *args):
        code, _, err = call("run", *args)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()
        return err

    def test_no_scheduler(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr("precision_lab.lab.cluster.PATIENCE", 1.0)
        err = self.refused(call, tmp_path, "engine=tcp://127.0.0.1:9")
        assert "engine=tcp://127.0.0.1:9: no scheduler answers there" in err

    @pytest.mark.parametrize(
        ("given", "said"),
        thinned(
            [
                ("sulrm", "engine is 'sulrm', expected local, tcp://HOST:PORT or a queue. Did you mean slurm"),
                (
                    "dask_jobqueue.SlurmCluster",
                    "engine=dask_jobqueue.SlurmCluster: module 'dask_jobqueue' has no attribute",
                ),
                ("nowhere.Cluster", "engine=nowhere.Cluster needs nowhere"),
                ("''", "engine is ''"),
            ],
            keep=2,
        ),
    )
    def test_no_such_engine(self, call, tmp_path, given, said):
        assert said in self.refused(call, tmp_path, f"engine={given}")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({}, "engine=dask_jobqueue.SLURMCluster: You must specify how much cores and memory"),
            ({"cores": 1, "memory": "1GB"}, "there is no sbatch on this machine, which submits jobs"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a cluster that half began
    def test_a_batch_system_that_is_not_there(self, call, tmp_path, settings, said):
        with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in settings.items()}):
            assert said in self.refused(call, tmp_path, "engine=slurm")

    def test_no_workers(self, call, tmp_path):
        with start(0) as empty:
            err = self.refused(call, tmp_path, f"engine={empty.scheduler_address}")
        assert f"engine={empty.scheduler_address} has no workers: start some with `dask worker" in err

    @pytest.mark.parametrize(
        ("changes", "said"),
        thinned(
            [
                ({"version": "0.0.9"}, "has precision_lab 0.1.0, expected 0.0.9 as here: install it"),
                ({"fingerprint": "abc"}, "finds another checkpoint, "),
            ],
            keep=1,
        ),
    )
    def test_workers_that_differ(self, call, cluster, tmp_path, monkeypatch, changes, said):
        here = slots.here
        monkeypatch.setattr(slots, "here", lambda source: replace(here(source), **changes))
        err = self.refused(call, tmp_path, f"engine={cluster.scheduler_address}")
        assert err.startswith("worker tcp://127.0.0.1:")
        assert said in err

    def test_another_version_of_mlx(self, call, cluster, tmp_path, monkeypatch):
        here = slots.here

        def other(source):
            worker = here(source)
            return replace(worker, environment={**worker.environment, "mlx": "0.1.2"})

        monkeypatch.setattr(slots, "here", other)
        assert "expected 0.1.2 as here" in self.refused(call, tmp_path, f"engine={cluster.scheduler_address}")

    def test_a_task_too_large(self, call, cluster, tmp_path, monkeypatch):
        check = engine.check
        monkeypatch.setattr(slots, "check", lambda worker, name, here, needed: check(worker, name, here, 1 << 50))
        err = self.refused(call, tmp_path, f"engine={cluster.scheduler_address}")
        assert "GB of memory, and a task needs 1125899.9 GB. model.stream=true needs less" in err

    def test_a_checkpoint_that_is_only_here(self, call, cluster, tmp_path, small_checkpoint, monkeypatch):
        monkeypatch.chdir(small_checkpoint.parent)
        err = self.refused(call, tmp_path, f"engine={cluster.scheduler_address}", f"model.path={small_checkpoint.name}")
        assert err.startswith("worker tcp://127.0.0.1:")
        assert small_checkpoint.name in err

    def test_a_gate_is_judged_on_this_machine(self, cluster, tmp_path, capsys):
        assert main(["gate", f"engine={cluster.scheduler_address}", f"out={tmp_path / 'run'}"]) == 2
        assert "gate: engine is tcp://" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_workers_of_one_host_are_pinned_to_a_gpu_each():
    made = engine.Worker("1", "a", "f", 80 << 30, {}, gpus=2)
    other, pinned, mac = replace(made, host="b", gpus=1), replace(made, is_pinned=True), replace(made, gpus=0)
    ids = [device.get(engine.VISIBLE) for device in slots.devices([made, other, pinned, made, mac, pinned])]
    assert ids == ["0", "0", None, "1", None, None]
    with pytest.raises(InputError, match="a has 2 GPUs and more workers: start one for each GPU"):
        slots.devices([made, made, made])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["task", "worker"])
def test_a_killed_process_is_replaced(small_checkpoint, alone, tmp_path, victim):
    with start(2) as started:
        run = tmp_path / "run"
        driver = running(small_checkpoint, run, f"engine={started.scheduler_address}")
        wait_for(lambda: list(run.glob("drift/part-*")), 60)
        dask, tasks = workers_of(started)
        (tasks if victim == "task" else dask)[0].kill()
        assert driver.wait(120) == 0
    assert_same(run, alone)


@pytest.mark.slow
def test_a_worker_that_is_stopped_for_a_while_goes_on(small_checkpoint, alone, tmp_path):
    with start(1) as started:
        run = tmp_path / "run"
        driver = running(small_checkpoint, run, f"engine={started.scheduler_address}")
        wait_for(lambda: list(run.glob("drift/part-*")), 60)
        stopped = [process for group in workers_of(started) for process in group]
        for process in stopped:
            process.suspend()
        time.sleep(65)
        for process in stopped:
            process.resume()
        assert driver.wait(120) == 0
    assert_same(run, alone)


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_lost_when_anything_is_killed_at_any_time(small_checkpoint, alone, tmp_path, seed):
    """Kills the driver, a worker of Dask or a process of a task, of a cluster or of this machine; then continues."""
    rng = random.Random(seed)
    victim = rng.choice(["driver", "driver", "worker", "task"])
    run = tmp_path / "run"
    with start(2) as started:
        where = [f"engine={started.scheduler_address}"] if victim == "worker" or rng.random() < 0.6 else ["workers=3"]
        driver = running(small_checkpoint, run, *where)
        time.sleep(rng.uniform(3.0, 9.0))
        if victim == "driver":
            driver.kill()
        else:
            dask, tasks = workers_of(started)
            own = [child for child in children(psutil.Process(driver.pid)) if "spawn_main" in " ".join(child.cmdline())]
            for process in rng.sample(
                victims := (dask if victim == "worker" else [*tasks, *own]), min(1, len(victims))
            ):
                process.kill()
        code = driver.wait(180)
        complete = (run / "manifest.json").exists() and read_json(run / "manifest.json")["status"] == "complete"
        assert complete or code != 0  # a driver may be killed between its last table and its end
        if not complete:
            resume = ["resume=true"] if (run / "manifest.json").exists() else []
            assert running(small_checkpoint, run, *where, *resume).wait(180) == 0
    assert_same(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_scheduler_that_restarts_ends_a_run_which_is_then_continued(small_checkpoint, alone, tmp_path, seed):
    rng, run = random.Random(100 + seed), tmp_path / "run"
    with start(2) as first:
        driver = running(small_checkpoint, run, f"engine={first.scheduler_address}")
        time.sleep(rng.uniform(3.0, 9.0))
    code = driver.wait(180)
    complete = (run / "manifest.json").exists() and read_json(run / "manifest.json")["status"] == "complete"
    assert code in (0, 2)
    assert (code == 0) == complete
    if not complete:
        resume = ["resume=true"] if (run / "manifest.json").exists() else []
        with start(2) as second:
            assert running(small_checkpoint, run, f"engine={second.scheduler_address}", *resume).wait(180) == 0
    assert_same(run, alone)
