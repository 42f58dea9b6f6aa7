"""Pairs that exchange gists: never two blocks of one document."""

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from mcframe.evaluation.gist_quality import GistQuality
from mcframe.evaluation.swap_pairs import documents_before_cursor, matched, paired
from tests.support.evaluation_builders import FLAT, build_eval_model, build_model, some_sequences
from tests.support.generators import MANY, geometry_of

TREE = geometry_of(FLAT)  # 25 tokens, blocks of 3, the cursor at 18


@MANY
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=9))
def test_pairs_are_disjoint_and_maximal(spans):
    first = torch.tensor([start for start, _ in spans], dtype=torch.long)
    last = first + torch.tensor([width for _, width in spans], dtype=torch.long)

    def overlap(i, j):
        return first[i] <= last[j] and first[j] <= last[i]

    pairs = matched(first, last).view(-1, 2).tolist()
    used = [row for pair in pairs for row in pair]
    assert len(used) == len(set(used))
    assert not any(overlap(i, j) for i, j in pairs)
    rest = sorted(set(range(len(spans))) - set(used))
    assert all(overlap(i, j) for index, i in enumerate(rest) for j in rest[index + 1 :])


def test_documents_before_the_cursor():
    data = replace(some_sequences(FLAT, 1, seed=0), documents=torch.arange(26)[None] // 4)
    assert [part.tolist() for part in documents_before_cursor(data, TREE)] == [[0], [4]]


def test_windows_of_one_document_are_never_paired():
    """Document 1 fills all of window 1 and ends in window 2; every other pair is possible."""
    documents = torch.tensor([[0] * 26, [1] * 26, [1] * 4 + [2] * 22, [3] * 26])
    found = paired(replace(some_sequences(FLAT, 4, seed=0), documents=documents), TREE)
    starts = found.documents[:, [0, -1]].view(-1, 4).tolist()
    assert sorted(map(tuple, starts)) in ([(0, 0, 1, 2), (1, 1, 3, 3)], [(0, 0, 1, 1), (1, 2, 3, 3)])


def test_pairs_are_reordered_sequences():
    data = some_sequences(FLAT, 6, seed=0, evidence=True)
    found = paired(data, TREE)
    rows = [data.tokens.tolist().index(row) for row in found.tokens.tolist()]
    assert sorted(rows) == list(range(6))
    for name in ("tokens", "documents", "loss_mask", "evidence"):
        assert torch.equal(getattr(found, name), getattr(data, name)[rows])


def test_sequences_without_a_partner_are_skipped_with_a_note():
    def evaluate(data):
        return GistQuality(lengths=(0.7,)).run(build_eval_model(build_model(FLAT), data))

    odd = some_sequences(FLAT, 5, seed=0)
    assert any(note.startswith("1 of 5 sequences are skipped") for note in evaluate(odd).notes)
    one_document = evaluate(replace(odd, documents=torch.zeros_like(odd.documents)))
    assert not any("swap" in name for name in one_document.metrics)
    assert any("/gist/tail" in name for name in one_document.metrics)
    assert any("swap is skipped" in note for note in one_document.notes)
