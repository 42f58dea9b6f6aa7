"""Histories: an append-only list of tokens with gists, after any appends, kills and damage."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import re
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcframe.errors import UserError
from mcframe.modeling.node_table import build_node_table
from mcframe.runtime.gist_encoder import GistEncoder, history_shape
from mcframe.runtime.history import COMMIT_EVERY, History, HistoryShape
from mcframe.runtime.history_folder import LOG
from mcframe_plugins.gistnet import ContextualGistNet
from tests.support.modeling_builders import GISTNETS, VOCABULARY
from tests.support.runtime_models import small_model

SHAPE = HistoryShape(block_size=3, levels=2, slots=2, width=4, vocab_size=300, tokenizer="t", model="m")
GISTNETS.setdefault("window", lambda shape: ContextualGistNet(shape, layers=2, window=1, heads=2))


def drawn(count, seed=0, vocabulary=300):
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


def gists_of(history, lod):
    return history.read_gists(lod, torch.arange(history.nodes(lod)))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 40), st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_it_equals_a_list(tmp_path_factory, events):
    """Append, commit, close and open again."""
    folder = tmp_path_factory.mktemp("history") / "h"
    history, expected, nodes = History.create(SHAPE, folder), [], []
    for number, (count, commit, reopen) in enumerate(events):
        tokens, gists = drawn(count, number), torch.randn(count, 2, 4)
        history.append(tokens)
        history.append_gists(1, gists)
        expected += tokens.tolist()
        nodes.append(gists)
        if commit or reopen:
            history.commit()
        if reopen:
            history.close()
            history = History.open(folder, SHAPE)
        assert history.tokens == len(expected)
        first = len(expected) // 3
        assert history.read_tokens(first, len(expected)).tolist() == expected[first:]
        index = torch.tensor([0, len(expected) - 1, first])
        assert torch.equal(history.read_gists(1, index), torch.cat(nodes)[index])
    history.commit()
    history.close()
    size = sum((folder / f"{name}.bin").stat().st_size for name in ("tokens", "lod1"))
    assert size == len(expected) * (2 + 4 * 2 * 4)


@pytest.mark.parametrize("name", ["mean", "transformer", "tokens", "window"])
@pytest.mark.parametrize("slots", [1, 2])
def test_gists_equal_the_node_table_however_the_tokens_are_appended(name, slots):
    model = small_model(1, gistnet=name, lensnet=None, levels=3, slots=slots)
    tokens = drawn(100, 2, VOCABULARY)
    tree = replace(model.tree, window=100, tail=0)
    with torch.no_grad():
        table = build_node_table(model.gpt.embed(tokens[None]), model.gistnet, tree)[0]
    for cut in (100, 1, 7):
        history = History.create(history_shape(model, VOCABULARY))
        encoder = GistEncoder(model, history)
        for part in tokens.split(cut):
            history.append(part)
            encoder.catch_up()
        for lod in (1, 2, 3):
            expected = table[tree.offset(lod) : tree.offset(lod + 1)].view(-1, slots, model.gpt.width)
            torch.testing.assert_close(gists_of(history, lod), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["states", "last states"])
def test_gists_of_states_are_those_of_the_pass_over_their_segment(name):
    """In the first window they are those of training; later ones depend on their own and the last segment."""
    model = small_model(1, gistnet=name, lensnet="surprise", levels=2, window=36)
    tokens, half = drawn(131, 2, VOCABULARY), 18
    found = []
    for cut in (131, 1, 10):
        history = History.create(history_shape(model, VOCABULARY))
        encoder = GistEncoder(model, history)
        for part in tokens.split(cut):
            history.append(part)
            encoder.catch_up()
        found.append([gists_of(history, 1), gists_of(history, 2), history.read_nll(0, 129)])
        assert history.known_nll == 129
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        table = model.encode(tokens[None, :36])[0][0]
        hidden = model.nll(tokens[None, :36])[0]
    tree = model.tree
    torch.testing.assert_close(found[0][0][:12, 0], table[tree.offset(1) : tree.offset(2)], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][2][1:36], hidden, atol=1e-5, rtol=1e-5)
    with torch.no_grad():  # the third segment is read after the second
        table = model.encode(tokens[None, half : 3 * half])[0][0]
    torch.testing.assert_close(
        found[0][0][12:18, 0], table[tree.offset(1) + 6 : tree.offset(1) + 12], atol=1e-5, rtol=1e-5
    )


def stored(folder, count=2500, lensnet=None):
    """Return a model and the shape of a history in a folder that was closed after several commits."""
    model = small_model(1, gistnet="transformer", lensnet=lensnet)
    shape = history_shape(model, VOCABULARY, "t", "m")
    history = History.create(shape, folder)
    encoder = GistEncoder(model, history)
    for part in drawn(count, 5, VOCABULARY).split(count // 4):
        history.append(part)
        encoder.catch_up()
        history.commit()
    history.close()
    return model, shape


def test_damaged_gists_are_computed_again_and_damaged_tokens_are_an_error(tmp_path):
    model, shape = stored(tmp_path / "good")
    complete = History.open(tmp_path / "good", shape)
    expected = {lod: gists_of(complete, lod) for lod in (1, 2)}
    tokens = complete.read_tokens(0, complete.tokens)
    complete.close()
    rng = random.Random(0)
    for number in range(24):
        folder = shutil.copytree(tmp_path / "good", tmp_path / f"bad{number}")
        file = folder / ["lod1.bin", "lod2.bin", "tokens.bin"][number % 3]
        content, kind = bytearray(file.read_bytes()), ["flip", "cut", "delete"][number // 3 % 3]
        if kind == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
        elif kind == "cut":
            file.write_bytes(content[: rng.randrange(len(content))])
        else:
            file.unlink()
        if file.name == "tokens.bin":
            with pytest.raises(UserError, match=r"tokens\.bin.*(expected 2,500 tokens|rows .* are damaged)"):
                History.open(folder, shape).read_tokens(0, 2500)
            continue
        for again in (False, True):
            history = History.open(folder, shape)
            GistEncoder(model, history).catch_up()
            for lod in (1, 2):
                torch.testing.assert_close(gists_of(history, lod), expected[lod], atol=1e-6, rtol=1e-6)
            assert torch.equal(history.read_tokens(0, 2500), tokens)
            history.commit()
            if again:
                history.repair = lambda *_: pytest.fail("repaired twice")
                gists_of(history, 1)
            history.close()


def changed(folder, good, file, content):
    """Replace a folder by a copy of another one in which a file has another content, or is missing (None)."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)


