"""Facts in prose, compared with a reference that writes one sequence at a time as text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.data.pretrained_tokenizer import HuggingFaceTokenizer
from mcframe.data.synthetic.facts import NAMES, VALUES, Facts
from mcframe.data.tokenizers import Bytes
from mcframe.errors import UserError
from tests.support.chat_tokenizers import chat_tokenizer
from tests.support.memory_source import MemorySource
from tests.support.plain_random import below, many_below, mix, shuffled

SEEDS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3)
PROSE = ["It was a dark and stormy night. " * 9, "Call me what you like, not late for dinner. " * 9]
SHORT = {"statement": "<{name}:{value}>", "question": "{name}?", "answer": ":{value}"}
TREE = ContextTree(window=133, block_size=12, tail=10)


def source():
    return MemorySource(PROSE)


def task_of(tree=TREE, **options):
    return Facts(tree, text=source, tokenizer=Bytes, **{**SHORT, "names": "ABCDE", "values": "uvwxyz", **options})


@st.composite
def tasks(draw) -> Facts:
    size, sink = draw(st.integers(8, 14)), draw(st.integers(0, 1))
    blocks, tail = draw(st.integers(4, 8)), draw(st.integers(1, 9))
    cursor = (sink + blocks) * size + draw(st.integers(0, size - 1))
    tree = ContextTree(cursor + tail, size, 1, 1, tail, sink)
    within = draw(st.sampled_from([0.4, 0.75, 1.0]))
    return task_of(
        tree, facts=draw(st.integers(1, max(1, min(5, int((blocks * size - 3) * within) // 5)))), within=within
    )


def reference(task: Facts, seed: int) -> tuple[str, int]:
    """Return a sequence as text, and the position of the value of the question."""
    tree, cursor = task.tree, task.tree.cursor
    prose = "".join(f"{each}\n\n" for each in PROSE)
    start = below(mix(seed, 1), len(prose) - tree.window)
    text = list(prose[start : start + tree.window + 1])
    names = [task.names[i] for i in shuffled(mix(seed, 2), len(task.names))[: task.facts]]
    values = [task.values[i] for i in many_below(mix(seed, 3), task.facts, len(task.values))]
    chosen = below(mix(seed, 4), task.facts)
    first, last = tree.sink * tree.block_size, min(cursor // tree.block_size * tree.block_size, cursor - 3)
    part = int((last - first) * task.within) // task.facts
    offsets = many_below(mix(seed, 5), task.facts, part - 5 + 1)
    begins = [first + number * part + offset for number, offset in enumerate(offsets)]
    for begin, name, value in zip(begins, names, values, strict=True):
        text[begin : begin + 5] = f"<{name}:{value}>"
    text[cursor - 3 : cursor + 1] = f"{names[chosen]}?:{values[chosen]}"
    return "".join(text), begins[chosen] + 3


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tasks(), SEEDS)
def test_sequences_equal_the_reference(task: Facts, seeds: list[int]) -> None:
    batch = task.generate(torch.tensor(seeds))
    for row, seed in enumerate(seeds):
        text, evidence = reference(task, seed)
        assert bytes(batch.tokens[row].tolist()).decode() == text
        assert batch.evidence[row].tolist() == [
            evidence if at == task.tree.cursor - 1 else -1 for at in range(task.tree.window)
        ]
    assert torch.equal(batch.loss_mask, batch.evidence >= 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(chat_tokenizer(tmp_path_factory.mktemp("chat")))


def test_a_chat_asks_in_the_message_of_a_user(folder):
    task = Facts(
        ContextTree(window=840, block_size=240, tail=9), text=lambda: MemorySource(PROSE * 9),
        tokenizer=lambda: HuggingFaceTokenizer(folder), facts=3,
    )  # fmt: skip
    assert len(task.names) >= 3
    assert len(task.values) >= 2
    assert set(task.names) <= set(NAMES)
    assert set(task.values) <= set(VALUES)
    tokenizer, batch = task.tokenizer, task.generate(torch.tensor([5, 6]))
    for tokens in batch.tokens.tolist():
        text = tokenizer._tokenizer.decode(tokens, skip_special_tokens=False)
        assert text.startswith("<|im_start|>user\n")
        before, _, after = text.rpartition("<|im_end|>\n<|im_start|>assistant\nThe code word of ")
        name, _, answer = after.partition(' is "')
        assert before.endswith(f"\n\nWhat is the code word of {name}?")
        stated = before.partition(f' The code word of {name} is "')[2].partition('"')[0]
        assert answer.startswith(stated)
        assert stated in task.values
        assert before.count("<|im_end|>") == 0


def test_words_that_cannot_be_exchanged_are_left_out():
    task = task_of(
        ContextTree(133, 12, tail=9), facts=2, names=["Al", "Bo", "Christopher", "Di"], values=["red", "blue", "tan"]
    )
    assert (list(task.names), list(task.values)) == (["Al", "Bo", "Di"], ["red", "tan"])
    assert task.chance == 0.5


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"facts": 6}, "task.facts.names: expected 6 or more"),
        ({"values": ["a", "bc"], "facts": 2}, "task.facts.values: expected 2 or more"),
        ({"statement": "{name}"}, "task.facts.statement: expected a text with"),
        ({"answer": "{value}."}, "task.facts.answer: expected a text that ends"),
        ({"tree": ContextTree(133, 12, tail=1), "values": ["one", "two"]}, "context.tail: expected 2 or more"),
        ({"text": lambda: MemorySource(["short"])}, "task.facts.text: expected a text of"),
        ({"tree": ContextTree(window=37, block_size=12, tail=10), "facts": 5}, "task.facts.facts: expected at most"),
    ],
)
def test_what_does_not_fit_is_one_message(options, problem):
    with pytest.raises(UserError) as caught:
        Facts(options.pop("tree", TREE), **{"text": source, "tokenizer": Bytes, **SHORT, "names": "ABCDE",
                                            "values": "uvwxyz", **options})  # fmt: skip
    assert problem in caught.value.message


def test_guessing_is_at_chance():
    batch = task_of().generate(torch.arange(20_000))
    fractions = torch.bincount(batch.tokens[:, TREE.cursor])[ord("u") : ord("z") + 1] / 20_000
    assert fractions.tolist() == pytest.approx([1 / 6] * 6, abs=0.015)
