"""Variant strategies: choices of the working contexts that training compares."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.variants.aggressive import Aggressive
from mcframe_plugins.variants.contiguous import Contiguous
from mcframe_plugins.variants.lens_guided import LensGuided
from mcframe_plugins.variants.none import NoVariants
from mcframe_plugins.variants.random_collapse import RandomCollapse
from mcframe_plugins.variants.single_span import SingleSpan

mcframe_api = "0.1"


@hookimpl
def register_plugins(register: Register) -> None:
    """Register the variant strategies of this folder."""
    register("aggressive", Aggressive)
    register("contiguous", Contiguous)
    register("lens_guided", LensGuided)
    register("none", NoVariants)
    register("random_collapse", RandomCollapse)
    register("single_span", SingleSpan)
