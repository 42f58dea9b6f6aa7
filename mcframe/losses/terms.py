"""The loss terms of a run, by name: their weighted sum and their metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mcframe.context.step_metrics import StepMetrics, masked_sum
from mcframe.errors import UserError, require
from mcframe.hookspecs import Loss, StepView
from mcframe.interfaces.loss import PARTS, Need
from mcframe.modeling.model import PhaseTimer, no_timer

DECLARED_METRICS = {
    "train/loss": ("nats", "lower", "the total loss"),
    "mc/lens_loss": ("1", "lower", "weighted sum of LensNet's losses"),
    "loss/{loss}": ("its own", "lower", "value of a loss in run.losses, unweighted"),
    "loss/{loss}/{figure}": ("its own", "neither", "another value that this loss reports"),
}


class LossTerms(nn.ModuleDict):
    """Losses by name. Their parameters are stored in checkpoints as `losses.NAME...`.

    Args:
        losses: The losses of `run.losses`, in the order in which they are added up.
        missing: The parts that the run does not have, of those that a loss may require.

    Raises:
        UserError: Two losses have one name, a name is not an identifier, or a loss requires pairs of variants and
            there is one variant.
    """

    def __init__(self, losses: Sequence[Loss], missing: Collection[Need] = ()) -> None:
        super().__init__()
        self.skipped: dict[str, Need] = {}
        names = [loss.name for loss in losses]
        for loss, name in zip(losses, names, strict=True):
            _check_name(name, names)
            if isinstance(loss.weight, int | float):  # a third-party loss may learn its weight
                require(0 <= loss.weight < math.inf, f"loss.{name}.weight", loss.weight, "a number of 0 or more")
            absent = [need for need in loss.needs if need in missing]
            if part := next((need for need in absent if need in PARTS), None):
                self.skipped[name] = part
            elif absent:
                raise UserError(
                    f"loss.{name}: expected two or more variants a sequence, got one",
                    binding=f"loss.{name}",
                    remedy="raise the count of run.variants, or remove the loss from run.losses; @loss.span_utility "
                    "trains LensNet with one variant",
                )
            else:
                self[name] = loss

    def each(self) -> Iterator[Loss]:
        """Iterate over the losses, in order."""
        for loss in self.values():
            assert isinstance(loss, Loss)
            yield loss

    def require(self, need: Need) -> bool:
        """Return whether any loss requires `need`."""
        return any(need in loss.needs for loss in self.each())

    def forward(
        self,
        view: StepView,
        timed: PhaseTimer = no_timer,
        bare: StepView | None = None,
        plain: StepView | None = None,
    ) -> tuple[Tensor, StepMetrics]:
        """Return the weighted sum of the losses, a scalar, and their metrics.

        Args:
            view: The sequences that have the uncompressed pass and variants.
            timed: Times phases.
            bare: Sequences without the uncompressed pass, in addition. Losses that compare do not count them.
            plain: All sequences, without variants, for losses that require nothing. None where all have variants.
        """
        total, metrics = view.uncompressed.nll.new_zeros(()), StepMetrics()
        lens = total.detach()
        for loss in self.each():
            of_lens = "scores" in loss.needs
            with timed("lens" if of_lens else "losses"):
                term = loss(view if plain is None or loss.needs else plain)
                values = term.loss if bare is None or loss.compares else torch.cat((term.loss, loss(bare).loss))
                value = loss.weight * values.float().mean()
                total = total + value
                metrics |= _logged(loss.name, values, term.metrics)
                lens = lens + value.detach() if of_lens else lens
        sequences = view.uncompressed.nll.shape[0]
        if self.require("scores"):
            metrics.means["mc/lens_loss"] = _weighted(lens, sequences)
        metrics.means["train/loss"] = _weighted(total, sequences)
        return total, metrics

    def setup(self, parts: Mapping[str, nn.Module]) -> None:
        """Prepare every loss; see `Loss.setup`."""
        for loss in self.each():
            loss.setup(parts)

    def begin_step(self, progress: float) -> None:
        """Announce an optimizer step to every loss; see `Loss.begin_step`."""
        for loss in self.each():
            loss.begin_step(progress)

    def after_step(self, parts: Mapping[str, nn.Module]) -> None:
        """Let every loss update its state; see `Loss.after_step`."""
        for loss in self.each():
            loss.after_step(parts)


def _weighted(loss: Tensor, sequences: int) -> Tensor:
    """Return [2]: the sum over the sequences of a micro-batch, of a mean over them, and their number.

    In float64, so that the quotient is the mean to the bit. Every sequence has the same weight in an interval, also
    where the ranks, and with them the micro-batches, have changed within it.
    """
    return torch.stack((loss.detach().double(), torch.ones_like(loss, dtype=torch.float64))) * sequences


def _logged(name: str, loss: Tensor, metrics: Mapping[str, Tensor] | StepMetrics) -> StepMetrics:
    own = {f"loss/{name}": masked_sum(loss, ~torch.isnan(loss))}
    if isinstance(metrics, StepMetrics):
        return StepMetrics(means=own) | metrics
    more = {f"loss/{name}/{label}": masked_sum(values, ~torch.isnan(values)) for label, values in metrics.items()}
    return StepMetrics(means=own | more)


def _check_name(name: str, names: Sequence[str]) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or hasattr(nn.ModuleDict, name):
        raise UserError(
            f"run.losses: expected a loss name of letters, digits and underscores, got {name!r}",
            binding="run.losses",
            remedy="set the attribute `name` of the loss, for example name = 'my_loss'",
        )
    if names.count(name) > 1:
        raise UserError(
            f"run.losses: expected losses with different names, got {name!r} twice",
            binding="run.losses",
            remedy=f"remove one {name!r} from run.losses, or set another name",
        )
