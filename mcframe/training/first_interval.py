"""A look at the first logging interval of a session: what is trained, and what only seems to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mcframe.errors import UserError
from mcframe.hookspecs import LensNet, Loss
from mcframe.registry.attribution import described, is_third_party
from mcframe.registry.checks import ContractError
from mcframe.training.train_step import TrainStep

PAIRS = "mc/preference_pair_count"
_SETTLED = 3
"""Steps after which no part is at its initialisation: a model of zeros prefers no context."""


class GradientWatch:
    """The parameters that a backward pass has reached so far. Does not synchronise with the host.

    At ZeRO 3 DeepSpeed silently updates a parameter without a gradient with its last one again. A plug-in that does not
    run all of its branches in every step would be trained on stale gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        self._ever: set[int] = set()
        self._now: set[int] = set()
        self._hooks = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = id(parameter)
                self._names[key] = name.removeprefix("model.")  # the name in messages: lensnet.layers.0
                hook = parameter.register_hook(lambda _, key=key: self._now.add(key))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def check(self) -> None:
        """Check the accumulated gradients, before the optimizer's step.

        Raises:
            UserError: A parameter had a gradient in an earlier step, and has none in this one.
        """
        missing = sorted(self._names[key] for key in self._ever - self._now)
        self._ever |= self._now
        self._now.clear()
        if missing:
            raise UserError(
                f"no gradient reached {missing[0]}"
                + (f" and {len(missing) - 1} more parameters" if len(missing) > 1 else "")
                + " in this step, though one did before: at ZeRO 3 DeepSpeed would apply the old one again",
                remedy="Run every part of the plug-in in every step, with a loss weight of 0.0 if it is not trained, "
                "or set deepspeed.zero_stage to 0, 1 or 2.",
            )

    def unreached(self, module: nn.Module) -> list[str]:
        """Return the names of the trained parameters of a module that no gradient has reached."""
        reached = self._ever | self._now
        named = module.named_parameters()
        return [name for name, each in named if id(each) in self._names and id(each) not in reached]

    def trained(self, module: nn.Module) -> int:
        """Return the number of trained parameters of a module."""
        return sum(id(each) in self._names for each in module.parameters())

    def stop(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()


def plugin_modules(step: TrainStep) -> list[nn.Module]:
    """Return the modules of a step that plug-ins provide, in the order of their calls."""
    model = step.model
    modules = [model.gpt.positions, model.gistnet, model.lensnet, *step.losses.each()]
    return [module for module in modules if module is not None]


class FirstInterval:
    """Checks the first micro-batch and the first logging interval of a session.

    Args:
        step: The module that is trained, in training mode.
        watch: The parameters that gradients have reached.
        others: Callbacks and evaluations, which may change the mode of the model.
        keep_watching: Whether `watch` is needed after the first interval.
    """

    def __init__(self, step: TrainStep, watch: GradientWatch, others: Iterable[object], keep_watching: bool) -> None:
        self._step, self._watch, self._keep_watching = step, watch, keep_watching
        self._others = [each for each in others if is_third_party(each)]
        self._held = {id(parameter) for parameter in step.parameters()}
        self._training = [module for module in step.modules() if module.training]
        self._outputs: list[tuple[nn.Module, list[Tensor]]] = []
        self._hooks = [module.register_forward_hook(self._keep) for module in plugin_modules(step)]
        self._looked = self._pairs_seen = False
        self._notes: list[str] = []

    def _keep(self, module: nn.Module, _: Any, output: Any) -> None:
        tensors = [each for each in tree_leaves(getattr(output, "loss", output)) if isinstance(each, Tensor)]
        if torch.is_grad_enabled():
            self._outputs.append((module, tensors))

    def check_graph(self) -> None:
        """Check the graph of the first micro-batch; later calls return at once.

        Raises:
            ContractError: A result of a plug-in depends on a parameter that the optimizer does not hold.
        """
        if not self._hooks:
            return
        outputs, self._outputs = self._outputs, []
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        seen: set[Any] = set()
        frozen = any(not parameter.requires_grad for parameter in self._step.parameters())
        for module, tensors in outputs:
            if isinstance(module, Loss) and is_third_party(module) and module.weight and not frozen:
                self._notes += [] if any(each.requires_grad for each in tensors) else [_without_gradient(module)]
            for leaf in _new_leaves(tensors, seen):
                if id(leaf) not in self._held:
                    _refuse_unless_temporary(leaf, module)

    def look(self, metrics: Mapping[str, float], steps: int, compressed: bool) -> Iterator[str]:
        """Iterate over warnings about the interval that was logged.

        Args:
            metrics: The metrics of the interval.
            steps: Optimizer steps of this session so far.
            compressed: Whether the variants of the last step were shorter than the window.

        Raises:
            ContractError: No gradient reached a part of a plug-in that is to be trained.
        """
        yield from self._notes
        self._notes = []
        yield from self._restore_mode()
        if not self._looked:
            self._looked = True
            for module in plugin_modules(self._step):
                yield from self._look_at(module)
            if not self._keep_watching:
                self._watch.stop()
        self._pairs_seen |= metrics.get(PAIRS, 1.0) > 0
        if not self._pairs_seen and steps >= _SETTLED and compressed:
            self._pairs_seen = True
            yield (
                f"{described(self._step.model.strategy)}: no sequence had two variants of which one is better, so that "
                "no preference pair trains LensNet. Propose different variants, or set context.length_end such that "
                "more than one context has this length."
            )

    def _look_at(self, module: nn.Module) -> Iterator[str]:
        names, subject = self._watch.unreached(module), described(module)
        if not names:
            return
        if isinstance(module, LensNet) and not self._step.losses.require("scores"):
            yield f"{subject}: no loss of this run trains it. Add @loss.preference, or omit it from run.trainable."
        elif is_third_party(module) and len(names) == self._watch.trained(module):
            raise ContractError(
                module,
                "forward: no gradient reaches its parameters, so that it is never trained",
                method="forward",
                remedy="Remove detach() and torch.no_grad() from it, or list only the other parts in run.trainable.",
            )
        elif is_third_party(module):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            yield (
                f"{subject}: no gradient reaches {listed}, so that they are never trained. Use every parameter in "
                "forward, remove it, or set requires_grad_(False)."
            )

    def _restore_mode(self) -> Iterator[str]:
        """Set modules that left the training mode back, with one warning."""
        changed = [module for module in self._training if not module.training]
        if not changed:
            return
        for module in changed:
            module.training = True
        suspects = [each for each in plugin_modules(self._step) if is_third_party(each)]
        own = [each for each in suspects if {*map(id, changed)} <= {*map(id, each.modules())}]
        named = ", ".join(described(each) for each in own or self._others) or "a hook"
        yield f"{named}: the model was left in evaluation mode (undone). Set a module back with train() after eval()."


def _new_leaves(tensors: Iterable[Tensor], seen: set[Any]) -> Iterator[Tensor]:
    """Iterate over the leaves that results depend on, except through nodes of the graph that are in `seen`."""
    stack = [tensor.grad_fn for tensor in tensors]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf
        stack.extend(following for following, _ in node.next_functions)


def _without_gradient(loss: Loss) -> str:
    return (
        f"{described(loss)}: its loss has no gradient, so that it trains nothing. Remove detach() and torch.no_grad() "
        "from forward, or set its weight to 0.0."
    )


def _refuse_unless_temporary(leaf: Tensor, module: nn.Module) -> None:
    """Raise ContractError for a leaf that is a parameter, or that the module keeps from step to step."""
    name = _name_of(leaf, module)
    if name or isinstance(leaf, nn.Parameter):
        raise ContractError(
            module,
            f"forward: the result depends on {name or 'a parameter'} of shape {list(leaf.shape)}, which is not a "
            "parameter of the module: no optimizer trains it",
            method="forward",
            remedy="Create it in __init__ as an nn.Parameter or a submodule; nn.ModuleList and nn.ParameterList hold "
            "several.",
        )


def _name_of(leaf: Tensor, module: nn.Module) -> str:
    """Return the attribute of a module, or of a module in it, that holds a tensor; empty if there is none."""
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            found = tree_leaves(value) if not name.startswith("_") else ()
            held = [each for item in found for each in (item.parameters() if isinstance(item, nn.Module) else [item])]
            if any(each is leaf for each in held):
                return f"{prefix}.{name}".lstrip(".")
    return ""
