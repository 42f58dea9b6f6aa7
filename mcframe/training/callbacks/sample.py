"""Print continuations of prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mcframe.config.training_schema import SamplingConfig
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.eval_mode import eval_mode
from mcframe.training.sampling import continuations

if TYPE_CHECKING:
    from mcframe.training.trainer import Trainer


class Sample(TrainerCallback):
    """Continue the prompts of `sampling`, print the result and write it to the loggers."""

    watches = "the samples"

    def __init__(self, config: SamplingConfig) -> None:
        super().__init__(config.every, at_end=False)
        self._config = config

    def run(self, trainer: Trainer) -> None:
        """Sample with a seed that depends on the token count alone."""
        engine, tokenizer = trainer.engine, trainer.components.tokenizer
        with eval_mode(engine.wrapped):
            pairs = continuations(engine.model, tokenizer, self._config, trainer.device, trainer.state.tokens)
        for prompt, continuation in pairs:
            trainer.recorder.progress.message(Text(prompt, style="bold") + Text(continuation, style="not bold"))
        trainer.recorder.text("samples", "\n\n".join(prompt + text for prompt, text in pairs))
