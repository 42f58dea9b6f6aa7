"""Options of first-party plug-ins that are out of range."""

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.context.context_tree import ContextTree
from mcframe.errors import UserError
from mcframe.hookspecs import ModelShape

TREE = ContextTree(window=27, block_size=3, levels=2, tail=0)
OUT_OF_RANGE = [
    *((f"gistnet.{name}.heads", heads) for name in ("transformer", "multihead", "contextual") for heads in (3, 0)),
    ("gistnet.transformer.base_layer", -1),
    ("gistnet.multihead.queries", 0),
    ("gistnet.multihead.layers", -1),
    ("gistnet.contextual.window", -1),
    ("gistnet.contextual.queries", 0),
    ("gistnet.contextual.base_layer", -2),
    ("gistnet.contextual.layers", -1),
    ("gistnet.contextual.layers", 0),
    ("lensnet.transformer.heads", 3),
    ("lensnet.mlp.hidden", 0),
    ("lensnet.mlp.layers", 0),
    ("lensnet.surprise.scale", 0.0),
    *(("allocator.hierarchical.kept", kept) for kept in ((), (0.5,), (0.5, 1.5), (-0.1, 0.0), (0.5, 0.5, 0.5))),
    ("allocator.stochastic_greedy.temperature", -1.0),
    *((f"variants.{name}.count", 0) for name in ("aggressive", "contiguous", "random_collapse", "single_span")),
    ("variants.lens_guided.count", 0),
    ("variants.lens_guided.temperature", -0.1),
    ("variants.lens_guided.random_fraction", 1.5),
]


@pytest.mark.parametrize(("binding", "value"), OUT_OF_RANGE)
def test_option_out_of_range_is_an_error(binding, value):
    kind, name, option = binding.split(".")
    argument = ModelShape(8, TREE) if kind in ("gistnet", "lensnet") else TREE
    factory = all_plugins().implementations[kind][name].factory
    with pytest.raises(UserError) as caught:
        factory(argument, **{option: value})
    assert caught.value.binding == binding
