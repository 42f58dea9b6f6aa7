"""Streamed text equals the decoded tokens, never breaks a character and ends before a stop string."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.data.tokenizers import Bytes
from mcframe.runtime.text_stream import TextStream


class Leading:
    """A tokenizer of words that decodes a first word without its space, as SentencePiece does."""

    words = ("a", "bc", "é", "STOP", "ST", "OP")

    def decode(self, ids):
        return "".join(f" {self.words[i % 6]}" for i in ids)[1:]


class Chunks:
    """A tokenizer whose tokens are arbitrary bytes."""

    def __init__(self, chunks):
        self.chunks = chunks

    def decode(self, ids):
        return b"".join(self.chunks[i] for i in ids).decode("utf-8", "replace")


CHARACTERS = "aé€😀\ufffd\u0301STOP \n"
ARBITRARY = st.lists(st.binary(min_size=0, max_size=5), min_size=1, max_size=40)
RUNS = st.integers(1, 60).map(lambda n: [b"\x80"] * n + [b"\xf0", b"\x9f", b"\x98", b"\x80", b"a"])


@st.composite
def cut_texts(draw):
    """A text whose UTF-8 is cut at random positions."""
    raw = draw(st.text(CHARACTERS, max_size=30)).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    return [raw[i:j] for i, j in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@given(st.one_of(cut_texts(), ARBITRARY, RUNS), st.lists(st.text("STOPa€", max_size=4), max_size=3))
@settings(max_examples=50, deadline=None)
def test_the_pieces_are_the_decoded_text_up_to_the_first_stop_string(chunks, stop):
    tokenizer = Chunks(chunks)
    stream, pieces, pushed = TextStream(tokenizer, stop), [], 0
    for token in range(len(chunks)):
        pieces.append(stream.push(token))
        pushed = token + 1
        if stream.stopped:
            break
    pieces.append(stream.finish())
    text = tokenizer.decode(range(pushed))
    starts = [text.find(each) for each in stop if each and each in text]
    assert "".join(pieces) == text[: min(starts, default=len(text))]
    assert stream.stopped == bool(starts)


@given(cut_texts())
@settings(max_examples=50, deadline=None)
def test_no_piece_holds_a_part_of_a_character(chunks):
    stream = TextStream(Chunks(chunks))
    text, arrived = "", b""
    for token, chunk in enumerate(chunks):
        text, arrived = text + stream.push(token), arrived + chunk
        complete = arrived.decode("utf-8", "ignore")  # drops an incomplete character at the end
        assert complete.startswith(text)
        assert len(complete) - len(text) <= complete.endswith("\ufffd")  # which looks like an incomplete one


@given(st.lists(st.integers(0, 5), max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_tokenizer_that_decodes_the_first_token_differently_keeps_its_spaces(ids):
    stream = TextStream(Leading())
    assert "".join([*map(stream.push, ids), stream.finish()]) == Leading().decode(ids)


def test_invalid_bytes_do_not_collect():
    stream = TextStream(Chunks([b"\x80"]))
    longest = 0
    for _ in range(500):
        stream.push(0)
        longest = max(longest, len(stream._tokens))
    assert longest < 20


def test_the_separator_has_no_text():
    tokenizer = Bytes()
    stream = TextStream(tokenizer, ["\n"])
    assert [stream.push(i) for i in (104, tokenizer.separator, 105)] == ["h", "", "i"]
