"""Evaluations of a model in training or from a checkpoint: what `mcframe.evaluation` needs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mcframe.evaluation.asking import ask
from mcframe.evaluation.subject import ModelSubject
from mcframe.hookspecs import Findings, Tokenizer
from mcframe.modeling.step import MegaContextStep
from mcframe.training.assembly import Assembly
from mcframe.training.engine import Engine
from mcframe.training.settings import Recipe


def subject_of(
    recipe: Recipe, tokenizer: Tokenizer, model: MegaContextStep, call: Callable[..., Any], device: torch.device
) -> ModelSubject:
    """The model of a run as evaluations see it; `call` runs its tasks: the module itself, or an engine around it."""
    geometry = model.geometry
    return ModelSubject(
        model=call,
        geometry=geometry,
        tokenizer=tokenizer,
        text=recipe.text,
        share=recipe.data.validation_share,
        own_task=recipe.task,
        allocator=recipe.allocator(geometry),
        vocab_size=model.gpt.vocab_size,
        length=recipe.context.train_wc_length,
        has_gists=model.gistnet is not None,
        has_lens=model.lensnet is not None,
        device=device,
        batch=recipe.micro_batch,
    )


class Evaluating:
    """The evaluations of a run in training."""

    def __init__(self, engine: Engine, assembly: Assembly, device: torch.device) -> None:
        self._engine, self._evaluations = engine, assembly.evaluations
        self._subject = subject_of(assembly.recipe, assembly.tokenizer, engine.model, engine, device)

    def run(self) -> Iterator[tuple[str, Findings]]:
        """Each evaluation's name and findings, the same on every rank. Collective."""
        self._engine.wrapped.eval()
        yield from ask(self._evaluations, self._subject)
        self._engine.wrapped.train()
