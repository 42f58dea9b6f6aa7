"""Previews during training: working contexts of held-out windows, and continuations of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcframe.config.training_schema import SamplingConfig
from mcframe.context.counter_rng import variant_seeds
from mcframe.errors import UserError
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
    """Return the focuses that LensNet and the allocator select for windows, and a variant.

    Args:
        model: The model.
        allocator: The allocator.
        windows: Held-out windows [n, T + 1].
        budget: Entries of a working context.
        seed: Seed of variants and ties.
        batch: Windows of a forward pass.
        device: Device of the model.

    Returns:
        Focuses [n, blocks] and a proposed variant of the first window [1, blocks], both on the CPU, and the mean number
        of rounds.
    """
    seeds = variant_seeds(seed, torch.arange(windows.shape[0], device=device), model.strategy.count)
    parts = [part.to(device) for part in torch.split(windows[:, :-1], batch)]
    refocused = [
        model.refocus(inputs, allocator, budget, of[:, 0])
        for inputs, of in zip(parts, torch.split(seeds, batch), strict=True)
    ]
    length = model.tree.reachable_length(budget)
    proposed = model.propose(parts[0][:1], seeds[:1], length)[:1]
    focus, rounds = (torch.cat([result[index] for result in refocused]) for index in (0, 1))
    return focus.cpu(), proposed.cpu(), float(rounds.double().mean())


@torch.no_grad()
def continuation(
    model: MegaContextModel,
    tokenizer: Tokenizer,
    prompt: str,
    sampling: SamplingConfig,
    device: torch.device,
    seed: int,
) -> str:
    """Return a continuation of a prompt by `sampling.length` tokens.

    A prompt longer than the window is cut at its beginning. Temperature 0 selects the most probable token.

    Raises:
        UserError: The model returns logits that are not finite.
    """
    ids: list[int] = [tokenizer.separator, *tokenizer.encode_batch([prompt])[0]]
    generator = torch.Generator().manual_seed(seed)
    window = model.tree.window
    generated: list[int] = []
    for _ in range(sampling.length):
        tokens = torch.tensor([(ids + generated)[-window:]], device=device)
        logits = model.next_logits(tokens)[0, : tokenizer.vocab_size].cpu()
        if not logits.isfinite().all():
            raise UserError(
                "the model returns logits that are not finite", remedy="Take an earlier checkpoint of the run."
            )
        if sampling.temperature == 0:
            generated.append(int(logits.argmax()))
        else:
            # In double precision and below 0, where no temperature above 0 overflows.
            scaled = (logits.double() - logits.max()) / sampling.temperature
            probabilities = torch.softmax(scaled.float(), dim=-1)
            generated.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return tokenizer.decode(generated)


def continuations(
    model: MegaContextModel, tokenizer: Tokenizer, sampling: SamplingConfig, device: torch.device, seed: int
) -> Sequence[tuple[str, str]]:
    """Return each prompt of `sampling` with its continuation."""
    return [
        (prompt, continuation(model, tokenizer, prompt, sampling, device, seed + index))
        for index, prompt in enumerate(sampling.prompts)
    ]