def flipped(content, rng):
    content = bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def test_damaged_tokens_stay_an_error(tmp_path):
    """Also when they are read again, as the next request of a server does."""
    _, shape = stored(tmp_path / "h")
    content = bytearray((tmp_path / "h" / "tokens.bin").read_bytes())
    content[2 * 700] ^= 1
    (tmp_path / "h" / "tokens.bin").write_bytes(content)
    history = History.open(tmp_path / "h", shape)
    for _ in range(2):
        with pytest.raises(UserError, match=r"rows 625 to 1,249 \(bytes 1,250 to 2,499\)") as caught:
            history.read_tokens(0, 2500)
    assert history.read_tokens(0, 625).shape == (625,)
    history.close()
    line = int(re.search(r"remove line (\d+) of commits", caught.value.remedy)[1])
    lines = (tmp_path / "h" / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / "h" / LOG).write_bytes(b"".join(lines[: line - 1]))  # the remedy
    history = History.open(tmp_path / "h", shape)
    assert torch.equal(history.read_tokens(0, history.tokens), drawn(2500, 5, VOCABULARY)[:625])


def test_a_damaged_log_or_description_never_loses_tokens_in_silence(tmp_path):
    good, folder, rng = tmp_path / "good", tmp_path / "bad", random.Random(1)
    _, shape = stored(good)
    messages = []
    for number in range(60):
        file = [LOG, "meta.json"][number % 2]
        changed(folder, good, file, flipped((good / file).read_bytes(), rng))
        try:
            history = History.open(folder, shape)
        except UserError as error:
            messages.append(f"{error}")
            changed(folder, good, file, (good / file).read_bytes())
            history = History.open(folder, shape)  # nothing was changed, and nothing is locked
        assert torch.equal(history.read_tokens(0, 2500), drawn(2500, 5, VOCABULARY))
        history.close()
    assert len(messages) >= 30
    for message in messages:
        assert re.search(r"(commits.jsonl:[1-4]: |meta.json|another one)(?s:.*)remedy: ", message)
    for file in (LOG, "meta.json"):
        changed(folder, good, file, None)
        with pytest.raises(UserError, match=file):
            History.open(folder, shape)
        with pytest.raises(UserError, match="which has a history") if file != LOG else pytest.raises(UserError):
            History.create(shape, folder)


