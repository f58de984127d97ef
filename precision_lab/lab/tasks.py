"""The tasks that a run hands to its workers, and the process that carries them out.

A task names what to do in the terms of the run's configuration, so it is small and can be sent anywhere. What it leaves
comes back as bytes, which the process that owns the run folder writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from precision_lab.errors import InputError
from precision_lab.lab import pinned
from precision_lab.lab.bench import REFERENCES, Advance, Bench, reference_path
from precision_lab.lab.failure import Failure, is_of_the_disk
from precision_lab.lab.latency import Sample
from precision_lab.lab.soundness import WeightCheck, unread_weights
from precision_lab.lab.spec import RunSpec
from precision_lab.lab.subject import Case
from precision_lab.record.files import File

Build = Callable[[str], RunSpec]
"""Makes a spec from the text of a configuration; importable by name, so that another process can call it."""


def silent(amount: float, label: str) -> None:
    """Takes no notice of progress."""


class Task(Protocol):
    """Something to do with the bench of a run."""

    @property
    def case(self) -> Case | None:
        """The case of the run that it belongs to, or None."""
        ...

    @property
    def references(self) -> tuple[Make, ...]:
        """The generations whose arrays it reads, which are made again where they are not kept."""
        ...

    def __call__(self, bench: Bench, advance: Advance) -> Any: ...


@dataclass(frozen=True)
class Make:
    """Runs one generation; returns the files that it leaves.

    needs: names of the references that it is compared with. shadowed: variants whose local error is measured during
    that of a reference.
    """

    variant: str
    case: Case
    needs: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[Make, ...]:
        return tuple(Make(name, self.case) for name in self.needs)

    def is_kept(self, root: Path) -> bool:
        """Whether the arrays of this reference are in a folder of references."""
        return reference_path(root, self.variant, self.case).exists()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        variants = {variant.name: variant for variant in bench.spec.all_variants}
        shadowed = [variants[name] for name in self.shadowed]
        return bench.make(variants[self.variant], self.case, shadowed, advance)


@dataclass(frozen=True)
class Pin:
    """Runs one generation of a pinned case; returns its part of the table. number: among those of the run."""

    number: int
    case: None = None
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> list[File]:
        return pinned.make(bench, pinned.generations(bench.spec)[self.number], advance)


@dataclass(frozen=True)
class Time:
    """Times one step of a variant."""

    variant: str
    case: None = None
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> Sample:
        return bench.time_step(next(v for v in bench.spec.variants if v.name == self.variant))


@dataclass(frozen=True)
class CheckWeights:
    """Looks for weights that are not finite; returns sentences on those, remarks, and the number left unread."""

    case: None = None
    references: tuple[Make, ...] = ()

    def __call__(self, bench: Bench, advance: Advance) -> tuple[list[str], list[str], int]:
        components = bench.components("float32")
        dtypes = {name: {variant.compute.of(name) for variant in bench.spec.variants} for name in components}
        check = WeightCheck(components, dtypes)
        return check.not_finite, check.beyond, unread_weights(components)


@dataclass(frozen=True)
class Order:
    """What a process must know to carry out the tasks of a run.

    root: the folder in which the arrays of references are kept. key: unlike that of any other run.
    """

    config: str
    build: Build | None
    root: Path
    key: str

    def spec(self) -> RunSpec:
        """The spec, in another process. Raises InputError if it cannot be made there."""
        assert self.build is not None, "a run in other processes needs a function that makes its spec"
        return self.build(self.config)

    @property
    def marker(self) -> Path:
        """A file by which a process sees whether the folder of references is the same as here."""
        return self.root / REFERENCES / self.key


class TaskError(Exception):
    """An exception in another process, as what was kept of it."""

    def __init__(self, failure: Failure):
        super().__init__(failure)
        self.failure = failure


@lru_cache(maxsize=1)
def _bench(order: Order) -> Bench:
    return Bench(order.spec(), order.root)


def perform(order: Order, task: Task) -> Any:
    """Carries out a task in this process. Raises InputError, OSError for a full disk, and TaskError otherwise."""
    bench = _bench(order)
    if task.case is not None and not order.marker.exists():  # a worker's own folder holds the references of one case
        kept = {reference_path(order.root, reference.name, task.case).stem for reference in bench.spec.references}
        for other in (order.root / REFERENCES).glob("*"):
            if other.stem not in kept:
                other.unlink(missing_ok=True)
    try:
        return task(bench, silent)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if is_of_the_disk(error, bench.root):
            raise
        raise TaskError(Failure.of(error, bench.layout)) from None
