"""Variant strategies: the alternative working contexts that training compares."""

from mcframe.hookspecs import Register, hookimpl
from mcframe_plugins.variants.none import NoVariants
from mcframe_plugins.variants.random_collapse import RandomCollapse


@hookimpl
def register_variants(register: Register) -> None:
    """Offer what this folder holds."""
    register("none", NoVariants)
    register("random_collapse", RandomCollapse)
