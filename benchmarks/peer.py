"""A forward and backward pass of our base model against nanochat's of the same shape: `python benchmarks/peer.py`.

The peer is `NanoChatForCausalLM` of transformers; ours has a row for each LOD more. Both train in turn in one process
on the same random tokens, eagerly: forward, next-token loss, backward. Times are the processor's on a CPU. Exits with 1
if ours is slower in three of four rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import NanoChatConfig, NanoChatForCausalLM

from mcframe.context.context_tree import ContextTree
from mcframe.context.working_context import raw_context
from mcframe.hookspecs import BaseShape
from mcframe.modeling.gpt import GPT
from mcframe.modeling.rope import GaussianRope


def peer_model(options: argparse.Namespace) -> nn.Module:
    """Return the peer's model: as many layers, heads and features as ours."""
    built: nn.Module = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            intermediate_size=4 * options.width,
            num_hidden_layers=options.depth,
            num_attention_heads=options.heads,
            num_key_value_heads=options.heads,
            max_position_embeddings=options.length,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, use_cache=False, attn_implementation="sdpa",
        )
    )  # fmt: skip
    return built.train()


def passes(model: nn.Module, loss: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    """Return the seconds of a forward and a backward pass."""
    model.zero_grad()
    started = clock()
    loss().backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    """Measure, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"depth": 4, "width": 256, "heads": 4, "length": 1024, "batch": 2, "vocabulary": 257}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tree = ContextTree(window=options.length, block_size=8, tail=8)
    with device:
        shape = BaseShape(tree, options.vocabulary, GaussianRope)
        ours = GPT(shape, depth=options.depth, width=options.width, heads=options.heads)
        peer = peer_model(options)
        tokens = torch.randint(options.vocabulary, (options.batch, options.length + 1))
    inputs, targets, context = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), raw_context(tree, 1, device)

    def our_loss() -> Tensor:
        return ours.nll(ours.hidden(ours.embed(inputs), context), targets).mean()

    def peer_loss() -> Tensor:
        logits = peer(inputs).logits.float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    counts = [sum(each.numel() for each in model.parameters()) for model in (ours, peer)]
    print(f"parameters: ours {counts[0]:,}, nanochat {counts[1]:,}")
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: list[tuple[float, float]] = []
    for number in range(options.rounds + 2):
        pairs = [(ours, our_loss), (peer, peer_loss)]
        seconds = [passes(model, loss, clock) for model, loss in (pairs if number % 2 else pairs[::-1])]
        times.append((seconds[0], seconds[1]) if number % 2 else (seconds[1], seconds[0]))
    own, other = (1000 * statistics.median(each) for each in zip(*times[2:], strict=True))
    ratios = sorted(a / b for a, b in times[2:])
    ratio = statistics.median(ratios)
    spread = f"[{ratios[len(ratios) // 4]:.3f}, {ratios[-1 - len(ratios) // 4]:.3f}]"
    print(f"ours {own:.1f} ms, nanochat {other:.1f} ms: ratio {ratio:.3f} {spread} (quartiles)")
    raise SystemExit(ratios[len(ratios) // 4] > 1)


if __name__ == "__main__":
    main()
