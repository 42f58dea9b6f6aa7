"""Facts that are stated long before the question, in chats with generated answers.

    python benchmarks/chat_recall.py RUN [--gists RUN] [--count 100] [--distance 4000] [--budget 512]
                                     [--full 6144] [--out chat_recall.jsonl]

An example is one message to `mcframe chat`: prose of the run's text source that states a fact near its start, at least
`--distance` tokens before the question at its end. The answer is generated, always by the most probable token; it is
right if the value occurs in it. Each way to read the message is a process of `mcframe chat` with other options:

    refocus   --budget B                          as the run's sessions are
    recency   --budget B --no-refocus             of RUN: with `session.drop_gists` the recent tokens alone
    gists     --budget B --no-refocus             of the run of `--gists`, which reads gists
    bm25      --budget B+64 --no-refocus          the message is the blocks that BM25 ranks highest, and the question,
                                                  of as many tokens as a context has entries after a refocus
    full      --budget FULL --no-refocus          everything

The gists of docs/pretrained.md are those of SmolLM2 at 16:1, in `runs/k16`:

    mcframe run --gin smollm2_focus.gin --run-dir runs/gists --set 'run.evaluations = []' \\
        --set 'run.gistnet = @gistnet.adapter' --set 'gistnet.adapter.layer = 8' --set 'session.drop_gists = False' \\
        --set "base.huggingface.trained = 'lora'" --set "base.huggingface.lora_from = 'gist'" \\
        --set "run.start_from = 'runs/k16'"

What `--out` already holds of the same run and options is not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from rich.progress import track

import mcframe
from mcframe.cli.load_run import TrainedRun
from mcframe.data.synthetic.facts import NAMES, VALUES
from mcframe.evaluation.document_means import DocumentMeans
from mcframe.evaluation.history_arms import retrieved
from mcframe.hookspecs import Message

ANSWER_TOKENS = 24
ROOM = 64
"""Entries for the answer to a message of BM25, and for what divided words add to its tokens."""
LATEST_FACT = 400
"""Tokens of prose before the fact, at most."""
EMPTIED = "the history is empty"
"""Printed by `/reset`: the end of a chat."""


@dataclass(frozen=True)
class Example:
    """A fact in prose, and the question for it.

    Attributes:
        number: Determines all others.
        message: Prose with the fact, on one line.
        question: The question.
        value: The answer.
        distance: Tokens between fact and question.
    """

    number: int
    message: str
    question: str
    value: str
    distance: int


def examples(run: TrainedRun, count: int, distance: int) -> Iterator[Example]:
    """Yield examples over the prose of a run."""
    prose = " ".join(" ".join(run.run_config.text().documents()).split())
    for number in range(count):
        draw = Random(number)
        name, value = draw.choice(NAMES), draw.choice(VALUES)
        first = prose.index(" ", draw.randrange(len(prose) - 16 * (distance + LATEST_FACT)))
        ids = run.tokenizer.encode_batch([prose[first + 1 :][: 16 * (distance + LATEST_FACT)]])[0]
        before = draw.randrange(LATEST_FACT)
        after = run.tokenizer.decode(ids[before : before + distance + 1])
        fact = f' The code word of {name} is "{value}".'
        question = f"What is the code word of {name}?"
        actual = len(run.tokenizer.encode_batch([after])[0])
        yield Example(number, run.tokenizer.decode(ids[:before]) + fact + after, question, value, actual)


class Chat:
    """A process of `mcframe chat`."""

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "mcframe", "chat", str(run), "--temperature", "0", *options]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [*command, "--tokens", str(ANSWER_TOKENS)], stdin=pipe, stdout=pipe, text=True, encoding="utf-8"
        )

    def answer(self, message: str) -> str:
        """Return the answer to a message in a new session."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{message}\n/reset\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip().endswith(EMPTIED):
                return "".join(lines).removeprefix("Assistant:").strip()
            lines.append(line)
        raise SystemExit(f"expected an answer, got the end of the chat: {''.join(lines)}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def as_words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return re.findall(r"\w+", text.lower())


def best_blocks(run: TrainedRun, example: Example, budget: int) -> str:
    """Return the blocks that BM25 finds in the message of an example, and the question, within the budget."""
    config, encode = run.session(budget=budget).config, run.tokenizer.encode_batch
    template = len(run.tokenizer.chat_prompt((), [Message("user", "")]) or ())
    question = encode([f" {example.question}"])[0]
    tokens = torch.tensor(encode([example.message])[0] + question)
    own = replace(config, budget=budget - template, tail=len(question))
    kept = retrieved(
        tokens, run.model.tree.block_size, own, lambda block: as_words(run.tokenizer.decode(block.tolist()))
    )
    return run.tokenizer.decode(tokens[kept].tolist())


def main() -> None:
    """Run every arm on all examples, and print the fraction of right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--gists", type=Path, help="a run whose sessions read gists; default: no such arm")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--distance", type=int, default=4000)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--full", type=int, default=6144, help="entries that hold everything; 0 = without this arm")
    parser.add_argument("--out", type=Path, default=Path("chat_recall.jsonl"))
    options = parser.parse_args()
    run = mcframe.load_run(options.run, trust=True)
    arms: dict[str, tuple[Path, tuple[str, ...]]] = {
        "refocus": (options.run, ("--budget", str(options.budget))),
        "recency": (options.run, ("--budget", str(options.budget), "--no-refocus")),
        "bm25": (options.run, ("--budget", str(options.budget + ROOM), "--no-refocus")),
    }
    if options.gists is not None:
        arms["gists"] = (options.gists, ("--budget", str(options.budget), "--no-refocus"))
    if options.full:
        arms["full"] = (options.run, ("--budget", str(options.full), "--no-refocus"))
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    found = {(each["arm"], each["number"], tuple(each["of"])): bool(each["right"]) for each in known}
    everything = list(examples(run, options.count, options.distance))
    right = dict[str, list[bool]]()
    for arm, (path, settings) in arms.items():
        of = (str(path.resolve()), *settings, f"distance {options.distance}")
        left = [example for example in everything if (arm, example.number, of) not in found]
        if left:
            chat = Chat(path, *settings)
            with options.out.open("a") as out:
                for example in track(left, arm):
                    message = f"{example.message} {example.question}"
                    answer = chat.answer(best_blocks(run, example, options.budget) if arm == "bm25" else message)
                    found[arm, example.number, of] = example.value in as_words(answer)
                    facts = asdict(example) | {"arm": arm, "of": of, "answer": answer}
                    facts["right"] = found[arm, example.number, of]
                    out.write(json.dumps({key: facts[key] for key in facts if key != "message"}) + "\n")
                    out.flush()
            chat.close()
        right[arm] = [found[arm, example.number, of] for example in everything]
    _print(right)


def _print(right: Mapping[str, list[bool]]) -> None:
    count = len(right["recency"])
    means = DocumentMeans(
        {arm: torch.tensor(each, dtype=torch.float32) for arm, each in right.items()}, torch.arange(count)
    )
    print(f"{count} chats, intervals of 95 %")
    for arm in right:
        own, gap = means.mean(arm), means.difference(arm, "recency")
        more = "" if arm == "recency" else f"   minus recency {gap.value:+.2f} [{gap.low:.2f}, {gap.high:.2f}]"
        print(f"{arm:8} {own.value:.2f} [{own.low:.2f}, {own.high:.2f}]{more}")


if __name__ == "__main__":
    main()
