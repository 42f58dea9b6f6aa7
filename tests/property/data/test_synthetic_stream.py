"""Generated sequences: the recall task laid out by hand, and tasks as a stream of training sequences."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.context.context_tree import ContextTree
from mcframe.data.loader import Loader
from mcframe.data.synthetic.recall import FILLER, FIRST_KEY, Recall
from mcframe.data.synthetic_stream import GeneratedWindows, held_out
from mcframe.errors import UserError

GEOMETRY = ContextTree(window=32, block_size=4, levels=1, tail=11)
WORD = 2**64


def mix(state: int, salt: int) -> int:
    """SplitMix64, a signed number."""
    x = (state + (salt + 1) * 0x9E3779B97F4A7C15) % WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    x ^= x >> 31
    return x - WORD if x >= WORD // 2 else x


def shuffled(seed: int, count: int) -> list[int]:
    return sorted(range(count), key=lambda i: mix(seed, i))


def laid_out(task: Recall, seed: int) -> tuple[list[int], dict[int, int]]:
    """The tokens of one sequence, and for each question that counts the place of its answer's evidence."""
    tree, size = task.tree, task.tree.block_size
    blocks = (tree.cursor - 1) // size
    tokens = [FILLER] * (tree.window + 1)
    keys = [FIRST_KEY + key for key in shuffled(mix(seed, 1), task.keys)]
    values = [FIRST_KEY + task.keys + (mix(mix(seed, 2), i) >> 1) % task.values for i in range(blocks * task.pairs)]
    places = {}
    for block in range(blocks):
        half = sorted(shuffled(mix(mix(seed, 3), block), size // 2)[: task.pairs])
        for i, place in enumerate(half):
            pair = block * task.pairs + i
            places[pair] = block * size + 2 * place
            tokens[places[pair]], tokens[places[pair] + 1] = keys[pair], values[pair]
    free = blocks - tree.sink
    chosen = [tree.sink + block for block in shuffled(mix(seed, 4), free)[: task.question_blocks]]
    pairs = [block * task.pairs + i for block in chosen for i in range(task.pairs)]
    asked, evidence = [pairs[i] for i in shuffled(mix(seed, 5), len(pairs))], {}
    position = blocks * size
    for pair in asked[: task.questions]:
        tokens[position], tokens[position + 1] = keys[pair], values[pair]
        evidence[position] = places[pair] + 1
        position += 2
    return tokens, evidence


@st.composite
def tasks(draw) -> Recall:
    """A task that fits its tree, whatever its sizes."""
    size = draw(st.integers(2, 7))
    sink = draw(st.integers(0, 1))
    blocks = draw(st.integers(1 + sink, 6))
    pairs = draw(st.integers(1, size // 2))
    asked = draw(st.integers(1, blocks - sink))
    questions = draw(st.integers(1, asked * pairs))
    tail = max(1, 2 * questions - draw(st.integers(0, 1)))  # an odd rest leaves a token of filler
    tree = ContextTree(blocks * size + 1 + tail, size, 1, 1, tail, sink)
    room = (tail + 1) // 2
    return Recall(
        tree,
        pairs=pairs,
        keys=blocks * pairs + draw(st.integers(0, 5)),
        values=draw(st.integers(2, 6)),
        question_blocks=None if asked == blocks - sink and draw(st.booleans()) else asked,
        questions=draw(st.none() | st.integers(1, room)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tasks(), st.integers(-(2**63), 2**63 - 1))
def test_recall_is_laid_out_as_described(task, seed):
    tree, size = task.tree, task.tree.block_size
    seeds = torch.tensor([seed, 1, 2])
    batch = task.generate(seeds)
    assert batch.tokens.shape == (3, tree.window + 1)
    assert (batch.tokens.dtype, batch.loss_mask.dtype, batch.evidence.dtype) == (torch.int64, torch.bool, torch.int64)
    assert int(batch.tokens.max()) < task.vocab_size
    for row, own in enumerate(seeds.tolist()):
        wanted, evidence = laid_out(task, own)
        tokens = batch.tokens[row].tolist()
        assert tokens == wanted
        assert batch.loss_mask[row].nonzero().flatten().tolist() == sorted(evidence)
        assert batch.evidence[row].tolist() == [evidence.get(t, -1) for t in range(tree.window)]
        # What the docstring promises, without the reference.
        questions = sorted(evidence)
        assert questions[0] == tree.cursor - 1
        assert all(t + 1 >= tree.cursor for t in questions)
        keys = range(FIRST_KEY, FIRST_KEY + task.keys)
        told = [t for t in range(tree.cursor - 1) if tokens[t] in keys]
        assert len({tokens[t] for t in told}) == len(told) == (tree.cursor - 1) // size * task.pairs
        assert all(t // size == (t + 1) // size for t in told)  # a pair never stands across an edge
        for question in questions:
            where = [t for t in told if tokens[t] == tokens[question]]
            assert [t + 1 for t in where] == [evidence[question]]
            assert tokens[question + 1] == tokens[evidence[question]]
            assert tokens[question + 1] >= FIRST_KEY + task.keys
        asked = {place // size for place in evidence.values()}
        assert len(asked) <= task.question_blocks
        assert all(tree.compressible[0][block] for block in asked)
        assert len(set(evidence.values())) == len(questions)


def test_questions_come_from_as_many_blocks_as_are_asked():
    for asked in (3, 4, 5):
        task = Recall(GEOMETRY, question_blocks=asked)
        batch = task.generate(torch.arange(200))
        blocks = [{place // 4 for place in row.tolist() if place >= 0} for row in batch.evidence]
        assert max(map(len, blocks)) == asked
        assert set.union(*blocks) == set(range(5))


def test_a_sequence_is_a_function_of_its_seed():
    task = Recall(GEOMETRY)
    seeds = torch.tensor([5, -3, 2**62])
    first, again, alone = task.generate(seeds), Recall(GEOMETRY).generate(seeds), task.generate(seeds[1:2])
    for name in ("tokens", "loss_mask", "evidence"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(first, name)[1:2], getattr(alone, name))
    assert len({tuple(row) for row in task.generate(torch.arange(500)).tokens.tolist()}) == 500
    assert task.generate(seeds).tokens[0].tolist() == laid_out(task, 5)[0]


def test_values_and_places_are_even():
    batch = Recall(GEOMETRY, values=4, keys=12).generate(torch.arange(4000))
    answers = batch.tokens[:, 1:][batch.loss_mask] - FIRST_KEY - 12
    share = answers.bincount(minlength=4) / answers.numel()
    assert share.tolist() == pytest.approx([0.25] * 4, abs=0.01)
    blocks = batch.evidence[batch.loss_mask].div(4, rounding_mode="floor").bincount(minlength=5)
    assert (blocks / blocks.sum()).tolist() == pytest.approx([0.2] * 5, abs=0.01)


@pytest.mark.parametrize(
    ("tree", "settings_", "words", "remedy"),
    [
        ({"tail": 10}, {}, "begin a block", "context.tail = 11"),
        ({"tail": 12}, {}, "begin a block", "context.tail = 11"),
        ({"tail": 0}, {}, "begin a block", "context.tail = 3"),
        ({"window": 33, "tail": 0}, {}, "begin a block", "context.tail = 4"),
        ({"tail": 31}, {}, "begin a block", "context.tail = 27"),
        ({"window": 4, "tail": 2}, {}, "begin a block", "raise context.window"),
        ({}, {"pairs": 3}, "does not hold 3 pairs", "from 1 to 2"),
        ({}, {"pairs": 0}, "0 pairs", "from 1 to 2"),
        ({}, {"keys": 9}, "10 distinct keys", "keys = 10"),
        ({}, {"values": 1}, "values is 1", "values = 2"),
        ({}, {"questions": 7}, "room for 6", "1 to 6"),
        ({}, {"questions": 0}, "questions is 0", "1 to 6"),
        ({}, {"questions": 5, "question_blocks": 2}, "5 questions", "task.recall.questions"),
        ({}, {"question_blocks": 6}, "expected 1 to", "1 to 5"),
        ({}, {"question_blocks": 0}, "expected 1 to", "1 to 5"),
        ({"sink": 2}, {"question_blocks": 4}, "expected 1 to", "1 to 3"),
        ({"sink": 5}, {}, "belong to the sink", "context.sink"),
        ({}, {"question_blocks": 2}, "6 questions", "task.recall.question_blocks"),
        ({}, {"pairs": 1}, "6 questions", "task.recall.pairs"),
    ],
)
def test_what_does_not_fit_is_explained(tree, settings_, words, remedy):
    sizes = {"window": 32, "block_size": 4, "levels": 1, "tail": 11} | tree
    with pytest.raises(UserError, match=words) as caught:
        Recall(ContextTree(**sizes), **settings_)
    assert remedy in caught.value.remedy
    if remedy.startswith("context.tail"):  # then the cursor is no longer what is wrong
        tree = ContextTree(**sizes | {"tail": int(remedy.split()[-1])})
        assert tree.cursor % tree.block_size == 1
        assert tree.block_size < tree.cursor < tree.window


# ---- as a stream ----------------------------------------------------------------------------------
def ranks(world: int, micro_batch: int = 2, seed: int = 3) -> list[Loader]:
    return [
        Loader(
            GeneratedWindows(Recall(GEOMETRY), 32, seed),
            batch_sequences=12,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]


def read(loaders: list[Loader], micro_batches: int) -> dict[int, tuple]:
    taken = {}
    for batch in (next(loader) for _ in range(micro_batches) for loader in loaders):
        assert batch.loss_mask.shape == (len(batch.indices), 32)
        for index, tokens, loss_mask in zip(batch.indices.tolist(), batch.tokens, batch.loss_mask, strict=True):
            assert index not in taken
            taken[index] = tokens.tolist(), loss_mask.tolist()
    return taken


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 6), (2, 3), (2, 1), (3, 4)])
def test_ranks_and_micro_batches_change_no_sequence(world, micro_batch):
    expected = read(ranks(1, 1), 48)
    assert len({str(tokens) for tokens, _ in expected.values()}) == 48
    assert expected == read(ranks(world, micro_batch), 48 // (world * micro_batch))
    for tokens, loss_mask in expected.values():
        assert all(tokens[t + 1] >= FIRST_KEY + 32 for t in range(32) if loss_mask[t])
        assert any(loss_mask)


def test_an_interrupted_stream_goes_on_at_another_number_of_ranks():
    expected = read(ranks(1), 24)
    first = ranks(1)
    taken = read(first, 6)
    state = json.loads(json.dumps(first[0].merge([first[0].state()])))
    second = ranks(2)
    for loader in second:
        loader.restore(state)
    taken |= read(second, 6)
    assert taken == {index: expected[index] for index in taken}
    assert len(taken) == 36


@pytest.mark.parametrize(
    "other", [GeneratedWindows(Recall(GEOMETRY), 32, 4), GeneratedWindows(Recall(GEOMETRY, values=9), 32, 3)]
)
def test_another_stream_is_refused(other):
    with pytest.raises(UserError, match="other sequences") as caught:
        GeneratedWindows(Recall(GEOMETRY), 32, 3).restore(other.state())
    assert "seed" in caught.value.remedy


def test_the_identity_says_all_that_a_sequence_depends_on():
    kinds = [
        {},
        {"pairs": 1, "question_blocks": 5, "tree": ContextTree(32, 4, tail=7)},
        {"keys": 33},
        {"values": 17},
        {"question_blocks": 4},
        {"questions": 5},
    ]
    names = {Recall(**{"tree": GEOMETRY} | kind).identity for kind in kinds}
    assert len(names) == len(kinds)


def test_held_out_sequences_are_those_of_no_training_run():
    task = Recall(GEOMETRY)
    validation = {tuple(row) for row in held_out(task, 300).tokens.tolist()}
    assert len(validation) == 300
    assert torch.equal(held_out(task, 300).tokens[:7], held_out(task, 7).tokens)
    for seed in (0, 1, 2):
        trained = GeneratedWindows(task, 32, seed).take(range(2000)).tokens.tolist()
        assert len({tuple(row) for row in trained}) == 2000
        assert not validation & {tuple(row) for row in trained}
