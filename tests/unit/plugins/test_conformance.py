"""Every plug-in of mcframe in the requirement suites that third-party tests use."""

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.testing import check_plugin
from mcframe.testing.requirements import requirements_of
from mcframe.testing.suites import BY_KIND

INSTALLED = all_plugins().implementations
SMALLER = {"evaluation": ("evaluation.long_context.multiples = (1, 4)", "evaluation.long_context.windows = 8")}
"""Bindings by kind with which checks take less time."""


def suite_of(kind):
    """Return a test class with a fixture of all plug-ins of a kind."""
    names = [f"{kind}.{name}" for name in INSTALLED[kind]]

    class Test(BY_KIND[kind]):
        settings = SMALLER.get(kind, ())

        @pytest.fixture(params=names)
        def plugin(self, request):
            return request.param

    return Test


for _kind in BY_KIND:
    globals()[f"Test{_kind.title()}"] = suite_of(_kind)


ODD = [
    ("gistnet.transformer", "pooling = 'query'", "head = 'linear'"),
    ("gistnet.transformer", "pooling = 'cls'", "residual = False"),
    ("gistnet.transformer", "base_layer = 2"),
    ("gistnet.multihead", "layers = 0", "queries = 2", "residual = False"),
    ("gistnet.contextual", "layers = 1", "window = 2", "pooling = 'query'"),
    ("gistnet.contextual", "window = 1", "pooling = 'heads'", "residual = False"),
    ("gistnet.contextual", "layers = 0", "base_layer = 1", "from_tokens = False"),
    ("lensnet.transformer", "layers = 1", "surprise = True"),
    ("lensnet.mlp", "hidden = 6", "layers = 3", "surprise = True", "embeddings = True"),
    ("allocator.greedy", "expand_threshold = 0.2", "collapse_threshold = 0.5", "replacements = 1", "cooldown = 1"),
    ("allocator.hierarchical", "kept = (0.9, 0.5)"),
    ("variants.lens_guided", "temperature = 0.05", "random_fraction = 0.0"),
    ("variants.single_span", "count = 3"),
]

MORE = [
    ("gistnet.contextual", "layers = 1", "window = 1", "from_tokens = False"),
    ("lensnet.transformer", "layers = 1", "width = 8"),
]
"""Further combinations."""


@pytest.mark.parametrize(
    "case", [*ODD, *(pytest.param(case, marks=pytest.mark.matrix) for case in MORE)], ids=lambda case: " ".join(case)
)
def test_other_options_conform(case):
    """The requirements of the kind; those of every module and every part are checked with the defaults."""
    name, *options = case
    own = [each.id for each in requirements_of(name.partition(".")[0]) if not each.slow and each.id[0] in "GLAV"]
    only = [*own, "N3"] if own[0][0] in "GL" else own
    results = check_plugin(name, [f"{name}.{option}" for option in options], only=only)
    assert {each.requirement: each.message for each in results if each.outcome == "failed"} == {}
