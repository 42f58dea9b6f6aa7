"""Run directories of untrained models, written in this process: configuration, origin, and one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from mcframe.config.run_config import load_run_config
from mcframe.training.build import build_step
from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder
from mcframe.training.provenance import write_record
from mcframe.training.run_directory import write_provenance
from mcframe.training.state_files import encode, write
from mcframe.training.train_step import TrainStep


def write_run(directory: Path, settings: Sequence[str], gin: str | Path = "smoke.gin", tokens: int = 512) -> TrainStep:
    """Write the run directory of a model whose trained weights are moved at random, and return its step."""
    loaded = load_run_config([gin], settings)
    step = build_step(loaded.run_config, loaded.run_config.tokenizer().vocab_size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in step.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    write_provenance(directory, loaded.config.bound(), write_record(directory, loaded.registry))
    omitted = {f"model.gpt.{name}" for name in step.model.gpt.external_weights}
    own = {name: each.detach() for name, each in step.named_parameters() if name not in omitted}
    ids = {id(each): name for name, each in step.named_parameters()}
    every = step.named_parameters(remove_duplicate=False)
    tied = {name: ids[id(each)] for name, each in every if name != ids[id(each)] and ids[id(each)] in own}
    rest = {name: value for name, value in step.state_dict().items() if name not in own and name not in tied}

    def files(folder: Path) -> Sequence[str]:
        tensors: dict[str, Tensor] = {f"weights/{name}": value.contiguous() for name, value in own.items()}
        pieces = {name: (name, 0) for name in tensors}
        facts = {
            "world_size": 1, "pieces": pieces, "shapes": {name: list(each.shape) for name, each in own.items()},
            "tied": tied, "module": encode(rest, "module", tensors),
        }  # fmt: skip
        return [write(folder, 0, tensors, facts).name]

    writer = CheckpointWriter(dist.HashStore(), 0, 1)
    prepare_folder(directory, tokens)
    writer.start(WriteJob(directory, tokens, lambda folder: iter(files(folder)), {"step": 1}, 9))
    writer.wait()
    return step
