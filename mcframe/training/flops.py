"""What a step costs in floating-point operations: of the plain model, of all that is run, of what is run twice.

The base model's share is a formula, after PaLM (arXiv 2204.02311, appendix B): two FLOPs a parameter and token forward,
attention in full, and backward twice as much where weights and inputs have gradients. A GistNet or a LensNet may be
anything, so theirs are counted while they run on the meta device, where nothing is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcframe.context.working_context import WorkingContext, build_context, raw_context
from mcframe.metrics.flops import gpt_flops_per_token
from mcframe.modeling import gpt as base_model
from mcframe.modeling.gpt import parameter_count
from mcframe.modeling.node_table import build_node_table
from mcframe.modeling.step import MegaContextStep

Network = TypeVar("Network", bound=nn.Module)
_META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """FLOPs a dataset token, forward and backward.

    plain       of the plain model, whose every weight learns
    total       of everything that a step runs, once: what MFU counts
    recomputed  of what the backward pass runs a second time, besides
    """

    plain: float
    total: float
    recomputed: float


class Costs:
    """The cost of any step of a model. Make it before an engine takes the model: ZeRO 3 leaves nothing to count.

    notes  what could not be counted, and what stands for it
    """

    def __init__(self, model: MegaContextStep) -> None:
        self._model, self._geometry = model, model.tree
        self._gistnet = None if model.gistnet is None else _on_meta(model.gistnet)
        self._lensnet = None if model.lensnet is None else _on_meta(model.lensnet)
        self._base_learns = _learns(model.gpt)
        self._gists_learn = self._base_learns or (model.gistnet is not None and _learns(model.gistnet))
        self._known: dict[tuple[int, int, int], Cost] = {}
        self._lens_known: dict[tuple[int, bool], float] = {}
        self.notes: dict[str, str] = {}
        self._whole = _on_meta(model) if model.added else None

    def at(self, length: int, rebuild: int = 1, micro_batch: int = 1) -> Cost:
        """The cost of a step with variants of `length` entries (0 where there are none).

        rebuild: neighbouring blocks that reconstruction tells at once; micro_batch: sequences, on which depends whether
        logits are computed in chunks.
        """
        key = (length, rebuild, micro_batch)
        if key not in self._known:
            self._known[key] = self._cost(*key)
        return self._known[key]

    def _cost(self, length: int, rebuild: int, micro_batch: int) -> Cost:
        gpt, window = self._model.gpt, self._geometry.window
        plain = gpt_flops_per_token(gpt.non_embedding_parameters, gpt.depth, gpt.attention_width, window)
        whole = self._own(length, rebuild, micro_batch)
        if self._whole is not None:
            whole = whole + self._added(self._whole, length, rebuild)
        return Cost(plain, whole.once / window, whole.again / window)

    def _own(self, length: int, rebuild: int, micro_batch: int) -> _Flops:
        """A sequence's share of all that a step runs but for what plug-ins add to the loss."""
        window, count = self._geometry.window, self._model.strategy.count
        parts = [self._pass(window, window, micro_batch, learns=self._base_learns)]
        if count:
            rows = micro_batch * count
            variant = self._pass(length, length, rows, learns=self._gists_learn, teacher=self._distils)
            parts += [variant * count, self._told(rebuild, micro_batch), _Flops(self._table + self._lens(length))]
            if self._model.needs_dropped:
                parts.append(self._pass(length, length, rows, learns=False) * count)
        return sum(parts, _Flops(0.0))

    @property
    def _distils(self) -> bool:
        return bool(self._model.objectives.gist_kl_weight)

    def _pass(self, entries: int, predicted: int, rows: int, *, learns: bool, teacher: bool = False) -> _Flops:
        """A context of `entries` through the base model, `predicted` of them through its head.

        rows: contexts of a micro-batch; learns: whether it is run backward; teacher: the head runs once more, forward
        only, for the distribution that is distilled.
        """
        gpt = self._model.gpt
        matrices = 2.0 * gpt.block_parameters * entries
        attention = 4.0 * gpt.depth * gpt.attention_width * entries * entries
        head = 2.0 * parameter_count(gpt.lm_head) * predicted
        once = matrices + attention + head
        if learns:
            # Backward: once for the inputs, once more for weights that learn; attention has no weights but two inputs.
            once += (2 if self._base_learns else 1) * (matrices + head) + 2 * attention
        once += head if teacher else 0.0
        again = 0.0
        if learns and gpt.activation_checkpointing:
            # The last product of a block is not needed again, and torch stops before it.
            down = 2.0 * entries * sum(parameter_count(block.get_submodule("down")) for block in gpt.blocks)
            again += matrices + attention - down
        if learns and rows * predicted > base_model.LOGITS_AT_ONCE // gpt.vocab_size:
            again += head * (2 if teacher else 1)
        return _Flops(once, again)

    def _told(self, rebuild: int, micro_batch: int) -> _Flops:
        """Blocks told from their gists."""
        if self._model.reconstruction is None:
            return _Flops(0.0)
        groups = max(1, round(self._geometry.nodes(1) // rebuild * self._model.objectives.reconstruction_share))
        told = rebuild * self._geometry.block_size
        entries = told + rebuild * self._geometry.slots
        return self._pass(entries, told, micro_batch * groups, learns=self._gists_learn) * groups

    def _added(self, model: MegaContextStep, length: int, rebuild: int) -> _Flops:
        """What a whole step of one sequence has more than is known: the objectives of plug-ins."""
        own = self._own(length, rebuild, micro_batch=1)
        tokens = torch.zeros(1, self._geometry.window + 1, dtype=torch.long, device=_META)
        seeds = torch.zeros(1, model.strategy.count, dtype=torch.long, device=_META)
        try:
            whole = counted(lambda: model(tokens, seeds, length, None, rebuild)[0])
        except Exception as error:  # noqa: BLE001 - an objective that needs data to run still trains
            self.notes["added objectives"] = f"left out: {_first_line(error)}"
            return _Flops(0.0)
        return _Flops(max(0.0, whole - own.once - own.again))

    @cached_property
    def _table(self) -> float:
        """One sequence's node table."""
        gistnet = self._gistnet
        if gistnet is None:
            return 0.0
        tree, shape = self._geometry, (1, self._geometry.window, self._model.gpt.width)

        def build() -> Tensor:
            tokens = torch.zeros(shape, device=_META, requires_grad=self._base_learns)
            return build_node_table(tokens, gistnet, tree, tokens)

        return self._counted("GistNet", gistnet, build, tree.offset(tree.levels))

    def _lens(self, length: int) -> float:
        """LensNet and its slow copy on a sequence's variants; on all of it to choose them and for attribution."""
        if self._model.lensnet is None:
            return 0.0
        count, window = self._model.strategy.count, self._geometry.window
        flops = self._scored(length, learns=True)
        if self._model.objectives.policy_kl_weight:
            flops += self._scored(length, learns=False)
        flops *= count
        if self._model.objectives.attribution_weight:
            flops += self._scored(window, learns=True)
        return flops + (self._scored(window, learns=False) if self._model.strategy.needs_scores else 0.0)

    def _scored(self, length: int, *, learns: bool) -> float:
        """LensNet on one context of `length` entries."""
        lensnet, key = self._lensnet, (length, learns)
        assert lensnet is not None
        if key not in self._lens_known:

            def score() -> Tensor:
                with torch.set_grad_enabled(learns):
                    seen = _context(self._model, length).before_cursor()
                    if lensnet.reads_nll:
                        seen = replace(seen, nll=torch.zeros(1, seen.length, device=_META))
                    scores: Tensor = lensnet(seen, torch.zeros(1, seen.length, self._model.gpt.width, device=_META))
                    return scores

            entries = length - (self._geometry.window - self._geometry.cursor)
            self._lens_known[key] = self._counted("LensNet", lensnet, score, entries, learns=learns)
        return self._lens_known[key]

    def _counted(
        self, name: str, network: nn.Module, run: Callable[[], Tensor], tokens: int, *, learns: bool = True
    ) -> float:
        try:
            return counted(run)
        except Exception as error:  # noqa: BLE001 - a network that needs data to run still trains
            self.notes[name] = f"estimated from its parameters: {_first_line(error)}"
            return (6.0 if learns else 2.0) * parameter_count(network) * tokens


@dataclass(frozen=True)
class _Flops:
    """FLOPs that are run once, and those that the backward pass runs again."""

    once: float
    again: float = 0.0

    def __add__(self, other: _Flops) -> _Flops:
        return _Flops(self.once + other.once, self.again + other.again)

    def __mul__(self, times: int) -> _Flops:
        return _Flops(self.once * times, self.again * times)


def counted(run: Callable[[], Tensor]) -> float:
    """FLOPs of the matrix products of `run`, and of the backward pass of what it returns where there is one."""
    # The counter knows matrix products and no fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = run()
        if result.requires_grad:
            result.sum().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops())


def _context(model: MegaContextStep, length: int) -> WorkingContext:
    """A working context of `length` entries without content."""
    tree = model.tree
    if length == tree.window:
        return raw_context(tree, 1, _META)
    return build_context(torch.zeros(1, tree.blocks, dtype=torch.long, device=_META), tree, length)


def _first_line(error: Exception) -> str:
    """Why something does not run on the meta device."""
    reason = next(iter(str(error).splitlines()), "")
    return f"it does not run on the meta device ({type(error).__name__}: {reason})"


def _on_meta(network: Network) -> Network:
    """A copy without content, which costs no memory."""
    tensors = [*network.parameters(), *network.buffers()]
    empty = {
        id(each): nn.Parameter(each.to(_META), each.requires_grad) if isinstance(each, nn.Parameter) else each.to(_META)
        for each in tensors
    }
    return copy.deepcopy(network, empty)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
