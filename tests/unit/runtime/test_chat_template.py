"""A chat in a session has the same text as the complete transcript, wherever answers end."""

from __future__ import annotations

import pytest

from mcframe.data.tokenizers import Bytes
from mcframe.runtime.chat_template import AnswerText, ChatTemplate, PlainMessage, Transcript
from mcframe.runtime.text_stream import TextStream

TOKENIZER = Bytes()
LABELS = ChatTemplate("Q:", "A:", "Rule:")
USER = PlainMessage("user", "one")


def turn(template, transcript, message, generated, most=100):
    """Return the text that a session appends and what is generated, with the answer that the user sees."""
    prompt = template.prompt([message], transcript.pending)
    stream, answer, taken = TextStream(TOKENIZER, template.stop), AnswerText(), []
    for token in generated[:most]:
        taken.append(token)
        text = stream.push(token)
        ended = stream.stopped or token == TOKENIZER.separator or len(taken) == most
        answer.add(token, text + (stream.finish() if ended else ""))
        if ended:
            break
    transcript.pending = template.pending(answer, TOKENIZER)
    transcript.add([message, PlainMessage("assistant", answer.text)])
    return prompt + TOKENIZER.decode(taken), answer.text


@pytest.mark.parametrize("template", [ChatTemplate(), LABELS])
def test_turns_of_a_session_are_those_of_the_transcript(template):
    transcript, history = Transcript(), ""
    endings = (f"\n{template.user} more that is not read", f"\n{template.assistant}", "")
    for number, ending in enumerate(endings):
        generated = [*f" reply {number}é{ending}".encode()]
        text, answer = turn(template, transcript, PlainMessage("user", f"q{number}"), generated, most=len(generated))
        assert answer == f"reply {number}é"
        history += text
    turns = [f"{template.user} q{n}\n{template.assistant} reply {n}é" for n in range(3)]
    # An answer that ends where another answer begins keeps that beginning.
    assert history == "\n".join([turns[0], turns[1] + f"\n{template.assistant}", turns[2]])


def test_the_end_of_a_document_is_the_end_of_a_line():
    transcript = Transcript()
    turn(ChatTemplate(), transcript, USER, [*b" reply", TOKENIZER.separator])
    assert ChatTemplate().prompt([USER], transcript.pending) == "User: one\nAssistant:"


def test_roles_have_labels():
    messages = [PlainMessage(role, role) for role in ("system", "developer", "user", "assistant")]
    text = "Rule: system\nRule: developer\nQ: user\nA: assistant\nA:"
    assert LABELS.prompt(messages) == text


def test_a_client_may_send_all_messages_or_new_ones():
    reply, second, other = (PlainMessage(*each) for each in (("assistant", "a"), ("user", "two"), ("assistant", "b")))
    kept = Transcript()
    assert kept.new([USER, reply, second]) == [USER, reply, second]
    kept.add([USER, reply])
    assert kept.new([USER, reply, second]) == [second]
    assert kept.new([second]) == [second]
    assert kept.new([USER]) == [USER]
    for refused in ([USER, reply], [USER, other, second], [reply, USER]):
        assert kept.new(refused) is None
