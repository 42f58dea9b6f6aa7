"""Callbacks of the trainer run after the tokens that they are configured for, and leave the model in its mode."""

from types import SimpleNamespace

import pytest
from torch import nn

from mcframe.config.training_schema import EvaluationConfig, FiguresConfig, SamplingConfig
from mcframe.training.callbacks.base import TrainerCallback
from mcframe.training.callbacks.evaluate import Evaluate
from mcframe.training.callbacks.figures import Figures
from mcframe.training.callbacks.sample import Sample
from mcframe.training.eval_mode import eval_mode
from mcframe.training.train_state import TrainState


def due_steps(callback, steps=7, batch_tokens=100):
    state = TrainState(batch_tokens, steps)
    trainer = SimpleNamespace(state=state)
    due = [0] if callback.due(trainer) else []
    while not state.finished:
        state.advance()
        due += [state.step] if callback.due(trainer) else []
    return due


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (TrainerCallback(200), [2, 4, 6, 7]),
        (TrainerCallback(250), [3, 5, 7]),
        (TrainerCallback(0), [7]),
        (TrainerCallback(300, at_start=True), [0, 3, 6, 7]),
        (TrainerCallback(300, at_end=False), [3, 6]),
        (Sample(SamplingConfig(every=300)), [3, 6]),
        (Figures(FiguresConfig(every=300)), [3, 6, 7]),
        (Figures(FiguresConfig(every=0)), []),
        (Evaluate(EvaluationConfig(every=600), None), [6, 7]),
        (Evaluate(EvaluationConfig(), None), []),
    ],
)
def test_a_callback_is_due_when_a_multiple_of_its_tokens_is_crossed(callback, expected):
    assert due_steps(callback) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_after_an_exception_too(training):
    model = nn.Sequential(nn.Dropout()).train(training)

    def fail():
        with eval_mode(model):
            assert not model[0].training
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model[0].training is training
