"""Overlap of held-out windows with training text."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.data.overlap import STRING, held_out_overlap, measure
from mcframe.data.tokenizers import Bytes
from tests.support.memory_source import MemorySource, documents_in


def covered_slowly(text, training):
    """Return the fraction of characters that are in a 64-character string of a training document."""
    marked = set()
    for start in range(len(text) - STRING + 1):
        if any(text[start : start + STRING] in document for document in training):
            marked.update(range(start, start + STRING))
    return len(marked) / len(text)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_window_is_covered_if_training_documents_have_its_strings(rng):
    pieces = ["".join(rng.choices("abé\n", k=rng.randint(40, 150))) for _ in range(8)]
    training = ["".join(rng.choices(pieces, k=2)) for _ in range(4)]
    texts = ["".join(rng.choices(pieces, k=3))[: rng.randint(70, 300)] for _ in range(5)]
    found = measure(texts, training, 10**6)
    assert found.covered == sum(covered_slowly(text, training) > 0.9 for text in texts)
    assert (found.windows, found.characters, found.complete) == (5, sum(map(len, training)), True)


def test_a_large_corpus_is_measured_on_its_first_characters():
    texts = ["".join(random.Random(i).choices("abcd", k=100)) for i in range(3)]
    found = measure(texts, texts, 150)
    assert (found.covered, found.characters, found.complete) == (2, 200, False)
    assert "the first 200 characters" in str(found)
    assert "all 300 characters" in str(measure(texts, texts, 300))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_overlap_is_that_of_the_run(streaming):
    rng = random.Random(0)
    common = "".join(rng.choices("abcdefgh ", k=500))
    # Strings of one text are in long texts that are otherwise different: too few for near-duplicates.
    texts = ["".join(rng.choices("abcdefgh ", k=2_000)) + common for _ in range(60)]
    source = MemorySource(texts, streaming=streaming)
    held = documents_in(source, "validation", 0.2)
    windows = torch.tensor([[*text[-500:-99].encode()] for text in held] + [[*text[:401].encode()] for text in held])
    found = held_out_overlap(source, Bytes(), windows, 0.2)
    assert (found.windows, found.covered) == (2 * len(held), len(held))
    assert held_out_overlap(source, Bytes(), windows[:, :40], 0.2) is None
