"""The contribution of each block to the final residual stream.

A residual stream is the sum of its initial value and the output of each attention and each feed-forward. At its end,
the share of every summand is known exactly:

- `final_share`: <summand, final stream> / |final stream|^2 over all tokens and channels. The shares sum to 1 up to the
  rounding of the adds; a summand with a negative share was cancelled by others.
- `final_amax_share`: the summand at the token and channel where the final stream is largest, relative to that value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.observation import Observation, Position
from precision_lab.probes.base import ACTIVATIONS
from precision_lab.record.columns import Column

_Stream = tuple[str | None, int | None, str]
_Summand = tuple[Position, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Contributions:
    """Measures every residual stream, separately for each step and branch.

    sites: the modules outside blocks whose outputs are the initial streams, and the residual adds, which are called
    with (residual, gate, update). Several initial outputs of one stream are its tokens one after another. Holds the
    summands of one forward pass in fp32: the size of a stream times the number of adds plus 1.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("call",)
    adds: ClassVar[Sequence[Column]] = (
        Column("final_share", meaning="share of a summand in the final residual stream; all shares add up to 1"),
        Column("final_amax_share", meaning="share of a summand where the final residual stream is largest"),
    )

    def recorder(self) -> ContributionRecorder:
        return ContributionRecorder(self.sites, self.ports)


class ContributionRecorder:
    """Collects the summands of each stream until the next one begins."""

    table = ACTIVATIONS

    def __init__(self, sites: Sequence[str], ports: Sequence[str]):
        self.sites, self.ports = sites, ports
        self._rows: list[dict[str, Any]] = []
        self._summands: dict[_Stream, list[_Summand]] = defaultdict(list)
        self._final: dict[_Stream, npt.NDArray[Any]] = {}

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, output, inputs, _ in batch:
            stream = position.branch, position.step, position.stream
            begins = position.block is None
            if begins:
                self._finish()
                summand = to_numpy(output).astype(np.float32)
            else:
                _, gate, update = (to_numpy(x).astype(np.float32) for x in inputs)
                with np.errstate(invalid="ignore", over="ignore"):
                    summand = (gate[:, None] if gate.ndim == 2 else gate) * update
            self._summands[stream].append((position, summand))
            self._final[stream] = to_numpy(output)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each summand of the streams observed so far."""
        self._finish()
        return self._rows

    def _finish(self) -> None:
        """Measures the streams that have more than one summand, and releases them."""
        whole = [stream for stream, summands in self._summands.items() if len(summands) > 1]
        for stream in whole:
            final = self._final.pop(stream).astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # a stream that is not finite has no shares
                square = float(np.vdot(final, final))
                largest = int(np.abs(final).argmax())
                for position, summand in _placed(self._summands.pop(stream), final.shape):
                    share = float(np.vdot(summand.astype(np.float64), final)) / square if square else np.nan
                    peak = float(summand.reshape(-1)[largest]) / final.reshape(-1)[largest] if square else np.nan
                    self._rows.append({**position._asdict(), "final_share": share, "final_amax_share": peak})


def _placed(summands: list[_Summand], shape: tuple[int, ...]) -> Iterator[_Summand]:
    """The summands of a stream (B, N, D), those of some of its tokens with zeros for the others."""
    first = 0
    for position, summand in summands:
        tokens = summand.shape[1]
        if summand.shape != shape:
            summand = np.pad(summand, [(0, 0), (first, shape[1] - first - tokens), (0, 0)])
            first += tokens
        yield position, summand
