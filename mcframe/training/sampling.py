"""What a person looks at while a run is under way: working contexts as a line of characters, and continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcframe.config.training_schema import SamplingConfig
from mcframe.context.counter_rng import variant_seeds
from mcframe.hookspecs import Allocator, Tokenizer
from mcframe.modeling.model import MegaContextModel


@torch.no_grad()
def focuses(
    model: MegaContextModel,
    allocator: Allocator,
    windows: Tensor,
    budget: int,
    seed: int,
    batch: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, float]:
    """The focuses of LensNet and allocator for windows [n, T + 1], `batch` at a time; a variant; mean rounds used.

    -> focuses [n, blocks] and a proposed variant of the first window [1, blocks], both on the CPU.
    """
    seeds = variant_seeds(seed, torch.arange(windows.shape[0], device=device), model.strategy.count)
    parts = [part.to(device) for part in torch.split(windows[:, :-1], batch)]
    answers = [
        model.refocus(inputs, allocator, budget, of[:, 0])
        for inputs, of in zip(parts, torch.split(seeds, batch), strict=True)
    ]
    length = model.tree.reachable(budget)[0]
    proposed = model.propose(parts[0][:1], seeds[:1], length)[:1]
    chosen, rounds = (torch.cat([answer[index] for answer in answers]) for index in (0, 1))
    return chosen.cpu(), proposed.cpu(), float(rounds.double().mean())


@torch.no_grad()
def continuation(
    model: MegaContextModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig,
    device: torch.device,
    seed: int,
) -> str:
    """What the model makes of a prompt, `sampling.length` tokens of it. A longer prompt loses its beginning.

    Temperature 0 takes the likeliest token each time.
    """
    ids: list[int] = [tokenizer.separator, *tokenizer.encode_batch([prompt])[0]]
    generator = torch.Generator().manual_seed(seed)
    window = model.tree.window
    made: list[int] = []
    for _ in range(sampling.length):
        tokens = torch.tensor([(ids + made)[-window:]], device=device)
        logits = model.next_logits(tokens)[0, : tokenizer.vocab_size].cpu()
        if sampling.temperature == 0:
            made.append(int(logits.argmax()))
        else:
            share = torch.softmax(logits / sampling.temperature, dim=-1)
            made.append(int(torch.multinomial(share, 1, generator=generator)))
    return tokenizer.decode(made)


def continuations(
    model: MegaContextModel, tokenizer: Tokenizer, sampling: SamplingConfig, device: torch.device, seed: int
) -> Sequence[tuple[str, str]]:
    """Each prompt of `sampling` with its continuation."""
    return [
        (prompt, continuation(model, tokenizer, prompt, sampling, device, seed + index))
        for index, prompt in enumerate(sampling.prompts)
    ]
