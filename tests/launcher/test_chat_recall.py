"""The benchmark of recall in chats, on a run of two steps."""

import importlib.util
import json
import subprocess
import sys
from itertools import product

import pytest

import mcframe

pytestmark = pytest.mark.launcher

ARMS = ("refocus", "recency", "bm25", "gists", "full")


@pytest.fixture
def trained(launches):
    """Blocks of 32 bytes, which hold words."""
    blocks = ("context.block_size = 32", "context.levels = 1", "context.tail = 32")
    return launches.shared(*blocks, "run.total_tokens = 2048", "validation.every = 0").succeeded().run_dir


def test_every_arm_answers_every_question_and_a_second_call_only_what_is_missing(launches, root, trained, tmp_path):
    out = tmp_path / "found.jsonl"
    sizes = ("--count", 2, "--distance", 200, "--budget", 192, "--full", 1024, "--gists", trained, "--out", out)
    command = [sys.executable, root / "benchmarks/chat_recall.py", trained, *sizes]

    def called():
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=launches.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout, [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    table, found = called()
    assert sorted((each["arm"], each["number"]) for each in found) == sorted(product(ARMS, range(2)))
    assert all(each["distance"] >= 200 for each in found)
    assert all(f"\n{arm} " in table for arm in ARMS)
    lines = out.read_text("utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[1:]), "utf-8")
    again = called()[1]
    assert again[:-1] == found[1:]
    assert again[-1] == found[0]  # the most probable tokens: nothing is drawn


def test_bm25_reads_the_fact_within_the_budget(root, trained):
    spec = importlib.util.spec_from_file_location("chat_recall", root / "benchmarks/chat_recall.py")
    recall = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = recall
    spec.loader.exec_module(recall)
    run = mcframe.load_run(trained, trust=True)
    found = []
    for example in recall.examples(run, 8, 400):
        text = recall.best_blocks(run, example, 192)
        assert len(run.tokenizer.encode_batch([text])[0]) <= 192
        assert text.endswith(example.question)
        name = example.question.split()[-1].strip("?")
        assert f"word of {name} is" in example.message
        found.append(text.count(name) > 1)  # of the fact, and of the question
    assert sum(found) >= 6  # a border between blocks may divide a name
