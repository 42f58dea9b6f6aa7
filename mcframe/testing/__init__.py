"""The conformance kit: checks a plug-in against the requirements of its kind (docs/conformance.md).

With pytest, derive from the suite of the kind and name the plug-in:

    from mcframe.testing import GistNetSuite

    class TestMine(GistNetSuite):
        @pytest.fixture
        def plugin(self):
            return "gistnet.mine"

Without pytest, call `check_plugin("gistnet.mine")` or run `mcframe plugins check gistnet.mine`. The kit needs
hypothesis, the suites also pytest: `pip install mcframe[testing]`.
"""

from __future__ import annotations

import importlib
from typing import Any

from mcframe.renamed import renamed_export

_MODULES = {
    "Requirement": "requirements",
    "all_requirements": "requirements",
    "Result": "checking",
    "check_plugin": "checking",
}


def __getattr__(name: str) -> Any:
    """Import on first use: pytest loads this package in every session, which must need neither torch nor hypothesis."""
    if name not in _MODULES and not name.endswith("Suite"):
        raise renamed_export(__name__, name)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'suites')}"), name)
