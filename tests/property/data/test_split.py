import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.data.clusters import find_clusters
from mcframe.data.split import check_fraction, documents_of, held_out, is_validation
from mcframe.data.text_hashes import string_hashes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource, documents_in

WORDS = ["".join(random.Random(i).choices("abcdefghijklmnop", k=2 + i % 7)) for i in range(900)]


def prose(rng, words=150):
    return " ".join(rng.choices(WORDS, k=words))


def edited(text, rng, words=4):
    """Return the text with some words replaced."""
    parts = text.split()
    for at in rng.sample(range(len(parts)), words):
        parts[at] = rng.choice(WORDS)
    return " ".join(parts)


def corpus(rng, singles=150, families=30, chain=60):
    """Return texts, and for each the family of near-duplicates to which it belongs."""
    texts = [(prose(rng), ("single", i)) for i in range(singles)]
    for family in range(families):
        first = prose(rng)
        texts += [(edited(first, rng), ("family", family)) for _ in range(rng.randint(2, 6))]
    link = prose(rng)
    for _ in range(chain):  # neighbours are alike, the ends have nothing in common
        link = edited(link, rng, words=8)
        texts.append((link, ("chain", 0)))
    rng.shuffle(texts)
    return zip(*texts, strict=True)


@given(st.lists(st.text(st.characters()), max_size=30), st.floats(0, 1))
def test_every_document_is_in_one_split_together_with_its_duplicates(texts, fraction):
    train = list(documents_of(texts + texts, "train", fraction))
    validation = list(documents_of(texts + texts, "validation", fraction))
    assert sorted(train + validation) == sorted(texts + texts)
    assert not set(train) & set(validation)


@pytest.mark.parametrize("fraction", [0.02, 0.05, 0.1, 0.3])
def test_no_family_of_near_duplicates_spans_both_splits(fraction):
    for seed in range(3):
        texts, families = corpus(random.Random(seed))
        validation = held_out(find_clusters(texts), fraction)
        splits = {}
        for family, is_held_out in zip(families, validation.tolist(), strict=True):
            splits.setdefault(family, set()).add(is_held_out)
        assert all(len(found) == 1 for found in splits.values())
        assert abs(validation.mean() - fraction) <= 1 / len(texts)
        if fraction < 0.2:
            assert splits["chain", 0] == {False}, "larger than what is to be held out"


def test_the_split_depends_on_the_texts_but_not_on_their_order():
    texts, _ = corpus(random.Random(5))
    order = random.Random(6).sample(range(len(texts)), len(texts))
    one, other = (held_out(find_clusters(some), 0.1) for some in (texts, [texts[i] for i in order]))
    np.testing.assert_array_equal(one[order], other)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=5), min_size=2, max_size=20), st.floats(0.001, 0.999))
def test_some_documents_are_held_out_and_some_are_not(texts, fraction):
    sizes = np.bincount(find_clusters(texts))
    if len(sizes) == 1 or sizes.min() > max(1, round(fraction * len(texts))):
        return
    train, held = (documents_in(MemorySource(texts), split, fraction) for split in ("train", "validation"))
    assert train
    assert held
    assert sorted(train + held) == sorted(texts)
    assert not set(train) & set(held)


def test_a_corpus_of_near_duplicates_cannot_be_divided():
    rng = random.Random(1)
    first = prose(rng)
    texts = [edited(first, rng) for _ in range(40)]
    assert documents_in(MemorySource(texts), "train", 0.1) == texts
    with pytest.raises(UserError, match=r"smallest cluster of them has 40 of 40 documents"):
        documents_in(MemorySource(texts), "validation", 0.1)


def test_a_streaming_source_holds_near_duplicates_out_together_mostly():
    rng, apart = random.Random(2), 0
    for _ in range(300):
        text = prose(rng)
        apart += is_validation(text, 0.5) != is_validation(edited(text, rng, words=2), 0.5)
    assert apart < 45, "150 are expected of a key of the complete text"


def test_a_larger_fraction_only_moves_documents_into_validation():
    texts = [str(i) for i in range(20_000)]
    held = {fraction: {t for t in texts if is_validation(t, fraction)} for fraction in (0, 0.01, 0.1, 0.5, 1)}
    assert [len(held[fraction]) for fraction in (0, 1)] == [0, 20_000]
    assert len(held[0.1]) == pytest.approx(2_000, rel=0.1)
    assert held[0.01] < held[0.1] < held[0.5]


def test_the_split_is_the_same_in_every_version():
    assert [i for i in range(40) if is_validation(f"document {i}", 0.2)] == [5, 9, 14, 15, 17, 23, 32, 37]
    texts, _ = corpus(random.Random(9), singles=20, families=2, chain=0)
    assert np.flatnonzero(held_out(find_clusters(texts), 0.2)).tolist() == [3, 11, 12, 15, 20, 23]


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_an_impossible_fraction_is_an_error(fraction):
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        check_fraction(fraction)


@given(st.text(st.characters(), max_size=40), st.sampled_from([1, 2, 8]))
def test_strings_have_equal_hashes_only_where_they_are_equal(text, length):
    hashes = string_hashes(text, length).tolist()
    strings = [text[i : i + length] for i in range(len(text) - length + 1)]
    assert len(hashes) == len(strings)
    assert len(set(hashes)) == len(set(strings)) == len(set(zip(hashes, strings, strict=True)))
