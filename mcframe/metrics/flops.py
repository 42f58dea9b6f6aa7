"""FLOPs of what is run, peaks of known devices, and the share of the peak that is used (MFU).

Counting follows PaLM (arXiv 2204.02311, appendix B): six FLOPs a parameter and token for forward and backward, and
attention in full, causal mask or not.
"""

from __future__ import annotations

import torch

PEAK: dict[str, float] = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H800": 989e12,
    "NVIDIA H20": 148e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-PCIE-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    "NVIDIA A800 80GB PCIe": 312e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A30": 165e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s (fp32 accumulation, no sparsity) by `torch.cuda.get_device_name`, from NVIDIA's data sheets.

Names are matched whole: a laptop part, a MIG slice or a custom board has another peak than its namesake.
"""


def network_flops(parameters: int, tokens: float, depth: int, width: int, attended: float) -> float:
    """FLOPs of one forward and backward pass of a transformer.

    parameters  those that multiply every token: all but embedding tables (an untied head counts)
    tokens      positions that go through it; attended: positions that each of them attends to
    """
    return tokens * (6.0 * parameters + 12.0 * depth * width * attended)


def gpt_flops_per_token(non_embedding_parameters: int, depth: int, width: int, context_length: int) -> float:
    """FLOPs a token of training a GPT: `6 N + 12 depth width T`."""
    return network_flops(non_embedding_parameters, 1, depth, width, context_length)


def device_peak(name: str, dtype: torch.dtype) -> float | None:
    """Dense FLOP/s of a device (`torch.cuda.get_device_name`) in bf16 or fp16; None where unknown, never a guess."""
    return PEAK.get(name) if dtype in (torch.bfloat16, torch.float16) else None


def mfu(flops_per_second: float, peak: float, world: int) -> float:
    """Model FLOPs utilisation, a fraction: 0.41 means 41 % of the peak of `world` devices.

    flops_per_second is summed over ranks. Raises ValueError outside (0, 1]: then the count, the clock or the peak
    is wrong, or a percentage has been mistaken for a fraction.
    """
    fraction = flops_per_second / (peak * world)
    if not 0.0 < fraction <= 1.0:
        raise ValueError(
            f"MFU would be {fraction:.3g}, which is no fraction: {flops_per_second:.3g} FLOP/s on {world} device(s) of "
            f"{peak:.3g} FLOP/s each"
        )
    return fraction
