"""Plug-ins that break one requirement each, and conforming ones: kinds that are no part of a model."""

import random

import torch
from torch import nn

from mcframe.hookspecs import (
    Callback,
    EvalResult,
    Evaluation,
    Loss,
    LossTerm,
    MetricLogger,
    Optimizer,
    Positions,
    Schedule,
    UpdateRule,
)
from tests.support.planted import breaks, keeps


@keeps("positions")
class Ramp(Positions):
    """Turns by the entry's first token, less and less from pair to pair."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.pairs = shape.width // 2

    def entry_positions(self, context):
        return context.start.float()

    def forward(self, context):
        speed = torch.arange(1, self.pairs + 1, device=context.token.device).float().reciprocal()
        angle = self.entry_positions(context)[:, None, :, None] * speed
        return angle.cos(), angle.sin()


@breaks("Q1", "positions")
class TurnsInBfloat16(Ramp):
    """Rounds position 2,047 to 2,048."""

    def forward(self, context):
        cosine, sine = super().forward(context)
        return cosine.bfloat16(), sine.bfloat16()


@breaks("Q1", "positions")
class Stretches(Ramp):
    """Makes queries longer than they are."""

    def forward(self, context):
        cosine, sine = super().forward(context)
        return 1.5 * cosine, 1.5 * sine


@breaks("M1", "positions")
class Trembles(Ramp):
    """A little noise from the global random state."""

    def entry_positions(self, context):
        return super().entry_positions(context) + torch.rand(())


@breaks("Q2", "positions")
class CountsFromTheEnd(Ramp):
    """The last entry is at 0, so later compression moves an entry."""

    def entry_positions(self, context):
        return (context.valid.sum(dim=1, keepdim=True) - torch.arange(context.length)).float()


@breaks("M3", "positions")
class ReadsTheLastToken(Ramp):
    """Reads a number back."""

    def entry_positions(self, context):
        return super().entry_positions(context) + 0.0 * float(context.token[0, -1])


@keeps("loss")
class SmallStates(Loss):
    """Keeps final states small."""

    name, needs = "small_states", ()

    def __init__(self, shape) -> None:
        super().__init__()

    def forward(self, view):
        return LossTerm(view.uncompressed.hidden.square().mean(dim=(1, 2)))


@breaks("O1", "loss")
class NeedsEverything(SmallStates):
    """Needs an unknown input."""

    needs = ("everything",)


@breaks("O1", "loss")
class ReturnsAScalar(SmallStates):
    """One figure for the batch."""

    def forward(self, view):
        return LossTerm(view.uncompressed.hidden.square().mean())


@breaks("O1", "loss")
class TakesARoot(SmallStates):
    """The logarithm of what may be zero."""

    def forward(self, view):
        return LossTerm((0 * view.uncompressed.hidden).square().mean(dim=(1, 2)).log())


@breaks("M2", "loss")
class ComparesSequences(SmallStates):
    """Distance from the mean of the batch."""

    def forward(self, view):
        hidden = view.uncompressed.hidden
        return LossTerm((hidden - hidden.mean(dim=0, keepdim=True)).square().mean(dim=(1, 2)))


@breaks("M3", "loss")
class BranchesOnItsLoss(SmallStates):
    """A branch on data."""

    def forward(self, view):
        term = super().forward(view)
        return term if term.loss.max() < 1e9 else LossTerm(0 * term.loss)


@breaks("O2", "loss")
class TrainsNothing(SmallStates):
    """Detached all over."""

    def forward(self, view):
        return LossTerm(view.uncompressed.hidden.detach().square().mean(dim=(1, 2)))


@breaks("O2", "loss")
class HasAnUnusedHead(SmallStates):
    """A parameter that is never used."""

    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.unused = nn.Linear(shape.width, 1)


@keeps("evaluation")
class MeanLoss(Evaluation):
    """Mean NLL without compression."""

    name = "mean_loss"

    def run(self, model):
        held = model.held_out(4)
        focus = torch.zeros(len(held.tokens), model.tree.blocks, dtype=torch.long)
        nll, _ = model.score(held.tokens, focus)
        return EvalResult({f"eval/{self.name}/nll": nll.nanmean().item()})


@breaks("E1", "evaluation")
class CallsItByAnotherName(MeanLoss):
    """Metrics under another prefix."""

    def run(self, model):
        return EvalResult({"val/nll": 1.0, **super().run(model).metrics})


@breaks("E1", "evaluation")
class ReturnsANumber(MeanLoss):
    """Not an EvalResult."""

    def run(self, model):
        return 0.0


@breaks("E1", "evaluation")
class DrawsAnotherFigure(MeanLoss):
    """A random focus from a global generator."""

    def run(self, model):
        found = dict(super().run(model).metrics)
        return EvalResult({**found, f"eval/{self.name}/figure": random.random()})


@breaks("E1", "evaluation")
class IsUndefinedAtTimes(MeanLoss):
    """NaN, and a number the next time."""

    calls = 0

    def run(self, model):
        IsUndefinedAtTimes.calls += 1
        figure = float("nan") if self.calls % 2 == 0 else 1.0
        return EvalResult({f"eval/{self.name}/figure": figure})


@keeps("logger")
class Keeps(MetricLogger):
    """Keeps everything in memory."""

    def __init__(self, run) -> None:
        self.kept = []

    def write(self, tokens, step, metrics):
        self.kept.append((tokens, step, dict(metrics)))


@breaks("S1", "logger")
class RequiresIntegers(Keeps):
    """Cannot write what is not a number."""

    def write(self, tokens, step, metrics):
        self.kept.append([round(value) for value in metrics.values()])


@breaks("S1", "logger")
class RequiresFullBins(Keeps):
    """Divides by a bin that may be empty."""

    def histogram(self, tokens, name, histogram):
        self.kept.append(sum(histogram.counts) / histogram.counts[0])


@breaks("S2", "logger")
class HasALocationWithoutALabel(Keeps):
    """A location without a label."""

    location = "metrics.txt"


@breaks("S1", "logger")
class CleansUp(Keeps):
    """Removes metrics before the next logger."""

    def write(self, tokens, step, metrics):
        self.kept.append(dict(metrics))
        metrics.clear()


@keeps("callback")
class CountsSteps(Callback):
    """Reports and keeps the number of steps."""

    name = "counts_steps"

    def __init__(self):
        self.steps = 0

    def after_step(self, step):
        self.steps += 1
        return {"steps": torch.tensor(float(self.steps))}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@breaks("C1", "callback")
class ReportsNumbers(CountsSteps):
    """A number is not a tensor."""

    def after_step(self, step):
        return {"steps": 1.0}


@breaks("C2", "callback")
class ForgetsItsState(CountsSteps):
    """A resumed run counts from the beginning."""

    def load_state_dict(self, state):
        self.steps = 0


@keeps("optimizer")
class Descent(Optimizer):
    """Momentum, with another rate for matrices."""

    def update_rule(self, role, lr):
        return UpdateRule(f"SGD {role}", 0.1 * lr if role == "matrix" else lr, states=1)

    def build(self, groups, offload):
        return torch.optim.SGD(groups, momentum=0.9)


@breaks("U1", "optimizer")
class SkipsVectors(Descent):
    """Matrices and embeddings only."""

    def build(self, groups, offload):
        return super().build([group for group in groups if group["rule"] != "SGD vector"], offload)


@breaks("U1", "optimizer")
class StandsStill(Descent):
    """Replaces the learning rate of the run."""

    def build(self, groups, offload):
        return super().build([group | {"lr": 0.0} for group in groups], offload)


class HiddenMomentum(torch.optim.SGD):
    """Scales a step by the number of steps, which its state does not hold."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(self.steps)
        return super().step(closure)


@breaks("U2", "optimizer")
class ForgetsItsSteps(Descent):
    """A resumed run counts from the beginning."""

    def build(self, groups, offload):
        return HiddenMomentum(groups)


@keeps("schedule")
class Halves(Schedule):
    """Half of the rate in the second half."""

    def factor(self, step, total_steps):
        return 1.0 if 2 * step < total_steps else 0.5


@breaks("H1", "schedule")
class CountsItsCalls(Schedule):
    """A resumed run starts from the beginning."""

    def __init__(self):
        self.calls = 0

    def factor(self, step, total_steps):
        self.calls += 1
        return 1 / self.calls


@breaks("H1", "schedule")
class FallsBelowZero(Schedule):
    """Ascends the gradient in the end."""

    def factor(self, step, total_steps):
        return 1 - 2 * step / total_steps


@breaks("H1", "schedule")
class IsUndefinedAtTheEnd(Schedule):
    """NaN in the last step."""

    def factor(self, step, total_steps):
        return float("nan") if step == total_steps - 1 else 1.0
