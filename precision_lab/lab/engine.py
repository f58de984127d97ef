"""Where the tasks of a run are carried out: slots, each of which takes one task at a time."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from precision_lab import __version__
from precision_lab.device import memory
from precision_lab.device.environment import backend, environment, gpus, set_numeric_switches
from precision_lab.errors import InputError
from precision_lab.lab.bench import Advance
from precision_lab.lab.spec import ProcessSpec
from precision_lab.lab.subject import Source
from precision_lab.lab.tasks import Order, Task


@dataclass(frozen=True)
class Worker:
    """What a slot computes with, as it says itself.

    memory: in bytes, of the GPU if it has one. gpus: the CUDA GPUs that it could choose from. is_pinned:
    whether CUDA_VISIBLE_DEVICES chooses for it.
    """

    version: str
    host: str
    fingerprint: str
    memory: int
    environment: dict[str, Any]
    gpus: int = 0
    is_pinned: bool = False


class WorkerLostError(Exception):
    """The process that carried out a task ended before it. is_gone: whether the slot takes no more tasks."""

    def __init__(self, message: str, is_gone: bool = False):
        super().__init__(message)
        self.is_gone = is_gone


VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable that pins a process to GPUs."""


class Slot(Protocol):
    """A place for tasks: a process with its own copy of the weights, or several with different switches.

    name: for messages. reports_steps: whether `perform` calls `advance` for every step of a generation.
    shares_references: whether the arrays of references that another slot left can be read here.
    """

    name: str
    worker: Worker
    reports_steps: bool
    shares_references: bool

    def perform(self, process: ProcessSpec, task: Task, advance: Advance = ...) -> Any:
        """The result of a task under the switches `process`.

        Raises what the task raises, TaskError for an exception in another process, and WorkerLostError.
        """
        ...

    def begin(self) -> None:
        """Called once the run folder and `Order.marker` in it exist, before the first task."""
        ...

    def close(self) -> None:
        """Ends its processes, even during a task, which leaves nothing before it is complete."""
        ...


def here(source: Source) -> Worker:
    """This process as a worker. Raises InputError if there are no weights."""
    fingerprint = source.checkpoint.fingerprint
    count = gpus() if backend() == "cuda" else 0
    about = __version__, socket.gethostname(), fingerprint, memory.of_the_device(), environment()
    return Worker(*about, count, bool(os.environ.get(VISIBLE)))


def introduce(order: Order) -> Worker:
    """The process of a worker that has not computed yet. Raises InputError if the run is not possible there."""
    set_numeric_switches()
    return here(order.spec().source)


def check(worker: Worker, name: str, expected: Worker, needed: int) -> None:
    """Raises InputError that names the worker if it cannot take part in the run of `expected`.

    needed: bytes of memory for one copy of the weights and the largest case.
    """
    pairs = {
        "precision_lab": (worker.version, expected.version),
        "precision_lab's commit": (worker.environment["commit"], expected.environment["commit"]),
        "MLX": (worker.environment["mlx"], expected.environment["mlx"]),
    }
    for what, (there, here) in pairs.items():
        if there != here:
            raise InputError(f"worker {name} on {worker.host} has {what} {there}, expected {here} as here: install it")
    if worker.fingerprint != expected.fingerprint:
        raise InputError(
            f"worker {name} on {worker.host} finds another checkpoint, {worker.fingerprint[:12]} instead of "
            f"{expected.fingerprint[:12]}: copy the one of this machine to the same path"
        )
    if worker.memory < needed:
        raise InputError(
            f"worker {name} on {worker.host} has {worker.memory / 1e9:.1f} GB of memory, and a task needs "
            f"{needed / 1e9:.1f} GB. model.stream=true needs less"
        )
