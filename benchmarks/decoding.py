"""Time and memory of sessions after a short and a long history, in one process.

    python benchmarks/decoding.py RUN [--short 4000] [--long 1000000] [--bulk 0] [--tokens 512] [--rounds 5]
                                  [--budget B]

The sessions generate and append in turns, four appended tokens for each generated one. Printed are medians of the
rounds in processor time, and of the ratios to the first session in the same round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil
import torch

import mcframe
from mcframe.runtime.refocus import Focus
from mcframe.runtime.sampling import Sampling
from mcframe.runtime.session import Session

MIB = 2**20
APPENDED = 4
"""Tokens appended for each generated one: an appended token takes a thirtieth of the time."""


def text_tokens(count: int, vocab_size: int) -> torch.Tensor:
    """Return random token ids [count]."""
    return torch.randint(vocab_size - 1, (count,), generator=torch.Generator().manual_seed(0))


def fill(session: Session, count: int) -> float:
    """Append tokens; return tokens a second."""
    start, step = time.process_time(), 2**18
    for first in range(0, count, step):
        session.append(text_tokens(min(step, count - first), session.tokenizer.vocab_size))
    return count / (time.process_time() - start)


def timed(session: Session, tokens: int) -> tuple[float, float]:
    """Return milliseconds a generated token, and a token appended one by one."""
    start = time.process_time()
    for _ in session.generate(tokens, Sampling(temperature=0.0)):
        pass
    middle = time.process_time()
    for token in text_tokens(APPENDED * tokens, session.tokenizer.vocab_size).tolist():
        session.append([token])
    return 1000 * (middle - start) / tokens, 1000 * (time.process_time() - middle) / (APPENDED * tokens)


def refocus_fraction(session: Session, tokens: int) -> float:
    """Return the fraction of the time of decoding that refocuses take, their reading of entries included."""
    spent = 0.0
    choose, logits = session._refocus.next, session._decoder.logits

    def next_focus(focus: Focus, count: int) -> Focus:
        nonlocal spent
        start = time.process_time()
        found = choose(focus, count)
        spent += time.process_time() - start
        return found

    def next_logits(count: int) -> torch.Tensor:
        nonlocal spent
        start, before = time.process_time(), session._decoder.read_entries
        found = logits(count)
        if session._decoder.read_entries - before > 1:
            spent += time.process_time() - start
        return found

    list(session.generate(1, Sampling(temperature=0.0)))
    session._refocus.next, session._decoder.logits = next_focus, next_logits  # type: ignore[method-assign]
    start = time.process_time()
    list(session.generate(tokens, Sampling(temperature=0.0)))
    total = time.process_time() - start
    session._refocus.next, session._decoder.logits = choose, logits
    return spent / total


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    for name, default in (("short", 4000), ("long", 1_000_000), ("bulk", 0), ("tokens", 512), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--budget", type=int, help="default: session.budget of the run")
    options = parser.parse_args()
    sizes = {} if options.budget is None else {"budget": options.budget}
    run, process = mcframe.load_run(options.run, trust=True), psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        sessions, memory = {}, {}
        for name, count in (("short", options.short), ("long", options.long), ("bulk", options.bulk)):
            if not count:
                continue
            session = run.session(Path(folder) / name, **sizes)
            print(session.config if name == "short" else "")
            rate = fill(session, count)
            session.save()
            size = sum(file.stat().st_size for file in (Path(folder) / name).glob("*.bin"))
            timed(session, 64)
            memory[name] = process.memory_info().rss / MIB
            print(
                f"{name}: {count:,} tokens appended at {rate:,.0f} tokens/s, {size / count:.2f} bytes a token on disk "
                f"(formula {session.history.shape.bytes_per_token:.2f}), {memory[name]:.0f} MiB resident"
            )
            sessions[name] = session
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        for _ in range(options.rounds):
            for name, session in sessions.items():
                rounds[name].append(timed(session, options.tokens))
        first = next(iter(rounds.values()))
        for name, found in rounds.items():
            generate, append = (median(each) for each in zip(*found, strict=True))
            ratios = [(g / g0, a / a0) for (g, a), (g0, a0) in zip(found, first, strict=True)]
            slower, append_slower = (median(each) for each in zip(*ratios, strict=True))
            fraction = refocus_fraction(sessions[name], options.tokens)
            print(
                f"{name}: {generate:.3f} ms a generated token ({slower:.3f} x), {append:.3f} ms an appended one "
                f"({append_slower:.3f} x), refocuses take {100 * fraction:.1f} %, resident "
                f"{process.memory_info().rss / MIB:.0f} MiB"
            )


if __name__ == "__main__":
    main()
