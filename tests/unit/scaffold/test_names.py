"""Names of new plug-ins."""

from __future__ import annotations

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError
from mcframe.scaffold.names import Names, check_free


def test_one_name_makes_all_others() -> None:
    names = Names.of("last-child", "gistnet")
    assert (names.package, names.module, names.name, names.camel, names.entry_point) == (
        "mcframe-last-child", "mcframe_last_child", "last_child", "LastChild", "last-child",
    )  # fmt: skip
    assert Names.of("last_child", "gistnet") == names


def test_kind_is_dropped_from_the_gin_name() -> None:
    names = Names.of("last-gistnet", "gistnet")
    assert (names.package, names.name, names.camel) == ("mcframe-last-gistnet", "last", "Last")
    assert Names.of("last-gistnet", "lensnet").name == "last_gistnet"


@pytest.mark.parametrize(
    "text",
    [
        "Last", "last child", "last--child", "../last", "2nd", "-", "", "last\n", "été", "mcframe-last", "mcframe",
        "class", "gistnet", "gistnet-2",
    ],
)  # fmt: skip
def test_invalid_name_is_rejected_with_a_valid_one(text: str) -> None:
    with pytest.raises(UserError) as refused:
        Names.of(text, "gistnet")
    Names.of(refused.value.remedy.split()[-1], "gistnet")


def test_taken_names_are_rejected() -> None:
    registry = all_plugins()
    for name, kind in [("mean", "gistnet"), ("random-collapse", "variants"), ("plugins", "gistnet")]:
        with pytest.raises(UserError, match=name.replace("-", "_")):
            check_free(Names.of(name, kind), kind, registry)
    check_free(Names.of("mean", "allocator"), "allocator", registry)
