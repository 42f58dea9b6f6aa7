"""The conformance kit: whether a plug-in does what its interface asks, clause by clause (docs/conformance.md).

With pytest, inherit the contract of its kind and give its name:

    from mcframe.testing import GistNetContract

    class TestMine(GistNetContract):
        @pytest.fixture
        def plugin(self):
            return "gistnet.mine"

Without, call `check_plugin("gistnet.mine")`, or run `mcframe plugins check gistnet.mine`. It needs hypothesis, and the
contracts pytest: `pip install mcframe[testing]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcframe.testing.checking import Result as Result
    from mcframe.testing.checking import check_plugin as check_plugin
    from mcframe.testing.clauses import Clause as Clause
    from mcframe.testing.clauses import every_clause as every_clause
    from mcframe.testing.contracts import AllocatorContract as AllocatorContract
    from mcframe.testing.contracts import EvaluationContract as EvaluationContract
    from mcframe.testing.contracts import GistNetContract as GistNetContract
    from mcframe.testing.contracts import LensNetContract as LensNetContract
    from mcframe.testing.contracts import ObjectiveContract as ObjectiveContract
    from mcframe.testing.contracts import PositionsContract as PositionsContract
    from mcframe.testing.contracts import SinkContract as SinkContract
    from mcframe.testing.contracts import TaskContract as TaskContract
    from mcframe.testing.contracts import TextSourceContract as TextSourceContract
    from mcframe.testing.contracts import TokenizerContract as TokenizerContract
    from mcframe.testing.contracts import VariantsContract as VariantsContract

# Looked up when they are asked for: pytest loads this package's plug-in in every session on this machine, which must
# cost nothing and need neither torch nor hypothesis.
_HOME = {
    "Clause": "clauses",
    "every_clause": "clauses",
    "Result": "checking",
    "check_plugin": "checking",
}

__all__ = [
    "AllocatorContract",
    "Clause",
    "EvaluationContract",
    "GistNetContract",
    "LensNetContract",
    "ObjectiveContract",
    "PositionsContract",
    "Result",
    "SinkContract",
    "TaskContract",
    "TextSourceContract",
    "TokenizerContract",
    "VariantsContract",
    "check_plugin",
    "every_clause",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'contracts')}"), name)
