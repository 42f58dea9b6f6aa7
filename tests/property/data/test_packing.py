import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.data.packing import batched, gather_windows, separated, token_type, window_count
from mcframe.data.tokenizers import Bytes


def reference(texts, window):
    """Return the windows token by token, as they are defined."""
    stream = []
    for text in texts:
        stream.extend(text.encode())
        stream.append(256)
    windows, start = [], 0
    while start + window + 1 <= len(stream):
        windows.append(stream[start : start + window + 1])
        start += window
    return windows


@settings(max_examples=50)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=12), st.integers(1, 9))
def test_packing_equals_the_reference(texts, window):
    stream = np.concatenate(separated(Bytes(), texts))
    expected = reference(texts, window)
    assert window_count(len(stream), window) == len(expected)
    found = gather_windows(stream, range(len(expected)), window)
    assert found.tolist() == expected
    # Every token but the first is a target once, except a rest that is too short for a window.
    assert found[:, 1:].flatten().tolist() == stream[1 : len(expected) * window + 1].tolist()
    assert len(stream) - 1 - len(expected) * window < window


def test_windows_are_in_the_order_of_the_indices_and_not_beyond_the_end():
    stream = np.arange(10, dtype=np.uint16)
    assert gather_windows(stream, [2, 0, 2], 3).tolist() == [[6, 7, 8, 9], [0, 1, 2, 3], [6, 7, 8, 9]]
    assert gather_windows(stream, [], 3).shape == (0, 4)
    for outside in ([3], [-1]):
        with pytest.raises(IndexError):
            gather_windows(stream, outside, 3)


def test_the_narrowest_type_that_holds_every_id():
    assert [token_type(size) for size in (257, 65_536, 65_537)] == [np.uint16, np.uint16, np.uint32]


@given(st.lists(st.text(max_size=20), max_size=30), st.integers(1, 5), st.integers(1, 40))
def test_batches_keep_order_and_limits(texts, documents, characters):
    batches = list(batched(texts, documents, characters))
    assert [text for batch in batches for text in batch] == texts
    assert all(batch and len(batch) <= documents for batch in batches)
    assert all(sum(map(len, batch[:-1])) < characters for batch in batches)
