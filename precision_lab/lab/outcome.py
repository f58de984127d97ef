"""The outcome of a generation: its picture or last result, and where its first value that is not finite arose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.subject import Step
from precision_lab.numerics.nonfinite import all_finite, count_nonfinite

Origin = Callable[[int | None], Mapping[str, Any] | None]
"""From the step of the first value that is not finite: the row of `precision_lab.lab.origin.origin`."""

_WIDE = np.dtype(np.float64)


class Outcome:
    """Follows the steps of one generation."""

    def __init__(self) -> None:
        self.result: npt.NDArray[Any] | None = None
        self._num_nonfinite = 0
        self._bad_step: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether all results so far are finite."""
        return self._num_nonfinite == 0

    def step(self, number: int, step: Step) -> None:
        """Takes an evaluated step, in order."""
        self.result = to_numpy(step.result)
        bad = 0 if all_finite([self.result]) else sum(count_nonfinite(self.result))
        if bad and not self._num_nonfinite:
            self._bad_step = number
        self._num_nonfinite += bad

    def row(self, picture: npt.NDArray[Any] | None) -> dict[str, Any]:
        """The row of the table `generations`. picture: pixels, None without one."""
        if picture is not None:
            self._num_nonfinite += sum(count_nonfinite(picture))
        what = "result" if picture is None else "picture"
        values = self.result if picture is None else picture
        items = np.zeros(0) if values is None else values.reshape(-1, 1 if picture is None else values.shape[-1])
        counted = {"num_nonfinite": self._num_nonfinite, "is_constant": _are_equal(items)}
        return {"what": what, **counted, **_described(values)}

    def failure(
        self, watched: Mapping[str, Any] | None, activations: pd.DataFrame, origin: Origin
    ) -> dict[str, Any] | None:
        """The row of the table `nonfinite`, after `row`; None if every value was finite.

        watched: the first bad array of the streams. activations: what probes recorded. origin: called if a value was
        not finite. Where it finds nothing, the first array that was seen is named, and `inputs_finite` is null.
        """
        seen = _earliest(watched, _recorded(activations))
        if seen is None and not self._num_nonfinite:
            return None
        arose = origin(self._bad_step if seen is None else _step_of(seen))
        if arose is None:
            return dict(seen or {"step": self._bad_step})
        return {**arose, "order": seen["order"] if seen else None, "inputs_finite": True}


def _are_equal(items: npt.NDArray[Any]) -> bool:
    """Whether there are several items along the first axis, all equal."""
    return len(items) > 1 and bool((items == items[0]).all())


def _described(values: npt.NDArray[Any] | None) -> dict[str, Any]:
    """Extremes of the finite values and a digest of all bits."""
    if values is None or not values.size:
        return {}
    digest = hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()
    wide = values.astype(_WIDE)
    finite = wide[np.isfinite(wide)]
    extremes = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return {"least": extremes[0], "greatest": extremes[1], "digest": digest}


def _recorded(activations: pd.DataFrame) -> dict[str, Any] | None:
    """The first array in which a probe counted values that are not finite."""
    if not {"num_nan", "num_inf"} <= set(activations):
        return None
    bad = activations[(activations["num_nan"].fillna(0) + activations["num_inf"].fillna(0)) > 0]
    if bad.empty:
        return None
    first = bad.sort_values("order", kind="stable").iloc[0]
    return {name: None if pd.isna(first[name]) else first[name] for name in _PLACE if name in first}


_PLACE = (
    *("branch", "step", "sigma", "component", "site", "port", "stream", "block", "order"),
    *("dtype", "shape", "numel", "num_nan", "num_inf"),
)


def _earliest(*rows: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    found = [row for row in rows if row is not None]
    return min(found, key=lambda row: row["order"]) if found else None


def _step_of(row: Mapping[str, Any]) -> int | None:
    return None if row["step"] is None else int(row["step"])
