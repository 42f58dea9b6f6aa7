"""Counter-based random numbers on the device.

A random value is a hash of what it belongs to (run seed, sequence, variant, block), never the state of a
generator, so that ranks, ZeRO stages, micro-batches and resumption cannot change it. The hash is the
finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MULTIPLY_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MULTIPLY_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_combine(state: Tensor, salt: Tensor | int) -> Tensor:
    """Hash of `state` and `salt`, both int64 and broadcastable -> int64, uniform over all 2**64 values."""
    step = (salt + 1) * _GOLDEN
    if isinstance(step, int):  # Python's integers do not wrap
        step = (step + 2**63) % 2**64 - 2**63
    x = state + step
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def variant_seeds(seed: int, sequences: Tensor, variants: int) -> Tensor:
    """Seeds of the variants of sequences with these global indices [B] -> int64 [B, V]."""
    start = torch.full_like(sequences, seed)
    counter = torch.arange(variants, device=sequences.device)
    return hash_combine(hash_combine(start, sequences)[:, None], counter)


def random_keys(seeds: Tensor, count: int) -> Tensor:
    """`count` random numbers for each seed [...] -> int64 [..., count]; sort them for a random order."""
    return hash_combine(seeds[..., None], torch.arange(count, device=seeds.device))


def randint(seeds: Tensor, bound: int) -> Tensor:
    """A random integer in [0, bound) for each seed [...] -> int64 [...]. The bias is below bound / 2**63."""
    return _shift_right(hash_combine(seeds, 0), 1) % bound


def uniform(bits: Tensor) -> Tensor:
    """Random int64 of any shape -> float64 in (0, 1), never at either end."""
    return ((bits >> 12).double() + 2**51 + 0.5) / 2**52


def gumbel(bits: Tensor) -> Tensor:
    """Random int64 of any shape -> standard Gumbel noise, float64.

    The k highest of `values + gumbel(...)` are a draw of k without replacement from `softmax(values)` (Kool et al.,
    Stochastic Beams and Where to Find Them, 2019).
    """
    return -(-uniform(bits).log()).log()
