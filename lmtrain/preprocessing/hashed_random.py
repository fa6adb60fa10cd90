"""Counter-based random numbers: a hash of what each is for, independent of the order of drawing."""

import numpy as np
import numpy.typing as npt

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(key: tuple[int, ...], numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[tokens] float64 in [0, 1), a function of `key`, the text number and the position in it, both [tokens].

    A token gets the same value in any batch.
    """
    with np.errstate(over="ignore"):
        state: npt.NDArray[np.uint64] = np.zeros((), np.uint64)
        for part in key:
            state = _mixed(np.asarray(state + _STEP * np.uint64(part + 1)))
        state = _mixed(state + _STEP * (numbers.astype(np.uint64) + np.uint64(1)))
        state = _mixed(state + _STEP * (positions.astype(np.uint64) + np.uint64(1)))
    return (state >> np.uint64(11)) * 2.0**-53
