"""The slots of a run: how many there are, where, and whether each can take part."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from precision_lab.device.environment import backend, gpus
from precision_lab.device.sgemm import cores
from precision_lab.errors import InputError, first_line, nearest
from precision_lab.lab.engine import VISIBLE, Slot, Worker, WorkerLostError, check, here
from precision_lab.lab.local import Local
from precision_lab.lab.queues import QUEUES, started
from precision_lab.lab.spec import LOCAL, RunSpec
from precision_lab.lab.tasks import Order

if TYPE_CHECKING:
    from precision_lab.lab.plan import Plan
    from precision_lab.lab.remote import Remote

MOST = 4
"""Default maximum of slots on a CPU, if there are enough cores; a generation uses little more than one core."""

_WORTH_STEPS = 60
"""Minimum of denoising steps in a run for which starting another process saves time."""

_LARGEST_WEIGHTS = 256 << 20
"""Maximum size of the weights in bytes for several slots on a CPU by default, since each holds a copy."""


def workers(spec: RunSpec, steps: int, weight_bytes: int) -> int:
    """Number of slots on this machine: from the spec, or one per GPU, or one per CPU core, at most `MOST`, if that
    saves time.

    steps: the denoising steps of all generations; weight_bytes: the size of one copy of the model. Raises InputError
    for more slots than GPUs.
    """
    devices = gpus()
    if devices and (spec.workers or 1) > devices:
        raise InputError(f"workers is {spec.workers}, but MLX sees {devices} GPU{'s' * (devices > 1)}: one worker each")
    if spec.workers is not None:
        return spec.workers
    if devices:
        return min(devices, len(spec.cases))
    if weight_bytes > _LARGEST_WEIGHTS or steps < _WORTH_STEPS:
        return 1
    return min(cores(), MOST)


def opened(plan: Plan, order: Order) -> Sequence[Slot]:
    """The slots of a run. Raises InputError if one cannot take part."""
    spec = plan.spec
    expected = here(spec.source)
    if spec.engine == LOCAL:
        ids = _devices(plan.workers if order.build is not None else 1)
        others = [Local(order, expected, environment={VISIBLE: name} if name else {}) for name in ids[1:]]
        for number, other in enumerate(others, 2):
            other.name = f"worker {number} of this machine"
        return [Local(order, expected, plan.bench), *others]
    remote = _cluster(spec, order, lambda worker, name: check(worker, name, expected, plan.memory))
    try:
        _introduce(remote, spec.engine)
    except BaseException:
        for slot in remote:
            slot.close()  # and with the last, the jobs of a queue
        raise
    return remote


def _introduce(remote: Sequence[Remote], engine: str) -> None:
    """Asks the workers of a cluster what they are, and pins them. Raises InputError if one cannot take part."""
    for slot in remote:
        try:
            slot.introduce()
        except ImportError as error:
            raise InputError(
                f"worker {slot.name}: {first_line(error)}. Install there what is installed here"
            ) from error
        except InputError as error:
            raise InputError(f"worker {slot.name}: {error}") from error
        except WorkerLostError as error:
            raise InputError(f"engine={engine}: {error}") from error
    backends = {slot.worker.environment["backend"]: slot.name for slot in remote}
    if len(backends) > 1:
        (one, at), (other, elsewhere) = list(backends.items())[:2]
        raise InputError(f"worker {at} computes on {one} and worker {elsewhere} on {other}: use those of one kind")
    for slot, device in zip(remote, devices([slot.worker for slot in remote]), strict=True):
        slot.environment = device


def devices(workers: Sequence[Worker]) -> list[dict[str, str]]:
    """What pins each worker of a cluster to a GPU of its host of its own, unless it is pinned already.

    Raises InputError for more workers on a host than it has GPUs, since two models would share one.
    """
    there: Counter[str] = Counter()
    found: list[dict[str, str]] = []
    for worker in workers:
        if not worker.gpus or worker.is_pinned:
            found.append({})
            continue
        if there[worker.host] == worker.gpus:
            raise InputError(f"{worker.host} has {worker.gpus} GPUs and more workers: start one for each GPU")
        found.append({VISIBLE: str(there[worker.host])})
        there[worker.host] += 1
    return found


def _cluster(spec: RunSpec, order: Order, check: Callable[[Worker, str], None]) -> list[Remote]:
    """A slot for each worker of a cluster. Raises InputError if there is no cluster, or it has no workers."""
    from precision_lab.lab import cluster, remote

    engine = QUEUES.get(spec.engine, spec.engine)
    if "://" not in engine and "." not in engine:
        raise InputError(
            f"engine is {engine!r}, expected {LOCAL}, tcp://HOST:PORT or a queue. {nearest(engine, QUEUES)}"
        )
    try:
        client = cluster.connected(engine if "://" in engine else started(engine, spec.workers or 1))
        if client.cluster is not None:
            client.wait_for_workers(spec.workers or 1)
    except ImportError as error:
        raise InputError(f"engine={engine} needs {error.name}: pip install 'precision-lab[cluster]'") from error
    except OSError as error:
        raise InputError(f"engine={engine}: no scheduler answers there ({first_line(error)})") from error
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"engine={engine}: {first_line(error)}") from error
    there = len(cluster.addresses(client))
    if not there:
        raise InputError(f"engine={engine} has no workers: start some with `dask worker {engine}`")
    taken: dict[str, object] = {}
    return [remote.Remote(client, order, taken, check) for _ in range(min(spec.workers or there, there))]


def _devices(count: int) -> list[str]:
    """The value of CUDA_VISIBLE_DEVICES for each of `count` slots; empty where there are no GPUs to choose from."""
    if count == 1 or backend() != "cuda":
        return [""] * count
    visible = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return (visible or [str(number) for number in range(count)])[:count]
