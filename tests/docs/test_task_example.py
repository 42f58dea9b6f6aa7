"""The task that docs/plugins/task.md shows loads as a plug-in and keeps what an author is told to keep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mcframe.context.geometry import Geometry
from mcframe.context.seeding import mix
from mcframe.errors import UserError
from mcframe.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "plugins" / "task.md").read_text("utf-8")
SEEDS = mix(torch.arange(200), 0)


@pytest.fixture
def one_digit(tmp_path, monkeypatch, new_site, smoke):
    """The factory, as a gin file that names it gets it."""
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if "(Task)" in code)
    new_site(tmp_path).install("mcframe_one_digit", code)
    monkeypatch.syspath_prepend(tmp_path)
    return load_recipe([smoke], ["run.task = @task.one_digit"]).recipe.task


@pytest.mark.parametrize(
    "geometry", [Geometry(64, 8, tail=10), Geometry(67, 8, tail=16, sink=2), Geometry(9, 8, tail=0)]
)
def test_the_digit_is_read_in_front_and_answered_behind(one_digit, geometry):
    task = one_digit(geometry)
    batch = task.generate(SEEDS)
    cursor = geometry.cursor
    assert batch.scored.nonzero()[:, 1].tolist() == [cursor - 1] * 200
    assert int(batch.tokens.max()) < task.vocab_size
    for tokens, evidence in zip(batch.tokens.tolist(), batch.evidence.tolist(), strict=True):
        text = bytes(tokens).decode()
        assert re.fullmatch(r"\.*(\d)\.*\?\1\.*", text)
        place = evidence[cursor - 1]
        assert text[place] == text[cursor]
        assert geometry.compressible[0][place // 8]
        assert set(evidence) == {place, -1}
    assert torch.equal(task.generate(SEEDS[7:9]).tokens, batch.tokens[7:9])
    assert task.chance == 1 / len(batch.tokens[:, cursor].unique())


def test_a_tree_without_room_is_refused_with_one_that_has_it(one_digit):
    with pytest.raises(UserError, match="no room") as error:
        one_digit(Geometry(64, 8, tail=16))
    assert "set context.tail = 7" in str(error.value)
    one_digit(Geometry(64, 8, tail=7))
