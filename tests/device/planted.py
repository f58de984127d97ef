"""Operations in NumPy with known behaviour, which a probe must name."""

import numpy as np

from precision_lab.device.behaviour.storage import FLOAT32


def keep(x):
    return np.asarray(x, dtype=np.float64)


def running_sum(x, accumulate, lanes=1):
    """Sums each row with `lanes` interleaved running sums, then a running sum of those, rounding each step."""
    x = np.asarray(x, dtype=np.float64)
    padded = np.concatenate([x, np.zeros((len(x), -x.shape[1] % lanes))], axis=1).reshape(len(x), -1, lanes)
    partial = padded[:, 0]
    for step in range(1, padded.shape[1]):
        partial = accumulate(partial + padded[:, step])
    total = partial[:, 0]
    for lane in range(1, lanes):
        total = accumulate(total + partial[:, lane])
    return total


def pairwise_sum(x, accumulate):
    x = np.asarray(x, dtype=np.float64)
    while x.shape[1] > 1:
        x = np.concatenate([x, np.zeros((len(x), x.shape[1] % 2))], axis=1)
        x = accumulate(x[:, ::2] + x[:, 1::2])
    return x[:, 0]


def to_bits(bits):
    """A function that rounds to a significand of `bits` bits, as TF32 (11) rounds its inputs."""

    def rounded(x):
        _, exponent = np.frexp(np.abs(x))
        spacing = np.ldexp(1.0, exponent - bits)
        return np.rint(x / spacing) * spacing

    return rounded


def product(storage, factors=keep):
    """A product a @ b with rounded factors and an exact sum that is rounded once."""
    return lambda a, b: storage.round(factors(keep(a)) @ factors(keep(b)))


def split_product(storage, narrow):
    """A product a @ b that splits each factor into two narrower terms and drops the product of the second terms."""

    def multiply(a, b):
        high_a, high_b = narrow(keep(a)), narrow(keep(b))
        low_a, low_b = narrow(a - high_a), narrow(b - high_b)
        return storage.round(high_a @ high_b + high_a @ low_b + low_a @ high_b)

    return multiply


def softmax(storage, accumulate, exponent=keep):
    def call(x):
        e = exponent(np.exp(x - x.max(axis=-1, keepdims=True)))
        return storage.round(e / accumulate(e)[:, None])

    return call


def attention(storage, query=keep, scores=keep, probabilities=keep, unnormalised=keep):
    """softmax(scale q k^T) v with the requested rounding of each intermediate."""

    def call(q, k, v, scale):
        s = scores(query(q * scale) @ np.swapaxes(k, -1, -2))
        e = np.exp(s - s.max(axis=-1, keepdims=True))
        total = e.sum(axis=-1, keepdims=True)
        return storage.round(probabilities(unnormalised(e) / total) @ v)

    return call


def norm(storage, first=keep, second=keep, centre=True):
    def call(x, weight=1.0, bias=0.0):
        x = x - x.mean(axis=1, keepdims=True) if centre else x
        normal = x / np.sqrt((x**2).mean(axis=1, keepdims=True))
        return storage.round(second(first(normal) * weight) + bias)

    return call


def flushing(storage, function):
    """`function` on a device that flushes subnormal inputs and results to zero."""

    def flush(x):
        return np.where(np.abs(x) < storage.smallest_normal, 0.0, x)

    return lambda *arrays: flush(function(*(flush(a) for a in arrays)))


float32 = FLOAT32.round
