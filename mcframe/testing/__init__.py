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
    from mcframe.testing.requirements import Requirement as Requirement
    from mcframe.testing.requirements import every_clause as every_clause
    from mcframe.testing.suites import AllocatorContract as AllocatorContract
    from mcframe.testing.suites import CallbackContract as CallbackContract
    from mcframe.testing.suites import EvaluationContract as EvaluationContract
    from mcframe.testing.suites import GistNetContract as GistNetContract
    from mcframe.testing.suites import LensNetContract as LensNetContract
    from mcframe.testing.suites import LoggerContract as LoggerContract
    from mcframe.testing.suites import LossContract as LossContract
    from mcframe.testing.suites import PositionsContract as PositionsContract
    from mcframe.testing.suites import TaskContract as TaskContract
    from mcframe.testing.suites import TextSourceContract as TextSourceContract
    from mcframe.testing.suites import TokenizerContract as TokenizerContract
    from mcframe.testing.suites import VariantsContract as VariantsContract

# Looked up when they are asked for: pytest loads this package's plug-in in every session on this machine, which must
# cost nothing and need neither torch nor hypothesis.
_HOME = {
    "Requirement": "requirements",
    "every_clause": "requirements",
    "Result": "checking",
    "check_plugin": "checking",
}

__all__ = [
    "AllocatorContract",
    "CallbackContract",
    "EvaluationContract",
    "GistNetContract",
    "LensNetContract",
    "LoggerContract",
    "LossContract",
    "PositionsContract",
    "Requirement",
    "Result",
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
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'suites')}"), name)
