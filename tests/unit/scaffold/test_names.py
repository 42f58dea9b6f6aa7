"""What a new plug-in may be called."""

from __future__ import annotations

import pytest

from mcframe.config.run_config import all_plugins
from mcframe.errors import UserError
from mcframe.scaffold.names import Names, check_free


def test_one_name_gives_all_others() -> None:
    names = Names.of("last-child", "gistnet")
    assert (names.package, names.module, names.name, names.camel, names.given) == (
        "mcframe-last-child", "mcframe_last_child", "last_child", "LastChild", "last-child",
    )  # fmt: skip
    assert Names.of("last_child", "gistnet") == names


def test_the_kind_is_not_said_twice() -> None:
    """Clause P1 of the conformance kit: `gistnet.last`, not `gistnet.last_gistnet`."""
    names = Names.of("last-gistnet", "gistnet")
    assert (names.package, names.name, names.camel) == ("mcframe-last-gistnet", "last", "Last")
    assert Names.of("last-gistnet", "lensnet").name == "last_gistnet"


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("Last", "cannot name", "for example last"),
        ("last child", "cannot name", "for example last-child"),
        ("last--child", "cannot name", "last-child"),
        ("../last", "cannot name", "for example last"),
        ("2nd", "cannot name", "for example nd"),
        ("-", "cannot name", "for example my-net"),
        ("", "cannot name", "for example my-net"),
        ("last\n", "cannot name", "for example last"),
        ("été", "cannot name", "for example t"),
        ("mcframe-last", "begins with mcframe", "call it last"),
        ("mcframe", "begins with mcframe", "call it my-net"),
        ("class", "word of Python's own", "my-class"),
        ("gistnet", "only what kind", "my-gistnet"),
        ("gistnet-2", "only what kind", "my-gistnet"),
    ],
)
def test_what_makes_no_name_is_refused_with_one_that_does(text: str, said: str, remedy: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        Names.of(text, "gistnet")
    assert remedy in refused.value.remedy
    likely = refused.value.remedy.split()[-1]
    Names.of(likely, "gistnet")


def test_taken_names_are_refused() -> None:
    registry = all_plugins()
    for name, kind, owner in [
        ("mean", "gistnet", "gistnet.mean already, of plug-in"),
        ("random-collapse", "variants", "variants.random_collapse already"),
        ("plugins", "gistnet", "module mcframe_plugins"),
        ("presets", "logger", "module mcframe_presets"),
    ]:
        with pytest.raises(UserError, match=owner) as refused:
            check_free(Names.of(name, kind), kind, registry)
        assert "another name" in refused.value.remedy
    check_free(Names.of("mean", "allocator"), "allocator", registry)
