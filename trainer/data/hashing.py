"""Hashes of numbers, the same on every machine and in every version of every library.

The mixing function is that of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014):
a bijection of 64-bit numbers in which every bit of the input changes every bit of the output with probability one half.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(numbers: Hashes) -> Hashes:
    """A hash of every number."""
    z = numbers + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def combine(hashes: Hashes, numbers: Hashes | np.uint64) -> Hashes:
    """A hash of every pair of a hash and a number."""
    return mix(hashes ^ mix(np.asarray(numbers, np.uint64).reshape(-1)))


def key(*values: int | str) -> np.uint64:
    """One 64-bit key for a handful of values."""
    digest = hashlib.blake2b("\0".join(map(str, values)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def of_text(text: str) -> int:
    """A 64-bit hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
