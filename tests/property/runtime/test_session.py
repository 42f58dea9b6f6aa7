"""Sessions: the cache is exact after any sequence of events, and appends may be divided in any way."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mcframe.runtime.decoder import Decoder
from mcframe.runtime.entries import EntryReader
from mcframe.runtime.gist_encoder import GistEncoder, history_shape
from mcframe.runtime.history import History
from mcframe.runtime.refocus import Refocus
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session import Session
from mcframe.runtime.session_config import SessionDefaults
from mcframe_plugins.allocator import GreedyAllocator, HierarchicalAllocator
from tests.support.modeling_builders import VOCABULARY
from tests.support.runtime_models import Digits, recomputed_logits, small_model

MODELS = [
    {"gistnet": "transformer", "lensnet": "transformer", "levels": 3},
    {"gistnet": "mean", "lensnet": "entry", "levels": 2, "slots": 2, "gist_bias": -1.0},
    {"gistnet": None, "lensnet": None, "levels": 1},
    {"gistnet": "tokens", "lensnet": None, "levels": 2, "block_size": 4},
]
GREEDY = Sampling(temperature=0.0)


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randint(VOCABULARY - 1, (count,), generator=torch.Generator().manual_seed(seed))


def config_of(model, every=5, tail=4, sink=1, more=40, **options):
    budget = sink * model.tree.block_size + tail + every + more
    return SessionDefaults(budget=budget, sink=sink, tail=tail, refocus_every=every, **options).config(model.tree)


class Events(RuleBasedStateMachine):
    """Append, generate, refocus, save, open again, kill and damage, in any order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "history"

    @initialize(
        which=st.sampled_from(MODELS), every=st.sampled_from([1, 3, 8]), tail=st.sampled_from([1, 4]),
        sink=st.integers(0, 2), allocator=st.sampled_from([GreedyAllocator, HierarchicalAllocator]),
        seed=st.integers(0, 5), drop_gists=st.booleans(),
    )  # fmt: skip
    def begin(self, which, every, tail, sink, allocator, seed, drop_gists):
        self.model = small_model(seed, **which)
        self.shape = history_shape(self.model, VOCABULARY)
        self.allocator = allocator
        self.config = config_of(self.model, every, tail, sink, drop_gists=drop_gists)
        self.session = self.open(History.create(self.shape, self.folder))
        self.saved, self.tokens = torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)
        self.append(3, seed)

    def open(self, history):
        return Session(self.model, Digits(), self.allocator, history, self.config)

    def open_again(self):
        self.session.close()
        self.session = self.open(History.open(self.folder, self.shape))

    @rule(count=st.sampled_from([1, 2, 30, 90]), seed=st.integers(0, 1000))
    def append(self, count, seed):
        self.session.append(drawn(count, seed))
        self.tokens = torch.cat((self.tokens, drawn(count, seed)))

    @rule(count=st.sampled_from([1, 4, 20]))
    def generate(self, count):
        found = [piece.token for piece in self.session.generate(count, GREEDY)]
        self.tokens = torch.cat((self.tokens, torch.tensor(found)))

    @rule()
    @precondition(lambda self: not self.session.appended)
    def reading_changes_nothing(self):
        before = self.session.strip, self.session.next_logits()
        assert self.session.strip == before[0]
        assert torch.equal(self.session.next_logits(), before[1])

    @rule()
    def save(self):
        self.session.save()
        self.saved = self.tokens

    @rule()
    def save_and_open_again(self):
        strip, logits = self.session.strip, self.session.next_logits()
        self.save()
        self.open_again()
        assert (self.session.strip, self.session.appended) == (strip, False)
        torch.testing.assert_close(self.session.next_logits(), logits, atol=1e-5, rtol=1e-5)

    @rule()
    @precondition(lambda self: len(self.saved))
    def open_again_without_saving(self):
        """A killed process: what was saved is there, and the focus only if it is that of these tokens."""
        lost = len(self.tokens) - len(self.saved)
        self.open_again()
        self.tokens = self.saved
        assert self.session.appended or not lost or self.session.focus.window.tokens <= len(self.saved)

    @rule(kind=st.sampled_from(["flip", "cut", "delete"]), which=st.integers(0, 9), seed=st.integers(0, 1000))
    def damage(self, kind, which, seed):
        """Everything but the tokens and their log is a cache."""
        self.save()
        self.session.close()
        files = sorted(path for path in self.folder.iterdir() if path.name[:3] in ("lod", "nll", "ses"))
        path, rng = files[which % len(files)], random.Random(seed)
        content = bytearray(path.read_bytes())
        if kind == "delete":
            path.unlink()
        elif content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content if kind == "flip" else content[: rng.randrange(len(content))])
        self.session = self.open(History.open(self.folder, self.shape))

    @invariant()
    def logits_are_exact(self):
        if not hasattr(self, "session"):
            return
        history = self.session.history
        assert torch.equal(history.read_tokens(0, history.tokens), self.tokens)
        found = self.session.next_logits()
        torch.testing.assert_close(found, recomputed_logits(self.session), atol=1e-4, rtol=1e-4)
        assert self.session._decoder.cache.length <= self.config.budget
        assert not (self.config.drop_gists and self.session._decoder.plan.context.lod.any())
        entries = self.session.report.entries
        assert sum(entries.values()) <= self.config.budget

    def teardown(self):
        if hasattr(self, "session"):
            self.session.close()
        shutil.rmtree(self.folder.parent)


