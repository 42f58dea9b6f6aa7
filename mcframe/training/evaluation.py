"""Evaluations of a model in training or from a checkpoint: what `mcframe.evaluation` needs of a run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mcframe.config.schema import RunConfig
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.evaluation.runner import run_evaluations
from mcframe.hookspecs import EvalResult, Tokenizer
from mcframe.modeling.model import MegaContextModel
from mcframe.training.build import Components
from mcframe.training.engine import Engine


def subject_of(
    run_config: RunConfig, tokenizer: Tokenizer, model: MegaContextModel, device: torch.device
) -> EngineEvalModel:
    """Return the model of a run for evaluations."""
    tree = model.tree
    return EngineEvalModel(
        model=model,
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
        self._subject = subject_of(components.run_config, components.tokenizer, engine.model, device)

    def run(self) -> Iterator[tuple[str, EvalResult]]:
        """Each evaluation's name and findings, the same on every rank. Collective."""
        self._engine.wrapped.eval()
        yield from run_evaluations(self._evaluations, self._subject)
        self._engine.wrapped.train()
