"""A corpus of one document is divided at boundaries, without loss."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data import plugin_checks
from mcframe.data.loader import open_training_stream, open_validation
from mcframe.data.single_document import divided, pieces
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.memory_source import MemorySource


@given(st.text("ab. \n", max_size=80), st.integers(1, 9))
def test_pieces_are_the_text_cut_at_boundaries(text, length):
    found = list(pieces(text, length))
    assert "".join(found) == text
    assert all(length <= len(piece) <= 2 * length + 20 for piece in found[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("aaaa bbb\nccc\n\nddd eee.", ["aaaa bbb\nccc\n\n", "ddd eee."]),
        ("aaaa bbb\nccc ddd", ["aaaa bbb\n", "ccc ddd"]),
        ("aaaa b. cccc ddddd", ["aaaa b. ", "cccc ddddd"]),
        ("aaaaaaaaaaaaaaaaaaaa", ["aaaaaaa", "aaaaaaaaaaaaa"]),
    ],
)
def test_the_best_boundary_is_taken(text, expected):
    assert list(pieces(text, 7)) == expected


@given(st.lists(st.text(max_size=4), max_size=4))
def test_several_documents_stay_as_they_are(texts):
    if len(texts) != 1:
        assert list(divided(iter(texts))) == texts


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("text", ["".join(f"{n}{end}" for n in range(9000)) for end in (" ", "\n", "")])
def test_one_document_can_be_trained_on_and_held_out(text, streaming):
    source = MemorySource([text + str(streaming)], streaming=streaming)
    assert 30 <= len(list(plugin_checks.documents(source))) <= 1000
    assert open_validation(source, Bytes(), 16, 0.5, 4)[0].shape == (4, 17)
    assert open_training_stream(source, Bytes(), 16, 0, 0.5).take([0]).shape == (1, 17)


def test_an_empty_split_of_a_stream_states_the_number_of_documents():
    source = MemorySource(["ab", "cd", "ef"], streaming=True)  # a token file holds out at least one document
    with pytest.raises(UserError, match=r"validation split has no documents .*, of 3 in all") as caught:
        open_validation(source, Bytes(), 16, 0.0001, 4)
    assert "to 0.5" in caught.value.remedy
    with pytest.raises(UserError, match=r"train split has no documents .*, of 3 in all"):
        open_training_stream(source, Bytes(), 16, 0, 0.9999).take([0])


@pytest.mark.parametrize("streaming", [True, False])
def test_a_source_without_documents_is_an_error(streaming):
    source = MemorySource([], streaming=streaming)
    for read in (
        lambda: open_validation(source, Bytes(), 16, 0.5, 4),
        lambda: open_training_stream(source, Bytes(), 16, 0, 0.5).take([0]),
    ):
        with pytest.raises(UserError, match=r"run\.text: expected documents, got none"):
            read()
