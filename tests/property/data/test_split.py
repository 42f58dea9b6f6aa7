import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcframe.data.split import check_fraction, documents_of, is_validation
from mcframe.errors import UserError


@given(st.lists(st.text(st.characters()), max_size=30), st.floats(0, 1))
def test_every_document_is_in_one_split_together_with_its_duplicates(texts, fraction):
    train = list(documents_of(texts + texts, "train", fraction))
    validation = list(documents_of(texts + texts, "validation", fraction))
    assert sorted(train + validation) == sorted(texts + texts)
    assert not set(train) & set(validation)


def test_a_larger_fraction_only_moves_documents_into_validation():
    texts = [str(i) for i in range(20_000)]
    held_out = {fraction: {t for t in texts if is_validation(t, fraction)} for fraction in (0, 0.01, 0.1, 0.5, 1)}
    assert [len(held_out[fraction]) for fraction in (0, 1)] == [0, 20_000]
    assert len(held_out[0.1]) == pytest.approx(2_000, rel=0.1)
    assert held_out[0.01] < held_out[0.1] < held_out[0.5]


def test_the_split_is_the_same_in_every_version():
    assert [i for i in range(40) if is_validation(f"document {i}", 0.2)] == [5, 9, 14, 15, 17, 23, 32, 37]


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_an_impossible_fraction_is_an_error(fraction):
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        check_fraction(fraction)