Events.TestCase.settings = settings(max_examples=20, stateful_step_count=12, deadline=None, derandomize=True)
TestEvents = Events.TestCase


def test_appends_may_be_divided_in_any_way():
    for seed, which in enumerate(MODELS):
        model = small_model(seed, **which)
        texts = []
        for cuts in range(4):
            rng = random.Random(cuts)
            session = Session(
                model,
                Digits(),
                GreedyAllocator,
                History.create(history_shape(model, VOCABULARY)),
                config_of(model, every=8),
            )
            found = []
            for part in range(3):  # the same tokens and generations, other divisions
                tokens = drawn(170, part)
                while len(tokens):
                    count = len(tokens) if not cuts else rng.choice([1, 1, 7, 60])
                    session.append(tokens[:count])
                    tokens = tokens[count:]
                found += [piece.token for piece in session.generate(12, GREEDY)]
            texts.append(found)
        assert texts.count(texts[0]) == len(texts)


def test_a_session_that_is_opened_again_continues_with_the_same_text(tmp_path):
    model = small_model(3, **MODELS[0])
    shape = history_shape(model, VOCABULARY)

    def session(folder, history):
        return Session(model, Digits(), GreedyAllocator, history, config_of(model, every=8))

    straight = session(None, History.create(shape))
    straight.append(drawn(300, 0))
    expected = [piece.token for piece in straight.generate(40, GREEDY)]
    stored = session(tmp_path, History.create(shape, tmp_path / "h"))
    stored.append(drawn(300, 0))
    found = [piece.token for piece in stored.generate(19, GREEDY)]
    stored.save()
    stored.close()
    again = session(tmp_path, History.open(tmp_path / "h", shape))
    assert not again.appended, "the focus is that of before"
    found += [piece.token for piece in again.generate(21, GREEDY)]
    assert found == expected


def test_tokens_after_a_save_are_appended_ones(tmp_path):
    """A process that was killed after a commit: the focus that was saved is that of a shorter history."""
    model = small_model(3, **MODELS[0])
    shape = history_shape(model, VOCABULARY)
    texts = []
    for killed in (False, True):
        history = History.create(shape, tmp_path / f"{killed}")
        session = Session(model, Digits(), GreedyAllocator, history, config_of(model, every=8))
        session.append(drawn(300, 0))
        list(session.generate(5, GREEDY))
        session.save()
        session.append(drawn(2, 1))
        history.commit()
        if killed:
            session.close()
            history = History.open(tmp_path / f"{killed}", shape)
            session = Session(model, Digits(), GreedyAllocator, history, config_of(model, every=8))
        assert session.appended
        texts.append([piece.token for piece in session.generate(20, GREEDY)])
    assert texts[0] == texts[1]


class Periodic:
    """A history of any length that repeats the tokens and gists of a short one."""

    def __init__(self, history, period, tokens):
        self.history, self.period, self.tokens = history, period, tokens

    def read_tokens(self, first, last):
        return torch.cat([self.history.read_tokens(i % self.period, i % self.period + 1) for i in range(first, last)])

    def read_gists(self, lod, nodes):
        return self.history.read_gists(lod, nodes % (self.period // 3**lod))

    def read_nll(self, first, last):
        return torch.zeros(last - first)


def test_indices_of_two_to_the_31_tokens_are_exact():
    """A context after 2**31 tokens equals that after a short history which ends alike."""
    model = small_model(1, **MODELS[0])
    period = 27 * 40
    history = History.create(history_shape(model, VOCABULARY))
    history.append(drawn(period, 3))
    GistEncoder(model, history).catch_up()
    config = config_of(model, more=12)
    found = []
    for tokens in (6 * period + 77, (2**31 // period + 6) * period + 77):
        entries = EntryReader(model, Periodic(history, period, tokens))
        decoder = Decoder(model, entries, config.budget)
        with torch.inference_mode():
            focus = Refocus(model, entries, config, GreedyAllocator).first(tokens)
            decoder.follow(focus.window, config.refocus_every)
            found.append((focus.window.dropped, focus.window.focus, decoder.logits(tokens)))
    assert found[1][0] > 2**31 > found[0][0] > 0
    assert torch.equal(found[0][1], found[1][1])
    assert bool((found[0][1] > 1).any())
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-5, rtol=1e-5)
