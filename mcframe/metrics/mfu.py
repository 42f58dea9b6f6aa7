"""FLOPs of networks, peak FLOP/s of known devices, and model FLOPs utilisation (MFU).

Counting follows PaLM (arXiv 2204.02311, appendix B): six FLOPs a parameter and token for forward and backward, and full
attention, with or without a causal mask.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import torch

PEAK: dict[str, float] = {
    name: 1e12 * tera
    for name, tera in tomllib.loads(Path(__file__).with_name("peak_flops.toml").read_text("utf-8")).items()
}
"""Dense bf16 FLOP/s by `torch.cuda.get_device_name`."""


def gpt_flops_per_token(non_embedding_parameters: int, depth: int, width: int, context_length: int) -> float:
    """Return the training FLOPs a token of a GPT: `6 N + 12 depth width T`.

    Args:
        non_embedding_parameters: N, all parameters but embedding tables; an untied head counts.
        depth: number of layers.
        width: width of the layers.
        context_length: T, positions to which each position attends.
    """
    return 6.0 * non_embedding_parameters + 12.0 * depth * width * context_length


def device_peak(name: str, dtype: torch.dtype) -> float | None:
    """Return the dense FLOP/s of a device (`torch.cuda.get_device_name`) in bf16 or fp16; None if unknown."""
    return PEAK.get(name) if dtype in (torch.bfloat16, torch.float16) else None


def mfu(flops_per_second: float, peak: float, world: int) -> float:
    """Return model FLOPs utilisation as a fraction: 0.41 means 41 % of the peak of `world` devices.

    Args:
        flops_per_second: sum over ranks.
        peak: FLOP/s of one device.
        world: number of devices.

    Raises:
        ValueError: the result is outside (0, 1], because the count, the clock or the peak is wrong.
    """
    fraction = flops_per_second / (peak * world)
    if not 0.0 < fraction <= 1.0:
        measured = f"{flops_per_second:.3g} FLOP/s on {world} device(s) of {peak:.3g} FLOP/s each"
        raise ValueError(f"MFU: expected a fraction from 0 to 1, got {fraction:.3g} ({measured})")
    return fraction
