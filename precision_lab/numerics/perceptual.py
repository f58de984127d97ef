"""Differences as a viewer sees them: FLIP, of two pictures that alternate (Andersson et al. 2020, doi:10.1145/3406183),
and LPIPS, the distance of the features of a network (Zhang et al. 2018, doi:10.1109/CVPR.2018.00068).

Both are packages of their authors, in extras of this one. LPIPS needs torch and downloads the weights of AlexNet.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, first_line

_WAITING = "OMP_WAIT_POLICY"

PIXELS_PER_DEGREE = 67.0
"""Of visual angle: a 0.7 m wide display of 3840 pixels at 0.7 m, FLIP's own default."""


def flip_map(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """FLIP of each pixel (height, width), from 0 (no visible difference) to 1, of sRGB pictures; lower is better.

    image, ref: (height, width, 3) of equal shape, or the seven channels of `numerics.alpha.seen`: the larger of the
    values over white and over black.
    """
    if image.shape[-1] != 3:
        return np.maximum(*(flip_map(image[..., part], ref[..., part]) for part in (slice(3), slice(3, 6))))
    pair = (np.ascontiguousarray(each, dtype=np.float32) / np.float32(255) for each in (ref, image))
    errors, _, _ = _flip()(*pair, "LDR", applyMagma=False, parameters={"ppd": PIXELS_PER_DEGREE})
    return np.asarray(errors, dtype=np.float32)[..., 0]


@cache
def _flip() -> Any:
    """FLIP's function. Its copy of OpenMP reads here how its threads wait: by default they spin, and beside another
    process that uses the cores a picture of 32 x 48 took 85 ms of processor time instead of 2."""
    policy = os.environ.get(_WAITING)
    os.environ.setdefault(_WAITING, "passive")
    try:
        from flip_evaluator import evaluate
    finally:
        if policy is None:
            del os.environ[_WAITING]
    return evaluate


def lpips(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> float:
    """LPIPS (AlexNet, version 0.1) of pictures as in `flip_map`, of seven channels the larger value; 0: the same.

    Raises InputError if it or the weights of AlexNet cannot be loaded, which are downloaded at the first use.
    """
    if image.shape[-1] != 3:
        return max(lpips(image[..., part], ref[..., part]) for part in (slice(3), slice(3, 6)))
    network, tensor = _network()
    return float(network(tensor(image), tensor(ref)).detach())


@cache
def _network() -> tuple[Any, Any]:
    """The network, and what makes its input of a picture. PyTorch is imported by their package alone."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it names arguments of torchvision that are deprecated
            from lpips import LPIPS, im2tensor

            return LPIPS(net="alex", verbose=False).eval(), im2tensor
    except (OSError, RuntimeError) as error:  # no network, a full disk, a torchvision for another torch
        why = f"lpips and the weights of AlexNet cannot be loaded: {first_line(error)}"
        raise InputError(f"{why}. Load them once with a network; what was run is kept, `report run=DIR`") from error


def flip(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> float:
    """The mean of `flip_map`."""
    return float(flip_map(image, ref).mean(dtype=np.float64))
