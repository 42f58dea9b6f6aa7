"""Location of master weights and optimizer states in DeepSpeed: the elements of each parameter that a rank holds.

At ZeRO 0 the optimizer updates the parameters. At ZeRO 1 to 3 it updates flat partitions of many parameters, which end
in padding, uninitialised at ZeRO 3. DeepSpeed's own accessors (`safe_get_full_fp32_param` and others) cover no float32
run at ZeRO 0 and no momentum of Muon at ZeRO 1 and 2, and gather by sums, which turns -0.0 into 0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mcframe.training.engine import Engine

MUON_STATE = "momentum_buffer"


class Span(NamedTuple):
    """Elements `start` to `start + length` of a parameter, which lie at `offset` of a flat tensor."""

    name: str
    start: int
    length: int
    offset: int


@dataclass(frozen=True)
class Holder:
    """A tensor of weights on this rank, and the optimizer's state of it.

    Attributes:
        tensor: The key in the optimizer's state, or a frozen parameter.
        spans: The elements that it holds. The rest is padding.
        state: The optimizer's state.
        complete: Spans of Muon's momentum at ZeRO 1 and 2: complete parameters, one after the other, where the tensor
            holds only part of the first and the last.
    """

    tensor: Tensor
    spans: tuple[Span, ...]
    state: dict[str, Any] = field(default_factory=dict)
    complete: tuple[Span, ...] = ()

    def spans_of(self, state: str) -> tuple[Span, ...]:
        """Return the spans that a state of one value an element is made of."""
        return self.complete if state == MUON_STATE and self.complete else self.spans

    def written(self, state: str) -> tuple[Span, ...]:
        """Return the spans of the state that this rank writes: those of its weights, at their offsets in the state."""
        if not (state == MUON_STATE and self.complete):
            return self.spans
        offsets = {span.name: span.offset for span in self.complete}
        return tuple(each._replace(offset=offsets[each.name] + each.start) for each in self.spans)

    def is_by_element(self, state: str, value: object) -> bool:
        """Return whether the state has the form of one value an element."""
        if state == MUON_STATE and self.complete:
            return True
        return isinstance(value, Tensor) and value.shape == self.tensor.shape


def size_of(parameter: nn.Parameter) -> int:
    """Return the number of elements of a parameter, of all ranks together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape_of(parameter: nn.Parameter) -> list[int]:
    """Return the shape of a parameter, of all ranks together."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def is_trained(parameter: nn.Parameter) -> bool:
    """Return whether the optimizer updates a parameter: not frozen, and not empty."""
    return parameter.requires_grad and size_of(parameter) > 0


def external(engine: Engine) -> set[str]:
    """Return the names of parameters that checkpoints omit: frozen ones that the base model reads from files."""
    return {f"model.gpt.{name}" for name in engine.model.gpt.external_weights}


def base_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """Return the optimizer whose `state` holds the states: DeepSpeed replaces Adagrad's object at ZeRO 1 to 3."""
    wrapped = engine.wrapped.optimizer
    optimizer: torch.optim.Optimizer = wrapped if engine.stage == 0 else wrapped.optimizer
    return optimizer


def trained_holders(engine: Engine) -> list[Holder]:
    """Return the tensors of this rank that the optimizer updates."""
    named = [(name, p) for name, p in engine.step.named_parameters() if is_trained(p)]
    state = base_optimizer(engine).state
    if engine.stage == 0:
        return [Holder(p, (Span(name, 0, p.numel(), 0),), state.setdefault(p, {})) for name, p in named]
    zero = engine.wrapped.optimizer
    partitions, spans = _partitions(engine, zero), dict[int, list[Span]]()
    for name, p in named:
        number, span = _shard(name, p, zero) if engine.stage == 3 else _fragment(name, p)
        if span is not None and span.length:
            spans.setdefault(number, []).append(span)
    return [
        Holder(tensor, tuple(spans.get(number, ())), state.setdefault(tensor, {}), _muon_spans(engine, number))
        for number, tensor in enumerate(partitions)
    ]


def _partitions(engine: Engine, zero: Any) -> list[Tensor]:
    if engine.stage == 3:
        found = zero.fp32_partitioned_groups_flat
    elif hasattr(zero, "single_partition_of_fp32_groups"):
        found = zero.single_partition_of_fp32_groups
    else:
        found = zero.fp32_groups_flat_partition  # of BF16_Optimizer, for data_types.grad_accum_dtype at ZeRO 1
    return list(found)


def _fragment(name: str, parameter: Any) -> tuple[int, Span | None]:
    """Return the partition and the elements of a parameter in it, at ZeRO 1 and 2."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, None
    ours, theirs = mapping.lp_fragment_address, mapping.hp_fragment_address
    return mapping.param_group_index, Span(name, ours.start, ours.numel, theirs.start)


def _shard(name: str, parameter: Any, zero: Any) -> tuple[int, Span]:
    """Return the partition and the elements of a parameter in it, at ZeRO 3."""
    number, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
    return number, _local(name, parameter)._replace(offset=offset)


def _local(name: str, parameter: Any) -> Span:
    """Return the elements of a parameter in its local tensor at ZeRO 3, without the padding."""
    length = parameter.ds_tensor.ds_numel
    start = parameter.ds_zero_partition_rank * length
    return Span(name, start, max(0, min(length, size_of(parameter) - start)), 0)


def _muon_spans(engine: Engine, number: int) -> tuple[Span, ...]:
    zero = engine.wrapped.optimizer
    held = getattr(zero, "params_in_partition", None)
    if (
        engine.stage == 3
        or held is None
        or zero.cpu_offload
        or not held[number]
        or not zero._is_muon_group(held[number])
    ):
        return ()
    names = {id(p): name for name, p in engine.step.named_parameters()}
    spans, offset = [], 0
    for parameter in held[number]:
        spans.append(Span(names[id(parameter)], 0, parameter.numel(), offset))
        offset += parameter.numel()
    return tuple(spans)


def frozen_holders(engine: Engine) -> list[Holder]:
    """Return the parameters that the optimizer does not update, without those that checkpoints omit."""
    return [each for each in _parameter_holders(engine, trained=False) if each.spans[0].name not in external(engine)]


def copies(engine: Engine) -> list[Holder]:
    """Return the tensors that forward passes read, where they are not those that the optimizer updates."""
    return _parameter_holders(engine, trained=True) if engine.stage else []


def _parameter_holders(engine: Engine, trained: bool) -> list[Holder]:
    parameters: Iterable[tuple[str, Any]] = engine.step.named_parameters()
    named = [(name, p) for name, p in parameters if is_trained(p) == trained]
    if engine.stage < 3:
        return [Holder(p, (Span(name, 0, p.numel(), 0),)) for name, p in named]
    return [Holder(p.ds_tensor, (_local(name, p),)) for name, p in named]


@contextmanager
def partitioned(engine: Engine) -> Iterator[None]:
    """Partition all parameters at ZeRO 3, and gather those that DeepSpeed keeps gathered again. Collective."""
    if engine.stage == 3:
        engine.wrapped.optimizer.checkpoint_event_prologue()
    yield
    if engine.stage == 3:
        engine.wrapped.optimizer.checkpoint_event_epilogue()


@contextmanager
def complete_groups(engine: Engine) -> Iterator[None]:
    """Add its tensors to the optimizer's groups, which are empty between steps at ZeRO 3."""
    if engine.stage == 3:
        engine.wrapped.optimizer._set_fp32_optimizer_param_groups()
    yield
    if engine.stage == 3:
        engine.wrapped.optimizer._clear_fp32_optimizer_param_groups()
