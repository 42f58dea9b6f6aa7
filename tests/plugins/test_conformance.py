"""Every plug-in that comes with mcframe, through the classes that anybody else's tests use."""

from pathlib import Path

import pytest

from mcframe.recipe import all_plugins
from mcframe.registry import KINDS
from mcframe.testing.contracts import CONTRACTS

ROOT = Path(__file__).parents[2]


def contract_of(kind):
    """A test class as somebody would write it, with a fixture that goes through all plug-ins of a kind."""
    names = [f"{kind}.{name}" for name in all_plugins().implementations[kind]]

    class Test(CONTRACTS[kind]):
        settings = (f"text.local_files.paths = '{ROOT / 'docs'}'",) if kind == "text" else ()

        @pytest.fixture(params=names)
        def plugin(self, request):
            return request.param

    return Test


for _kind in KINDS:
    globals()[f"Test{_kind.title()}"] = contract_of(_kind)
