"""The model of a run as evaluations see it."""

from __future__ import annotations

import torch

from mcframe.config.schema import RunConfig
from mcframe.evaluation.eval_model import EngineEvalModel
from mcframe.hookspecs import Tokenizer
from mcframe.modeling.model import MegaContextModel


def eval_model(
    run_config: RunConfig, tokenizer: Tokenizer, model: MegaContextModel, device: torch.device
) -> EngineEvalModel:
    """Return the model of a run for evaluations."""
    tree = model.tree
    return EngineEvalModel(
        model=model,
        tree=tree,
        tokenizer=tokenizer,
        text=run_config.text,
        validation_fraction=run_config.data.validation_fraction,
        own_task=run_config.task,
        allocator=run_config.allocator,
        vocab_size=model.gpt.vocab_size,
        length=run_config.context.length_end,
        has_gists=model.gistnet is not None,
        has_lens=model.lensnet is not None,
        device=device,
        batch=run_config.micro_batch_limit,
        session=run_config.session,
    )
