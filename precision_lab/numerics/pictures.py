"""Measures of a picture beside its reference, named after what people complain about: grain, grids, shifts, a look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.alpha import seen
from precision_lab.numerics.displacement import RESOLUTION, displacement
from precision_lab.numerics.flat import NO_FLAT_AREA, Area, colour_shift, flat_area, grain
from precision_lab.numerics.grid import PERIODS, TOO_SMALL, grid_energy
from precision_lab.numerics.perceptual import flip, lpips

Pixels = npt.NDArray[np.uint8]


class Pair:
    """A picture and its reference (height, width, channels), by what is seen of them; what measures share is kept."""

    def __init__(self, image: Pixels, ref: Pixels):
        self.image, self.ref = seen(image), seen(ref)

    @cached_property
    def area(self) -> Area:
        return flat_area(self.ref)

    @cached_property
    def grid(self) -> dict[int, float | str]:
        return grid_energy(self.image, self.ref)


@dataclass(frozen=True)
class PictureMeasure:
    """A number of a pair of pictures.

    measure: the number, or why there is none. unit: of the number. least: what smaller numbers count as in a claim,
    whose ratios allow no zero. of_reference: whether the reference has one by itself. extra: that of this package which
    it needs, and module: what that installs. on_request: whether it is measured only where a claim names it.
    """

    measure: Callable[[Pair], float | str]
    unit: str = ""
    least: float = 0.0
    of_reference: bool = False
    extra: str = ""
    module: str = ""
    on_request: bool = False

    @property
    def is_installed(self) -> bool:
        """Whether the module is there, which is not imported."""
        return not self.module or find_spec(self.module) is not None


OF_THE_REFERENCE = (NO_FLAT_AREA, TOO_SMALL)
"""Reasons that follow from the reference's picture alone: such a case says nothing about any variant."""

MEASURES: Mapping[str, PictureMeasure] = {
    "displacement": PictureMeasure(lambda pair: displacement(pair.image, pair.ref), "pixels", RESOLUTION),
    "flat_grain": PictureMeasure(lambda pair: grain(pair.image, pair.area), "levels of 255", 12**-0.5, True),
    "flat_white_drift": PictureMeasure(
        lambda pair: colour_shift(pair.image, pair.ref, pair.area), "levels of 255", 0.01
    ),
    "flip": PictureMeasure(lambda pair: flip(pair.image, pair.ref), least=1e-5, extra="flip", module="flip_evaluator"),
    **{
        f"grid_{period}": PictureMeasure(lambda pair, period=period: pair.grid[period])  # type: ignore[misc]
        for period in PERIODS
    },
    "lpips": PictureMeasure(
        lambda pair: lpips(pair.image, pair.ref), least=1e-5, extra="lpips", module="lpips", on_request=True
    ),
}
"""By name; lower is better for each. Grain below that of rounding to 8 bits counts as that."""
