"""Evaluations of a model in training or from a checkpoint: what `mcframe.evaluation` needs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mcframe.config.schema import RunConfig
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.evaluation.runner import run_evaluations
from mcframe.hookspecs import EvalResult, Tokenizer
from mcframe.modeling.step import MegaContextStep
from mcframe.training.build import Components
from mcframe.training.engine import Engine


def subject_of(
    run_config: RunConfig, tokenizer: Tokenizer, model: MegaContextStep, call: Callable[..., Any], device: torch.device
) -> EngineEvalModel:
    """The model of a run as evaluations see it; `call` runs its tasks: the module itself, or an engine around it."""
    tree = model.tree
    return EngineEvalModel(
        model=call,
        tree=tree,
        tokenizer=tokenizer,
        text=run_config.text,
        share=run_config.data.validation_share,
        own_task=run_config.task,
        allocator=run_config.allocator(tree),
        vocab_size=model.gpt.vocab_size,
        length=run_config.context.length_end,
        has_gists=model.gistnet is not None,
        has_lens=model.lensnet is not None,
        device=device,
        batch=run_config.micro_batch,
    )


class Evaluating:
    """The evaluations of a run in training."""

    def __init__(self, engine: Engine, components: Components, device: torch.device) -> None:
        self._engine, self._evaluations = engine, components.evaluations
        self._subject = subject_of(components.run_config, components.tokenizer, engine.model, engine, device)

    def run(self) -> Iterator[tuple[str, EvalResult]]:
        """Each evaluation's name and findings, the same on every rank. Collective."""
        self._engine.wrapped.eval()
        yield from run_evaluations(self._evaluations, self._subject)
        self._engine.wrapped.train()
