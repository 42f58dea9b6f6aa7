"""The losses that come with mcframe, one file each."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.loss.attribution import Attribution
from mcframe_plugins.loss.bag_of_tokens import BagOfTokens
from mcframe_plugins.loss.balance import Balance
from mcframe_plugins.loss.delta_penalty import DeltaPenalty
from mcframe_plugins.loss.distillation import Distillation
from mcframe_plugins.loss.ema_kl import EMAKL
from mcframe_plugins.loss.next_token import NextToken
from mcframe_plugins.loss.preference import Preference
from mcframe_plugins.loss.reconstruction import Reconstruction
from mcframe_plugins.loss.span_difference import SpanDifference
from mcframe_plugins.loss.span_utility import SpanUtility
from mcframe_plugins.loss.variants import VariantNLL
from mcframe_plugins.loss.z_loss import ZLoss

mcframe_api = "0.1"

LOSSES = (
    NextToken, VariantNLL, DeltaPenalty, Distillation, Reconstruction, Preference, SpanUtility, SpanDifference,
    Attribution, Balance, EMAKL, BagOfTokens, ZLoss,
)  # fmt: skip


@hookimpl
def register_plugins(register: Register) -> None:
    """Register every loss under its name."""
    for loss in LOSSES:
        register(loss.name, loss)
