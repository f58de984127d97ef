"""The neighbours that a coding states, against the values that codes of the same group decode to."""

import numpy as np


def check_neighbours(coding, arrays, lowest, highest, group=16):
    """The values of two weights of a group, whose codes are next to each other, differ by the stated distances."""
    found = coding.neighbours(arrays)
    values = np.array(coding.decode(arrays), dtype=np.float64).reshape(-1, group)
    codes, below, above = (np.array(each).reshape(-1, group) for each in found[:3])
    rising = np.broadcast_to(np.array(found.rising), np.array(found.codes).shape).reshape(-1, group)
    assert (codes.min(), codes.max()) == (lowest, highest)
    for distance, direction in ((below, -1), (above, 1)):
        target = codes + direction * rising
        np.testing.assert_array_equal(np.isinf(distance), (target < lowest) | (target > highest))
        is_next = target[:, :, None] == codes[:, None, :]
        expected = direction * (values[:, None, :] - values[:, :, None])
        assert is_next.sum() > 1000
        wide = np.broadcast_to(distance[:, :, None], is_next.shape)
        atol = 3e-7 * np.abs(values).max()
        np.testing.assert_allclose(wide[is_next], expected[is_next], rtol=1e-6, atol=atol)
