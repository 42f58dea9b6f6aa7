"""The task that docs/plugins/task.md shows loads as a plug-in and keeps its contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mcframe.config.run_config import load_run_config
from mcframe.context.context_tree import ContextTree
from mcframe.context.counter_rng import hash_combine
from mcframe.errors import UserError

PAGE = (Path(__file__).parents[3] / "docs" / "plugins" / "task.md").read_text("utf-8")
SEEDS = hash_combine(torch.arange(200), 0)


@pytest.fixture
def one_digit(tmp_path, monkeypatch, new_site, smoke):
    """Return the factory of a gin file that names it."""
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S) if "(SyntheticTask)" in code)
    new_site(tmp_path).install("mcframe_one_digit", code)
    monkeypatch.syspath_prepend(tmp_path)
    return load_run_config([smoke], ["run.task = @task.one_digit"]).run_config.task


@pytest.mark.parametrize(
    "tree", [ContextTree(64, 8, tail=10), ContextTree(67, 8, tail=16, sink=2), ContextTree(9, 8, tail=0)]
)
def test_the_digit_is_read_before_the_cursor_and_answered_after_it(one_digit, tree):
    task = one_digit(tree)
    batch = task.generate(SEEDS)
    cursor = tree.cursor
    assert batch.loss_mask.nonzero()[:, 1].tolist() == [cursor - 1] * 200
    assert int(batch.tokens.max()) < task.vocab_size
    for tokens, evidence in zip(batch.tokens.tolist(), batch.evidence.tolist(), strict=True):
        text = bytes(tokens).decode()
        assert re.fullmatch(r"\.*(\d)\.*\?\1\.*", text)
        position = evidence[cursor - 1]
        assert text[position] == text[cursor]
        assert tree.compressible[0][position // 8]
        assert set(evidence) == {position, -1}
    assert torch.equal(task.generate(SEEDS[7:9]).tokens, batch.tokens[7:9])
    assert task.chance == 1 / len(batch.tokens[:, cursor].unique())


def test_a_tree_without_room_is_refused_with_one_that_has_it(one_digit):
    with pytest.raises(UserError, match="no room") as error:
        one_digit(ContextTree(64, 8, tail=16))
    assert "set context.tail = 7" in str(error.value)
    one_digit(ContextTree(64, 8, tail=7))
