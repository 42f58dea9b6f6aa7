import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.metrics.context_text import colored, key, legend, strip

RUN10 = ContextTree(window=2048, block_size=32)


def test_run10_with_seven_gists():
    focus = [0] * 64
    for block in (2, 5, 6, 20, 33, 40, 59):
        focus[block] = 1
    text = strip(focus, RUN10)
    assert text == ("··1··11·············1············1······1··················1|····  1831 of 2048 entries, 7 gists")


def test_levels_have_their_digits():
    tree = ContextTree(window=64, block_size=4, levels=2, tail=8)
    assert strip([2] * 4 + [0, 1] + [0] * 10, tree) == "2222·1········|··  46 of 64 entries, 2 gists"


@pytest.mark.parametrize(("tail", "expected"), [(0, "····|"), (4, "···|·"), (5, "··|··"), (16, "|····")])
def test_the_cursor_stands_before_the_first_protected_block(tail, expected):
    assert strip([0] * 4, ContextTree(window=16, block_size=4, tail=tail)).startswith(expected + "  16 of 16")


@given(st.lists(st.integers(0, 1), min_size=1, max_size=40), st.integers(1, 3), st.integers(0, 200))
def test_one_character_a_block_and_the_number_of_entries(focus, slots, tail):
    tree = ContextTree(window=len(focus) * 4, block_size=4, slots=slots, tail=min(tail, len(focus) * 4))
    text = strip(focus, tree)
    blocks = text.split("  ")[0]
    assert [0 if c == "·" else int(c) for c in blocks.replace("|", "")] == focus
    assert blocks.count("|") == 1
    entries = sum(4 if lod == 0 else slots for lod in focus)
    assert legend(focus, tree).startswith(f"{entries} of {len(focus) * 4} entries, {sum(focus)} gist")


def test_tokens_after_the_last_complete_block_have_no_character():
    text = strip([1, 0], ContextTree(window=11, block_size=4, tail=0))
    assert text == "1·|  8 of 11 entries, 1 gist"


def test_colours_add_nothing_to_the_text():
    text = colored([0, 1, 0, 0], ContextTree(window=16, block_size=4, tail=4))
    assert text.plain == "·1·|·  13 of 16 entries, 1 gist"
    assert {str(span.style) for span in text.spans} == {"dim", "bold cyan", "bold red"}


def test_the_key_names_every_character():
    text = key(ContextTree(window=64, block_size=4, levels=2, tail=8)).plain
    assert text == "· 4 raw tokens   1 in a gist of 4 tokens   2 in a gist of 16 tokens   | cursor"


@pytest.mark.parametrize("focus", [[0] * 3, [0] * 17, [2] * 3 + [0] * 13, [3] * 16, [-1] * 16])
def test_a_focus_that_does_not_fit_is_an_error(focus):
    with pytest.raises(ValueError, match=r"focus: expected"):
        strip(focus, ContextTree(window=64, block_size=4, levels=2, tail=8))
