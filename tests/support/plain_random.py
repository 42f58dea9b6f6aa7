"""Counter-based random numbers in Python's own integers, for the references of the tasks."""

from __future__ import annotations

WORD = 2**64


def mix(state: int, salt: int) -> int:
    """Return what `mcframe.context.counter_rng.hash_combine` returns (SplitMix64), a signed number."""
    x = (state + (salt + 1) * 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    x ^= x >> 31
    return x - WORD if x >= WORD // 2 else x


def below(seed: int, bound: int) -> int:
    """Return a number from 0 to bound - 1."""
    return (mix(seed, 0) % WORD >> 1) % bound


def many_below(seed: int, count: int, bound: int) -> list[int]:
    """Return `count` numbers from 0 to bound - 1."""
    return [below(mix(seed, i), bound) for i in range(count)]


def shuffled(seed: int, count: int) -> list[int]:
    """Return 0 to count - 1 in a random order."""
    return sorted(range(count), key=lambda i: mix(seed, i))