def test_a_line_that_a_killed_writer_began_does_not_count(tmp_path):
    good, folder = tmp_path / "good", tmp_path / "bad"
    model, shape = stored(good)
    lines = (good / LOG).read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        for torn in (lines[kept][:-1], lines[kept][:20], b"\0" * 40, b""):
            changed(folder, good, LOG, b"".join(lines[:kept]) + torn)
            for opened in range(2):
                history = History.open(folder, shape)
                assert history.tokens == 625 * kept + 3 * opened
                assert torch.equal(history.read_tokens(0, 625 * kept), drawn(2500, 5, VOCABULARY)[: 625 * kept])
                history.append(torch.tensor([1, 2, 3]))
                GistEncoder(model, history).catch_up()
                history.commit()
                history.close()
            assert (folder / "tokens.bin").stat().st_size == 2 * (625 * kept + 6)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    """Every write of a commit fails once, after a part of its bytes; the next commit succeeds."""
    write, history, expected = os.pwrite, History.create(SHAPE, tmp_path / "h"), []
    for failing in range(4):
        calls = 0

        def full(file, content, offset, failing=failing):
            nonlocal calls
            calls += 1
            if calls - 1 == failing:
                return write(file, content[: len(content) // 2], offset)
            if calls - 1 > failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, content, offset)

        expected += drawn(50, failing).tolist()
        history.append(drawn(50, failing))
        history.append_gists(1, torch.full((16, 2, 4), float(failing)))
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="cannot be written: No space left") if failing < 3 else nullcontext():
            history.commit()
        monkeypatch.undo()
        assert history.read_tokens(0, len(expected)).tolist() == expected
        if failing % 2:
            history.commit()
    history.close()
    history = History.open(tmp_path / "h", SHAPE)
    history.repair = lambda *_: pytest.fail("nothing is damaged")
    assert history.read_tokens(0, 200).tolist() == expected
    assert torch.equal(gists_of(history, 1)[:, 0, 0], torch.arange(64) // 16)


def test_gists_of_another_model_are_computed_again(tmp_path):
    _, shape = stored(tmp_path / "h")
    other = small_model(2, gistnet="transformer", lensnet=None)
    history = History.open(tmp_path / "h", replace(shape, model="other"))
    assert history.nodes(1) == 0
    GistEncoder(other, history).catch_up()
    fresh = History.create(shape)
    fresh.append(drawn(2500, 5, VOCABULARY))
    GistEncoder(other, fresh).catch_up()
    torch.testing.assert_close(gists_of(history, 2), gists_of(fresh, 2))
    history.commit()
    history.close()
    again = History.open(tmp_path / "h", replace(shape, model="other"))
    again.repair = lambda *_: pytest.fail("nothing is damaged")
    torch.testing.assert_close(gists_of(again, 1), gists_of(fresh, 1))


def test_what_cannot_be_opened_is_one_message(tmp_path):
    _, shape = stored(tmp_path / "h", 100)
    with pytest.raises(UserError, match="which has a history"):
        History.create(shape, tmp_path / "h")
    with pytest.raises(UserError, match="without a readable meta"):
        History.open(tmp_path, shape)
    with pytest.raises(UserError, match="this run's tokenizer"):
        History.open(tmp_path / "h", replace(shape, tokenizer="other"))
    history = History.open(tmp_path / "h", shape)
    with pytest.raises(UserError, match=f"in use by another session: process {os.getpid()} on {platform.node()}"):
        History.open(tmp_path / "h", shape)
    history.close()
    meta = json.loads((tmp_path / "h" / "meta.json").read_text())
    (tmp_path / "h" / "meta.json").write_text(json.dumps({**meta, "format": "mcframe-history-9"}))
    with pytest.raises(UserError, match="expected the format mcframe-history-1"):
        History.open(tmp_path / "h", shape)


def write_forever(folder, report):
    """Append tokens and gists; reopen the folder now and then. Reports the tokens of each commit."""
    history = History.create(SHAPE, folder)
    while True:
        for _ in range(3):
            first = history.tokens
            history.append(torch.arange(first, first + 7) % 300)
            history.append_gists(1, torch.full((2, 2, 4), float(first)))
        history.commit()
        os.write(report, b"%d\n" % history.tokens)
        if history.tokens % 84 == 0:
            history.close()
            history = History.open(folder, SHAPE)


def killed_writer(folder, seconds):
    """Fork a writer, kill it after some time, and return the last count that it committed."""
    read, report = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            write_forever(folder, report)
        finally:
            os._exit(1)
    os.close(report)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    with os.fdopen(read) as lines:
        return int(lines.read().rpartition("\n")[0].rpartition("\n")[2] or 0)


@pytest.mark.parametrize("kills", [pytest.param(12, id="few"), pytest.param(300, id="many", marks=pytest.mark.matrix)])
def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path, kills):
    rng = random.Random(kills)
    for number in range(kills):
        folder = tmp_path / str(number)
        committed = killed_writer(folder, rng.uniform(0, 0.15))
        history = History.open(folder, SHAPE) if (folder / "meta.json").exists() else History.create(SHAPE, folder)
        assert committed <= history.tokens <= committed + COMMIT_EVERY
        assert history.tokens % 21 == 0
        assert torch.equal(history.read_tokens(0, history.tokens), torch.arange(history.tokens) % 300)
        assert history.nodes(1) == history.tokens // 7 * 2
        expected = (torch.arange(history.nodes(1)) // 2 * 7).float()
        assert torch.equal(gists_of(history, 1)[:, 0, 0], expected)
        history.close()


def test_more_than_two_to_the_31_tokens(tmp_path):
    """The file is sparse: it pretends to have that many tokens."""
    history = History.create(SHAPE, tmp_path / "h")
    tokens = history._arrays["tokens"]
    many = 2**31 + 1000
    tokens._file.truncate(many * 2)
    tokens.written = many
    for lod in (1, 2):
        array = history._arrays[f"lod{lod}"]
        array._file.truncate(many // 3**lod * array.stride)
        array.written = many // 3**lod
    history.append(drawn(50, 1))
    history.append_gists(1, torch.ones(1, 2, 4))
    history.commit()
    assert history.tokens == many + 50
    assert history.read_tokens(many - 1, many + 3).tolist() == [0, *drawn(50, 1)[:3].tolist()]
    last = history.nodes(1) - 1
    assert history.read_gists(1, torch.tensor([last, last - 1]))[:, 0, 0].tolist() == [1.0, 0.0]
