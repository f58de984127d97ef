"""The error of one tensor, or one image, against a reference.

An undefined metric is NaN, with a one-word reason:

- `identical`: no element differs, so a signal-to-noise ratio has no noise;
- `zero_reference`, `zero_input`: the norm in a denominator is zero;
- `nonfinite`: some elements are NaN or infinite;
- `empty`: there are no elements; `too_small`: the image is smaller than the smallest window;
- `overflow`: the value itself exceeds float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError
from precision_lab.numerics.alpha import seen
from precision_lab.numerics.formats import Format, ulp

CHUNK = 1 << 13
"""Elements processed at a time: the float64 temporaries stay in cache, and BLAS sums this few on one thread."""


@dataclass(frozen=True)
class Metrics:
    """Values by name for a numeric table, and the reason for each value that is NaN."""

    values: Mapping[str, float | int]
    reasons: Mapping[str, str]

    def to_json(self) -> dict[str, float | int | str | None]:
        """The metrics as strict JSON: null for NaN, with an entry `<name>_reason`."""
        record: dict[str, float | int | str | None] = {}
        for name, value in self.values.items():
            record[name] = None if name in self.reasons else value
            if name in self.reasons:
                record[f"{name}_reason"] = self.reasons[name]
        return record


def _metrics(**results: float | int | str) -> Metrics:
    """Metrics from keyword arguments; each is a value, or the reason why it is undefined."""
    reasons = {k: v if isinstance(v, str) else "overflow" for k, v in results.items() if _undefined(v)}
    return Metrics({k: math.nan if isinstance(v, str) or k in reasons else v for k, v in results.items()}, reasons)


def _undefined(result: float | int | str) -> bool:
    return isinstance(result, str) or not math.isfinite(result)


# --- tensors ---------------------------------------------------------------------------------------------------------

COMPARED = ("rel_l2", "sqnr_db", "cosine", "max_abs_err", "mean_signed_rel_err", "num_nonfinite")
"""The metrics of `compare`, in the order of the drift table."""


def compare(x: npt.NDArray[Any], ref: npt.NDArray[Any]) -> Metrics:
    """The error of `x` against `ref`, real tensors of equal shape and any dtypes, evaluated in float64.

    - `rel_l2`: |x - ref| / |ref| (Euclidean norms of the flattened tensors); 0 where both are zero;
    - `sqnr_db`: 20 log10(|ref| / |x - ref|), higher is better;
    - `cosine`: <x, ref> / (|x| |ref|);
    - `max_abs_err`: the largest |x - ref|, in the unit of the tensors;
    - `mean_signed_rel_err`: the bias, sum(x - ref) / sum(|ref|). The mean error is divided by the mean magnitude: in a
      mean of element-wise relative errors, references near zero would dominate. 0 where both tensors are zero;
    - `num_nonfinite`: the number of positions where x or ref is not finite. If there are any, all other metrics are
      undefined.

    Raises InputError if the shapes differ.
    """
    _check_shapes(x, ref)
    num_nonfinite, amax = _range(x, ref)
    if num_nonfinite or not x.size:
        undefined: dict[str, int | str] = dict.fromkeys(COMPARED, "nonfinite" if num_nonfinite else "empty")
        return _metrics(**(undefined | {"num_nonfinite": num_nonfinite}))

    # dividing by a power of two near the largest magnitude is exact and keeps squares from overflowing
    scale = _power_of_two(amax)
    xx = rr = xr = ee = abs_r = signed_error = max_error = 0.0
    for chunk_x, chunk_ref in _chunk_pairs(x, ref):
        a, r = chunk_x / scale, chunk_ref / scale
        error = a - r
        xx += float(a.dot(a))
        rr += float(r.dot(r))
        xr += float(a.dot(r))
        ee += float(error.dot(error))
        abs_r += float(np.abs(r).sum())
        signed_error += float(error.sum())
        max_error = max(max_error, float(error.max()), -float(error.min()))

    results: dict[str, float | int | str] = {"max_abs_err": max_error * scale, "num_nonfinite": 0}
    if not ee:
        results |= {"rel_l2": 0.0, "sqnr_db": "identical", "mean_signed_rel_err": 0.0}
    elif not rr:
        results |= dict.fromkeys(("rel_l2", "sqnr_db", "mean_signed_rel_err"), "zero_reference")
    else:
        rel_l2 = math.sqrt(ee / rr)
        results |= {"rel_l2": rel_l2, "sqnr_db": -20 * math.log10(rel_l2), "mean_signed_rel_err": signed_error / abs_r}
    if xx and rr:
        results["cosine"] = min(1.0, max(-1.0, xr / math.sqrt(xx * rr)))
    else:
        results["cosine"] = "zero_input" if rr else "zero_reference"
    return _metrics(**{name: results[name] for name in COMPARED})


def kl_divergence(x: npt.NDArray[Any], ref: npt.NDArray[Any]) -> float:
    """Kullback-Leibler divergence KL(softmax(ref) || softmax(x)) in nats, the mean over rows; 0 means identical.

    x, ref: logits (..., N) of equal shape. Evaluated in float64; NaN if a logit is not finite or there are none. Raises
    InputError if the shapes differ.
    """
    _check_shapes(x, ref)
    if not x.size or not (np.isfinite(x).all() and np.isfinite(ref).all()):
        return math.nan
    logs = [_log_softmax(logits.reshape(-1, logits.shape[-1]).astype(np.float64)) for logits in (x, ref)]
    return float(np.mean(np.sum(np.exp(logs[1]) * (logs[1] - logs[0]), axis=-1)))


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def ulp_error_quantiles(x: npt.NDArray[Any], ref: npt.NDArray[Any], fmt: Format | str) -> Metrics:
    """`ulp_p50` and `ulp_p99`: quantiles of |x - ref| / ulp(ref), in units in the last place of `fmt`.

    If x is `ref` rounded to nearest in `fmt`, both are at most 0.5. Quantiles are interpolated linearly.

    Raises InputError if the shapes differ or for an unknown format name.
    """
    _check_shapes(x, ref)
    with np.errstate(invalid="ignore", over="ignore"):
        a, r = x.astype(np.float64), ref.astype(np.float64)
        errors = np.abs(a - r) / ulp(r, fmt)
    if not np.isfinite(a).all() or not np.isfinite(r).all():
        return _metrics(ulp_p50="nonfinite", ulp_p99="nonfinite")
    if not errors.size:
        return _metrics(ulp_p50="empty", ulp_p99="empty")
    p50, p99 = np.quantile(errors, (0.5, 0.99))
    return _metrics(ulp_p50=float(p50), ulp_p99=float(p99))


def _check_shapes(x: npt.NDArray[Any], ref: npt.NDArray[Any]) -> None:
    if x.shape != ref.shape:
        raise InputError(f"Cannot compare shape {x.shape} with a reference of shape {ref.shape}: expected equal shapes")


def _chunk_pairs(
    x: npt.NDArray[Any], ref: npt.NDArray[Any]
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    a, r = x.reshape(-1), ref.reshape(-1)
    for start in range(0, a.size, CHUNK):
        chunk = slice(start, start + CHUNK)
        with np.errstate(invalid="ignore"):  # a cast of a signalling NaN
            pair = a[chunk].astype(np.float64, copy=False), r[chunk].astype(np.float64, copy=False)
        yield pair


def _range(x: npt.NDArray[Any], ref: npt.NDArray[Any]) -> tuple[int, float]:
    """The number of positions where x or ref is not finite and, if it is zero, the largest magnitude in either."""
    num_nonfinite, amax = 0, 0.0
    for a, r in _chunk_pairs(x, ref):
        extremes = a.min(), a.max(), r.min(), r.max()  # NaN passes through
        if np.isfinite(extremes).all():
            amax = max(amax, *(abs(float(e)) for e in extremes))
        else:
            num_nonfinite += a.size - int(np.count_nonzero(np.isfinite(a) & np.isfinite(r)))
    return num_nonfinite, amax


def _power_of_two(amax: float) -> float:
    """The largest power of two not above `amax`; 1 if `amax` is 0."""
    return math.ldexp(1.0, math.frexp(amax)[1] - 1) if amax else 1.0


# --- images ----------------------------------------------------------------------------------------------------------


def compare_images(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> Metrics:
    """`psnr_db` and `ssim` of two (height, width, channels) uint8 images, with reasons for NaN; higher is better.

    RGBA images are compared by what is seen of them (see `numerics.alpha`).
    """
    image, ref = seen(image), seen(ref)
    psnr, similarity = psnr_db(image, ref), ssim(image, ref)
    return _metrics(
        psnr_db=("identical" if image.size else "empty") if math.isnan(psnr) else psnr,
        ssim="too_small" if math.isnan(similarity) else similarity,
    )


def psnr_db(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), of (height, width, channels) uint8 images.

    The squared errors are summed in integers. NaN for identical images. Raises InputError for other shapes or dtypes.
    """
    _check_images(image, ref)
    difference = image.astype(np.int64) - ref
    squares = int((difference * difference).sum())
    return 10 * math.log10(255**2 * image.size / squares) if squares else math.nan


def ssim(image: npt.NDArray[np.uint8], ref: npt.NDArray[np.uint8]) -> float:
    """Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of (height, width, channels) uint8 images.

    This is the mean over channels and over square windows of side 7, or the largest odd side that fits a smaller image;
    NaN for images under 3 pixels. Raises InputError for other shapes or dtypes.
    """
    from skimage.metrics import structural_similarity

    _check_images(image, ref)
    side = min(7, *image.shape[:2])
    window = side if side % 2 else side - 1
    if window < 3:
        return math.nan
    return float(structural_similarity(image, ref, win_size=window, channel_axis=-1, data_range=255))


def _check_images(image: npt.NDArray[Any], ref: npt.NDArray[Any]) -> None:
    _check_shapes(image, ref)
    for array in (image, ref):
        if array.ndim != 3 or array.dtype != np.uint8:
            raise InputError(
                f"Expected uint8 images of shape (height, width, channels), got {array.dtype.name} of {array.shape}"
            )
