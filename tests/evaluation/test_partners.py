"""Who exchanges gists with whom: never two blocks of one document."""

import torch
from evaluation_builders import FLAT, build_model, build_subject, some_sequences
from generators import MANY, geometry_of
from hypothesis import given
from hypothesis import strategies as st

from mcframe.evaluation.controls import Controls
from mcframe.evaluation.partners import block_documents, matched, neighboured
from mcframe.hookspecs import HeldOut


def overlap(first, last, i, j):
    return any(a <= d and c <= b for a, b, c, d in zip(first[i], last[i], first[j], last[j], strict=True))


@MANY
@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), max_size=9), st.integers(0, 3))
def test_pairs_are_of_different_documents_and_no_two_are_left_over(starts, width):
    first = torch.tensor([sorted(row) for row in starts], dtype=torch.long).view(-1, 3)
    last = first + width
    pairs = matched(first, last).view(-1, 2).tolist()
    used = [row for pair in pairs for row in pair]
    assert len(used) == len(set(used))
    for i, j in pairs:
        assert not overlap(first.tolist(), last.tolist(), i, j)
    rest = sorted(set(range(len(starts))) - set(used))
    for index, i in enumerate(rest):
        for j in rest[index + 1 :]:
            assert overlap(first.tolist(), last.tolist(), i, j)


def test_documents_of_free_blocks():
    geometry = geometry_of(FLAT)  # 25 tokens, blocks of 3, six of them before the cursor at 18
    documents = torch.arange(26)[None] // 4
    held = HeldOut(torch.zeros(1, 26, dtype=torch.long), documents, torch.ones(1, 25, dtype=torch.bool))
    first, last = block_documents(held, geometry)
    assert first.tolist() == [[0, 0, 1, 2, 3, 3]]
    assert last.tolist() == [[0, 1, 2, 2, 3, 4]]


def test_neighbours_keep_all_that_is_theirs():
    held = some_sequences(FLAT, 6, seed=0, evidence=True)
    found = neighboured(held, geometry_of(FLAT))
    rows = [held.tokens.tolist().index(row) for row in found.tokens.tolist()]
    assert sorted(rows) == list(range(6))
    for name in ("tokens", "documents", "scored", "evidence"):
        assert torch.equal(getattr(found, name), getattr(held, name)[rows])


def test_a_single_document_leaves_swap_out_and_says_so():
    held = some_sequences(FLAT, 4, seed=0)
    one = HeldOut(held.tokens, torch.zeros_like(held.documents), held.scored)
    assert neighboured(one, geometry_of(FLAT)) is None
    found = Controls(lengths=(0.7,), resamples=20).run(build_subject(build_model(FLAT), one))
    assert not any("swap" in name for name in found.metrics)
    assert any("/gist/tail" in name for name in found.metrics)
    assert any("swap is left out" in note for note in found.notes)


def test_who_finds_no_partner_is_left_out_and_counted():
    held = some_sequences(FLAT, 5, seed=0)
    found = Controls(lengths=(0.7,), resamples=20).run(build_subject(build_model(FLAT), held))
    assert any(note.startswith("1 of 5 sequences are left out") for note in found.notes)
