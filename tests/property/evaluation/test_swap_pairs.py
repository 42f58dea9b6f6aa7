"""Who exchanges gists with whom: never two blocks of one document."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.evaluation.gist_quality import GistQuality
from mcframe.evaluation.swap_pairs import documents_before_cursor, matched, neighboured
from mcframe.hookspecs import EvalData
from tests.support.evaluation_builders import FLAT, build_model, build_subject, some_sequences
from tests.support.generators import MANY, geometry_of


def overlap(first, last, i, j):
    return first[i] <= last[j] and first[j] <= last[i]


@MANY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=9))
def test_pairs_are_of_different_documents_and_no_two_are_left_over(spans):
    first = torch.tensor([start for start, _ in spans], dtype=torch.long)
    last = first + torch.tensor([width for _, width in spans], dtype=torch.long)
    pairs = matched(first, last).view(-1, 2).tolist()
    used = [row for pair in pairs for row in pair]
    assert len(used) == len(set(used))
    for i, j in pairs:
        assert not overlap(first, last, i, j)
    rest = sorted(set(range(len(spans))) - set(used))
    for index, i in enumerate(rest):
        for j in rest[index + 1 :]:
            assert overlap(first, last, i, j)


def test_documents_of_what_may_be_collapsed():
    tree = geometry_of(FLAT)  # 25 tokens, blocks of 3, the cursor at 18
    documents = torch.arange(26)[None] // 4
    held = EvalData(torch.zeros(1, 26, dtype=torch.long), documents, torch.ones(1, 25, dtype=torch.bool))
    assert [part.tolist() for part in documents_before_cursor(held, tree)] == [[0], [4]]


def test_windows_of_one_document_are_never_neighbours():
    """Document 1 fills all of window 1 and ends in window 2; every other pair is fine."""
    held = some_sequences(FLAT, 4, seed=0)
    documents = torch.tensor([[0] * 26, [1] * 26, [1] * 4 + [2] * 22, [3] * 26])
    found = neighboured(EvalData(held.tokens, documents, held.loss_mask), geometry_of(FLAT))
    starts = found.documents[:, [0, -1]].view(-1, 4).tolist()
    assert sorted(map(tuple, starts)) in ([(0, 0, 1, 2), (1, 1, 3, 3)], [(0, 0, 1, 1), (1, 2, 3, 3)])


def test_neighbours_keep_all_that_is_theirs():
    held = some_sequences(FLAT, 6, seed=0, evidence=True)
    found = neighboured(held, geometry_of(FLAT))
    rows = [held.tokens.tolist().index(row) for row in found.tokens.tolist()]
    assert sorted(rows) == list(range(6))
    for name in ("tokens", "documents", "loss_mask", "evidence"):
        assert torch.equal(getattr(found, name), getattr(held, name)[rows])


def test_a_single_document_leaves_swap_out_and_says_so():
    held = some_sequences(FLAT, 4, seed=0)
    one = EvalData(held.tokens, torch.zeros_like(held.documents), held.loss_mask)
    assert neighboured(one, geometry_of(FLAT)) is None
    found = GistQuality(lengths=(0.7,), resamples=20).run(build_subject(build_model(FLAT), one))
    assert not any("swap" in name for name in found.metrics)
    assert any("/gist/tail" in name for name in found.metrics)
    assert any("swap is left out" in note for note in found.notes)


def test_who_finds_no_partner_is_left_out_and_counted():
    held = some_sequences(FLAT, 5, seed=0)
    found = GistQuality(lengths=(0.7,), resamples=20).run(build_subject(build_model(FLAT), held))
    assert any(note.startswith("1 of 5 sequences are left out") for note in found.notes)
