"""Clauses of text sources: documents that come back the same."""

from __future__ import annotations

from itertools import islice
from typing import Any

from mcframe.testing.plugin_under_test import PluginUnderTest
from mcframe.testing.requirements import expect, requirement

FIRST = 20
"""Documents that are looked at."""


@requirement("D1", "Documents are strings, and there are some", "text", after=("P9",))
def d1_strings(plugin: PluginUnderTest) -> None:
    """The first twenty are read."""
    documents = first_documents(plugin.specimen)
    expect(bool(documents), "there is no document, and no UserError that says why")
    other = [type(each).__name__ for each in documents if not isinstance(each, str)]
    expect(not other, f"a document is a {', '.join(sorted(set(other)))}")
    expect(any(each.strip() for each in documents), "the first documents are all empty")


@requirement("D2", "An epoch has the same documents in the same order every time", "text", after=("D1",))
def d2_order(plugin: PluginUnderTest) -> None:
    """Read twice, and by another instance: resumption and other ranks must find what was read."""
    for epoch in (0, 1):
        documents = first_documents(plugin.specimen, epoch)
        expect(first_documents(plugin.specimen, epoch) == documents, f"epoch {epoch} differs when it is read again")
        expect(first_documents(plugin.build(), epoch) == documents, f"another instance has another epoch {epoch}")


@requirement(
    "D3",
    "`identity` is a string that stays while the documents do, `streaming` is True or False",
    "text",
    after=("P9",),
)
def d3_identity(plugin: PluginUnderTest) -> None:
    """It names the token cache."""
    expect_identity(plugin.specimen, plugin.build())
    expect(isinstance(plugin.specimen.streaming, bool), f"streaming is {plugin.specimen.streaming!r}")


def first_documents(source: Any, epoch: int = 0) -> list[str]:
    """The first documents of an epoch."""
    return list(islice(source.documents(epoch), FIRST))


def expect_identity(one: Any, other: Any) -> None:
    """Raise NotConforming unless two of the same kind have one identity, a string."""
    expect(isinstance(one.identity, str) and bool(one.identity), f"identity is {one.identity!r}; it is a string")
    expect(one.identity == one.identity, "identity changes when it is asked again")
    expect(one.identity == other.identity, f"two that are alike are called {one.identity!r} and {other.identity!r}")
