"""The recall task, compared with a reference that writes one sequence, and tasks as a stream of training sequences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.data.synthetic.recall import FILLER, FIRST_KEY, Recall
from mcframe.data.synthetic_stream import GeneratedWindows, held_out
from mcframe.errors import UserError
from tests.support.plain_random import mix, shuffled

TREE = ContextTree(window=32, block_size=4, levels=1, tail=11)


def reference(task: Recall, seed: int) -> tuple[list[int], dict[int, int]]:
    """Return the tokens of one sequence, and the position of the evidence by the position of its question."""
    tree, size = task.tree, task.tree.block_size
    blocks = (tree.cursor - 1) // size
    tokens = [FILLER] * (tree.window + 1)
    keys = [FIRST_KEY + key for key in shuffled(mix(seed, 1), task.keys)]
    values = [FIRST_KEY + task.keys + (mix(mix(seed, 2), i) >> 1) % task.values for i in range(blocks * task.pairs)]
    starts, free = {}, blocks - tree.sink
    with_pairs = list(range(blocks))
    if task.pair_blocks is not None:
        with_pairs = sorted(tree.sink + block for block in shuffled(mix(seed, 6), free)[: task.pair_blocks])
    for number, block in enumerate(with_pairs):
        slots = sorted(shuffled(mix(mix(seed, 3), block), size // 2)[: task.pairs])
        for i, slot in enumerate(slots):
            pair = number * task.pairs + i
            starts[pair] = block * size + 2 * slot
            tokens[starts[pair]], tokens[starts[pair] + 1] = keys[pair], values[pair]
    first = tree.sink if task.pair_blocks is None else 0
    chosen = [first + block for block in shuffled(mix(seed, 4), len(with_pairs) - first)[: task.question_blocks]]
    pairs = [block * task.pairs + i for block in chosen for i in range(task.pairs)]
    order, evidence = [pairs[i] for i in shuffled(mix(seed, 5), len(pairs))], {}
    position = blocks * size
    for pair in order[: task.questions]:
        tokens[position], tokens[position + 1] = keys[pair], values[pair]
        evidence[position] = starts[pair] + 1
        position += 2
    return tokens, evidence


@st.composite
def tasks(draw) -> Recall:
    """Draw a task that fits its tree."""
    size = draw(st.integers(2, 7))
    sink = draw(st.integers(0, 1))
    blocks = draw(st.integers(1 + sink, 6))
    pairs = draw(st.integers(1, size // 2))
    pair_blocks = draw(st.none() | st.integers(1, blocks - sink))
    askable = blocks - sink if pair_blocks is None else pair_blocks
    question_blocks = draw(st.integers(1, askable))
    questions = draw(st.integers(1, question_blocks * pairs))
    tail = max(1, 2 * questions - draw(st.integers(0, 1)))  # an odd rest leaves a token of filler
    tree = ContextTree(blocks * size + 1 + tail, size, 1, 1, tail, sink)
    return Recall(
        tree,
        pairs=pairs,
        keys=blocks * pairs + draw(st.integers(0, 5)),
        values=draw(st.integers(2, 6)),
        question_blocks=None if question_blocks == askable and draw(st.booleans()) else question_blocks,
        questions=draw(st.none() | st.integers(1, (tail + 1) // 2)),
        pair_blocks=pair_blocks,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tasks(), st.integers(-(2**63), 2**63 - 1))
def test_sequences_equal_the_reference(task, seed):
    tree, size = task.tree, task.tree.block_size
    seeds = torch.tensor([seed, 1, 2])
    batch = task.generate(seeds)
    assert batch.tokens.shape == (3, tree.window + 1)
    assert (batch.tokens.dtype, batch.loss_mask.dtype, batch.evidence.dtype) == (torch.int64, torch.bool, torch.int64)
    assert int(batch.tokens.max()) < task.vocab_size
    for row, own in enumerate(seeds.tolist()):
        expected, evidence = reference(task, own)
        tokens = batch.tokens[row].tolist()
        assert tokens == expected
        assert batch.loss_mask[row].nonzero().flatten().tolist() == sorted(evidence)
        assert batch.evidence[row].tolist() == [evidence.get(t, -1) for t in range(tree.window)]
        # The properties of the docstring, without the reference.
        questions = sorted(evidence)
        assert questions[0] == tree.cursor - 1
        keys = range(FIRST_KEY, FIRST_KEY + task.keys)
        pairs = [t for t in range(tree.cursor - 1) if tokens[t] in keys]
        assert len({tokens[t] for t in pairs}) == len(pairs) == task.pairs_in_all
        if task.pair_blocks is not None:
            assert len({t // size for t in pairs}) == task.pair_blocks
        assert all(t // size == (t + 1) // size for t in pairs), "a pair is in one block"
        for question in questions:
            assert [t + 1 for t in pairs if tokens[t] == tokens[question]] == [evidence[question]]
            assert tokens[question + 1] == tokens[evidence[question]] >= FIRST_KEY + task.keys
        blocks = {position // size for position in evidence.values()}
        assert len(blocks) <= task.question_blocks
        assert all(tree.compressible[0][block] for block in blocks)
        assert len(set(evidence.values())) == len(questions)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_questions_are_about_question_blocks(count):
    batch = Recall(TREE, question_blocks=count).generate(torch.arange(200))
    blocks = [{position // 4 for position in row.tolist() if position >= 0} for row in batch.evidence]
    assert max(map(len, blocks)) == count
    assert set.union(*blocks) == set(range(5))


def test_a_sequence_is_a_function_of_its_seed():
    task = Recall(TREE)
    seeds = torch.tensor([5, -3, 2**62])
    first, again, alone = task.generate(seeds), Recall(TREE).generate(seeds), task.generate(seeds[1:2])
    for name in ("tokens", "loss_mask", "evidence"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(first, name)[1:2], getattr(alone, name))
    assert len({tuple(row) for row in task.generate(torch.arange(500)).tokens.tolist()}) == 500


def test_values_and_positions_are_even():
    batch = Recall(TREE, values=4, keys=12).generate(torch.arange(4000))
    answers = batch.tokens[:, 1:][batch.loss_mask] - FIRST_KEY - 12
    fractions = answers.bincount(minlength=4) / answers.numel()
    assert fractions.tolist() == pytest.approx([0.25] * 4, abs=0.01)
    blocks = batch.evidence[batch.loss_mask].div(4, rounding_mode="floor").bincount(minlength=5)
    assert (blocks / blocks.sum()).tolist() == pytest.approx([0.2] * 5, abs=0.01)


@pytest.mark.parametrize(
    ("tree", "remedy"),
    [
        ({"tail": 10}, "context.tail = 11"),
        ({"tail": 12}, "context.tail = 11"),
        ({"tail": 0}, "context.tail = 3"),
        ({"window": 33, "tail": 0}, "context.tail = 4"),
        ({"tail": 31}, "context.tail = 27"),
        ({"window": 4, "tail": 2}, "Raise context.window"),
    ],
)
def test_a_cursor_that_does_not_fit_is_an_error(tree, remedy):
    sizes = {"window": 32, "block_size": 4, "levels": 1, "tail": 11} | tree
    with pytest.raises(UserError, match="to begin a block") as caught:
        Recall(ContextTree(**sizes))
    assert remedy in caught.value.remedy
    if "tail" in remedy:  # the cursor of the remedy fits
        tree = ContextTree(**sizes | {"tail": int(remedy.split()[-1])})
        assert tree.cursor % tree.block_size == 1
        assert tree.block_size < tree.cursor < tree.window


@pytest.mark.parametrize(
    ("options", "sink", "rule"),
    [
        ({"pairs": 3}, 0, "pairs: expected from 1 to 2"),
        ({"pairs": 0}, 0, "pairs: expected from 1 to 2"),
        ({"keys": 9}, 0, "keys: expected 10 or more"),
        ({"values": 1}, 0, "values: expected 2 or more"),
        ({"questions": 7}, 0, "questions: expected from 1 to 6"),
        ({"questions": 0}, 0, "questions: expected from 1 to 6"),
        ({"questions": 5, "question_blocks": 2}, 0, "questions: expected from 1 to 4"),
        ({"question_blocks": 6}, 0, "question_blocks: expected from 1 to 5"),
        ({"question_blocks": 0}, 0, "question_blocks: expected from 1 to 5"),
        ({"question_blocks": 4}, 2, "question_blocks: expected from 1 to 3"),
        ({"question_blocks": 2}, 0, "questions: expected from 1 to 4, the pairs"),
        ({"pairs": 1}, 0, "questions: expected from 1 to 5"),
        ({}, 5, "context.sink: expected below 5"),
    ],
)
def test_sizes_that_do_not_fit_are_errors(options, sink, rule):
    with pytest.raises(UserError, match=rule):
        Recall(ContextTree(32, 4, 1, tail=11, sink=sink), **options)


@pytest.mark.parametrize(
    "other", [GeneratedWindows(Recall(TREE), 32, 4), GeneratedWindows(Recall(TREE, values=9), 32, 3)]
)
def test_a_state_of_another_stream_is_an_error(other):
    with pytest.raises(UserError, match="data stream of the checkpoint"):
        GeneratedWindows(Recall(TREE), 32, 3).restore(other.state())


def test_the_identity_changes_with_every_setting():
    kinds = [
        {},
        {"pairs": 1, "question_blocks": 5, "tree": ContextTree(32, 4, tail=7)},
        {"keys": 33},
        {"values": 17},
        {"question_blocks": 4},
        {"questions": 5},
    ]
    assert len({Recall(**{"tree": TREE} | kind).identity for kind in kinds}) == len(kinds)


def test_held_out_sequences_are_in_no_training_run():
    task = Recall(TREE)
    validation = {tuple(row) for row in held_out(task, 300).tokens.tolist()}
    assert len(validation) == 300
    assert torch.equal(held_out(task, 300).tokens[:7], held_out(task, 7).tokens)
    for seed in (0, 1, 2):
        trained = GeneratedWindows(task, 32, seed).take(range(2000)).tokens.tolist()
        assert len({tuple(row) for row in trained}) == 2000
        assert not validation & {tuple(row) for row in trained}
