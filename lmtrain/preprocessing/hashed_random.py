"""Random numbers that are a function of what they are for, not of what was drawn before."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(key: tuple[int, ...], numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[tokens] float64 in [0, 1): a function of `key`, a text's number and a position in it, each [tokens].

    The same for any batch that the text stands in, and for a whole data set at once.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for part in key:
            state = _mixed(np.asarray(state + _STEP * np.uint64(part + 1)))
        state = _mixed(state + _STEP * (numbers.astype(np.uint64) + np.uint64(1)))
        state = _mixed(state + _STEP * (positions.astype(np.uint64) + np.uint64(1)))
    return (state >> np.uint64(11)) * 2.0**-53
