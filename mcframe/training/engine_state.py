"""The state of an engine by name: independent of the number of ranks and of the ZeRO stage.

Entries are `weights/PARAMETER`, in float32 where DeepSpeed has master weights, and `optimizer/STATE/PARAMETER`. Each
rank takes the elements that it holds, without communication. Other states of an optimizer (step counters, factored
moments) stay with their tensor; scalars are carried to other tensors if all of their elements had the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.errors import UserError
from mcframe.training.engine import Engine
from mcframe.training.engine_layout import (
    MUON_STATE,
    Holder,
    Span,
    base_optimizer,
    complete_groups,
    copies,
    external,
    frozen_holders,
    partitioned,
    shape_of,
    size_of,
    trained_holders,
)  # fmt: skip
from mcframe.training.state_files import SavedState, encode

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""Counters of DeepSpeed's engine."""

_MISSING = object()


def take(engine: Engine, buffers: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return this rank's part of the state: tensors, copied to the CPU, and values of JSON. Call it between steps.

    Args:
        engine: The engine.
        buffers: Memory to copy to, filled here and overwritten by the next call with it: new memory costs several times
            the copy itself.

    Raises:
        UserError: The optimizer or a module has a state of a type that cannot be saved.
    """
    buffers = {} if buffers is None else buffers
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, tuple[str, int]] = {}
    shapes = _shapes(engine)
    trained, mine = trained_holders(engine), _assigned(engine)
    by_element = _states_by_element(trained)
    held = []
    for holder in trained:
        if engine.stage or holder.spans[0].name in mine:
            _copy(holder.tensor, "weights", holder.spans, shapes, tensors, pieces, buffers)
            values: dict[str, Any] = {}
            for state, value in holder.state.items():
                if state in by_element:
                    _copy(value, f"optimizer/{state}", holder.written(state), shapes, tensors, pieces, buffers)
                else:
                    values[state] = _encoded(engine, value, f"optimizer/{state}", tensors)
            spans = [[span.name, span.start, span.length] for span in holder.spans]
            held.append({"spans": spans, "values": values, "by_element": sorted(by_element & holder.state.keys())})
    for holder in frozen_holders(engine):
        if engine.stage == 3 or holder.spans[0].name in mine:
            _copy(holder.tensor, "weights", holder.spans, shapes, tensors, pieces, buffers)
    facts = {"world_size": dist.get_world_size(), "zero_stage": engine.stage, "pieces": pieces, "held": held}
    return tensors, facts | (_common(engine, shapes, tensors) if dist.get_rank() == 0 else {})


def put(engine: Engine, state: SavedState) -> None:
    """Set the state of an engine to the saved one, taken at any number of ranks and any ZeRO stage. Collective.

    Raises:
        UserError: A state of the optimizer cannot be carried to this number of ranks or this ZeRO stage.
        ValueError, KeyError, RuntimeError: The files belong to another model, or are damaged.
    """
    _check_shapes(engine, state.facts[0]["shapes"])
    sources = [{**each, "rank": rank} for rank, facts in enumerate(state.facts) for each in facts["held"]]
    located: dict[str, list[tuple[int, int, int]]] = {}
    for number, source in enumerate(sources):
        for name, start, length in source["spans"]:
            located.setdefault(name, []).append((start, start + length, number))
    with torch.no_grad(), partitioned(engine):
        for holder in trained_holders(engine):
            _fill(holder.tensor, state, "weights", holder.spans)
            _put_states(engine, holder, state, [sources[number] for number in _overlapping(holder.spans, located)])
        for holder in (*frozen_holders(engine), *copies(engine)):
            _fill(holder.tensor, state, "weights", holder.spans)
        _put_common(engine, state)


def weights(state: SavedState) -> dict[str, Any]:
    """Return the state dict of the module: master weights, buffers, and extra states of modules."""
    common = state.facts[0]
    found: dict[str, Any] = {
        name: state.part(f"weights/{name}", 0, _numel(shape)).reshape(shape).clone()
        for name, shape in common["shapes"].items()
    }
    found |= {name: found[first].clone() for name, first in common["tied"].items()}
    found |= state.value(0, "module")
    return found


def _shapes(engine: Engine) -> dict[str, list[int]]:
    """Return the shape of each parameter that a checkpoint has."""
    omitted = external(engine)
    return {name: shape_of(each) for name, each in engine.step.named_parameters() if name not in omitted}


def _assigned(engine: Engine) -> set[str]:
    """Return the parameters that this rank writes where each rank holds all: about equally many elements a rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sizes = {name: size_of(parameter) for name, parameter in engine.step.named_parameters()}
    total, before, mine = max(1, sum(sizes.values())), 0, set()
    for name, size in sizes.items():
        if before * world // total == rank or (before == total and rank == world - 1):
            mine.add(name)
        before += size
    return mine


def _states_by_element(holders: Sequence[Holder]) -> set[str]:
    """Return the names of the optimizer's states that have one value an element, wherever they exist."""
    found: dict[str, bool] = {}
    for holder in holders:
        for name, value in holder.state.items():
            found[name] = found.get(name, True) and holder.is_by_element(name, value)
    return {name for name, holds in found.items() if holds}


def _copy(
    tensor: Tensor,
    kind: str,
    spans: Sequence[Span],
    shapes: Mapping[str, Sequence[int]],
    tensors: dict[str, Tensor],
    pieces: dict[str, tuple[str, int]],
    buffers: dict[str, Tensor],
) -> None:
    """Copy a tensor to the CPU at once, and add its spans as pieces of entries `kind/PARAMETER`."""
    if not spans:
        return
    buffer = f"{kind}/{spans[0].name}@{spans[0].start}"
    copied = buffers.get(buffer)
    if copied is None or (copied.numel(), copied.dtype) != (tensor.numel(), tensor.dtype):
        copied = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        buffers[buffer] = copied
    copied.view(tensor.shape).copy_(tensor.detach())
    for name, start, length, offset in spans:
        entry, complete = f"{kind}/{name}", length == _numel(shapes[name])
        if length or (complete and start == 0):
            piece = copied[offset : offset + length]
            key = entry if complete else f"{entry}@{start}"
            tensors[key] = piece.view(tuple(shapes[name])) if complete else piece
            pieces[key] = (entry, start)


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _encoded(engine: Engine, value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    try:
        return encode(value, name, tensors)
    except TypeError as error:
        optimizer = type(base_optimizer(engine)).__name__
        raise UserError(
            f"optimizer {optimizer}: its state cannot be saved: {error}",
            remedy="Select another run.optimizer, or keep its state in numbers and tensors.",
        ) from error


def _common(engine: Engine, shapes: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what is equal on all ranks."""
    first = {id(parameter): name for name, parameter in engine.step.named_parameters()}
    tied = {
        name: first[id(parameter)]
        for name, parameter in engine.step.named_parameters(remove_duplicate=False)
        if name != first[id(parameter)] and name not in external(engine)
    }
    module = dict(_buffers(engine))
    options = [{key: value for key, value in group.items() if key != "params"} for group in _groups(engine)]
    try:
        encoded = encode(module, "module", tensors)
    except TypeError as error:
        raise UserError(
            f"a module's extra state cannot be saved: {error}",
            remedy="Return numbers, text and tensors from get_extra_state of the module.",
        ) from error
    return {
        "shapes": shapes,
        "tied": tied,
        "module": encoded,
        "options": _encoded(engine, options, "param_groups", tensors),
        "settings": encode(engine.group_options, "settings", tensors),
        "optimizer": _encoded(engine, _extra_states(engine), "state_dict", tensors),
        "scheduler": {name: getattr(engine.scheduler, name) for name in ("last_epoch", "_step_count")},
        "counters": {name: getattr(engine.wrapped, name) for name in COUNTERS},
    }


def _groups(engine: Engine) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = engine.scheduler.optimizer.param_groups
    return groups


def _buffers(engine: Engine) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the module's state dict that are not parameters: buffers and extra states."""
    for name, value in engine.step.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.nn.Parameter):
            yield name, value


def _extra_states(engine: Engine) -> dict[str, Any]:
    """Return what an optimizer adds to torch's state dict."""
    optimizer = base_optimizer(engine)
    if type(optimizer).state_dict is torch.optim.Optimizer.state_dict:
        return {}
    with complete_groups(engine):
        return {name: value for name, value in optimizer.state_dict().items() if name not in ("state", "param_groups")}


def _check_shapes(engine: Engine, saved: Mapping[str, Sequence[int]]) -> None:
    """Raise ValueError unless the saved parameters are those of the engine."""
    shapes = _shapes(engine)
    if different := sorted(shapes.keys() ^ saved.keys()):
        raise ValueError(f"{different[0]} exists in one of the models only")
    for name, shape in shapes.items():
        if shape != list(saved[name]):
            raise ValueError(f"{name}: expected shape {shape}, got {list(saved[name])}")


def _overlapping(spans: Sequence[Span], located: Mapping[str, Sequence[tuple[int, int, int]]]) -> list[int]:
    """Return the numbers of the saved tensors that had elements of these spans."""
    return sorted(
        {
            number
            for span in spans
            for start, stop, number in located.get(span.name, ())
            if start < span.start + span.length and span.start < stop
        }
    )


def _fill(target: Tensor, state: SavedState, kind: str, spans: Sequence[Span]) -> None:
    """Copy the elements of the spans into a tensor."""
    for name, start, length, offset in spans:
        part = state.part(f"{kind}/{name}", start, length)
        if length == target.numel():
            target.detach().copy_(part.view(target.shape))
        else:
            target.detach().view(-1)[offset : offset + length].copy_(part)


def _put_states(engine: Engine, holder: Holder, state: SavedState, sources: Sequence[Mapping[str, Any]]) -> None:
    """Set the optimizer's states of one tensor from those of the saved tensors that had elements of it."""
    by_element = {name for source in sources for name in source["by_element"]}
    values = {name for source in sources for name in source["values"]}
    for name in holder.state.keys() - by_element - values:  # of steps after the checkpoint
        _reset(holder, name)
    for name in sorted(by_element):
        if any(name not in source["by_element"] for source in sources):
            raise _not_carried(engine, state, name)
        _fill(_target(holder, state, name), state, f"optimizer/{name}", holder.spans_of(name))
    same = [source["spans"] for source in sources] == [[list(span[:3]) for span in holder.spans]]
    for name in sorted(values):
        encoded = [source["values"].get(name, _MISSING) for source in sources]
        if any(each != encoded[0] for each in encoded):
            raise _not_carried(engine, state, name)
        value = state.decoded(sources[0]["rank"], encoded[0])
        if not same and isinstance(value, Tensor) and value.numel() > 1:
            raise _not_carried(engine, state, name)
        holder.state[name] = _placed(value, name, engine, holder)


def _target(holder: Holder, state: SavedState, name: str) -> Tensor:
    """Return the tensor of a state with one value an element, a new one if the optimizer has none."""
    target = holder.state.get(name)
    if not isinstance(target, Tensor) or not holder.is_by_element(name, target):
        span, weights = holder.spans[0], holder.tensor.detach()
        dtype = state.part(f"optimizer/{name}/{span.name}", span.start, span.length).dtype
        if complete := holder.complete if name == MUON_STATE else ():
            target = weights.new_zeros(sum(each.length for each in complete), dtype=dtype)
        else:
            target = torch.zeros_like(weights, dtype=dtype)
        holder.state[name] = target
    return target


def _reset(holder: Holder, name: str) -> None:
    value = holder.state[name]
    if name == MUON_STATE and isinstance(value, Tensor):
        value.zero_()  # DeepSpeed creates it at the start, and may hold it a second time
    else:
        del holder.state[name]


def _placed(value: Any, name: str, engine: Engine, holder: Holder) -> Any:
    """Return a value on the device where torch keeps it: step counters on the CPU unless a fused kernel reads them."""
    if not isinstance(value, Tensor):
        return value
    fused = any(group.get("capturable") or group.get("fused") for group in _groups(engine))
    return value if name == "step" and not fused else value.to(holder.tensor.device)


def _not_carried(engine: Engine, state: SavedState, name: str) -> UserError:
    """Return the message for a state that belongs to the tensors of another layout."""
    world, stage = state.facts[0]["world_size"], state.facts[0]["zero_stage"]
    optimizer = type(base_optimizer(engine)).__name__
    return UserError(
        f"optimizer {optimizer}: its state {name!r} of {world} rank(s) at ZeRO {stage} cannot be carried to "
        f"{dist.get_world_size()} at ZeRO {engine.stage}: it is not one value for each weight or for all weights",
        remedy=f"Start {world} rank(s) with deepspeed.zero_stage = {stage}.",
    )


def _put_common(engine: Engine, state: SavedState) -> None:
    """Set buffers and extra states of modules, the optimizer's options, the schedule, and DeepSpeed's counters."""
    common = state.facts[0]
    module = state.value(0, "module")
    if different := sorted(module.keys() ^ {name for name, _ in _buffers(engine)}):
        raise ValueError(f"{different[0]} exists in one of the models only")
    engine.step.load_state_dict(module, strict=False)
    if extra := state.value(0, "optimizer"):
        optimizer = base_optimizer(engine)
        with complete_groups(engine):
            optimizer.load_state_dict({**optimizer.state_dict(), **extra})
    for group, options in zip(_groups(engine), state.value(0, "options"), strict=True):
        group.update(options)
    for name, value in common["scheduler"].items():
        setattr(engine.scheduler, name, value)
    for name, value in common["counters"].items():
        setattr(engine.wrapped, name, value)
    engine.apply_settings(state.value(0, "settings"))
