"""Weights that a base model reads from files: compared before and after DeepSpeed has taken them.

Where weights are loaded while DeepSpeed partitions a model, they may silently stay random. They are loaded before, and
ranks that read other files than rank 0 would get its weights, or keep their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import xxhash
from torch import Tensor, nn

from mcframe.errors import UserError
from mcframe.hookspecs import BaseModel


def external_digests(base: BaseModel, dtype: torch.dtype) -> dict[str, str]:
    """Return a checksum of each weight that a base model reads from files, as the dtype of the engine.

    Collective at ZeRO 3, where each weight is gathered in turn.
    """
    return {name: _digest(weight.detach().to(dtype)) for name, weight in _gathered(base)}


def check_external(before: Mapping[str, str], base: BaseModel, dtype: torch.dtype) -> None:
    """Raise UserError unless the weights have these checksums."""
    after = external_digests(base, dtype)
    if changed := sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)):
        raise UserError(
            f"{len(changed)} of {len(before)} pretrained weights differ from their files after DeepSpeed's start: "
            f"{', '.join(changed[:3])}",
            remedy="Copy the same files to every machine of the run, or set deepspeed.zero_stage to 2 or lower.",
        )


def _gathered(base: BaseModel) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in base.named_parameters():
        if name in base.external_weights:
            with _complete(parameter):
                yield name, parameter


def _complete(parameter: nn.Parameter) -> AbstractContextManager[object]:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    found: AbstractContextManager[object] = deepspeed.zero.GatheredParameters([parameter])
    return found


def _digest(weight: Tensor) -> str:
    data = weight.contiguous().cpu().flatten().view(torch.uint8).numpy()
    return str(xxhash.xxh3_64(data.data).hexdigest())
