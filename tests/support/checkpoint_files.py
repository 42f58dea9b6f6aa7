"""Checkpoints of plain files, for tests of what does not read them."""

import torch.distributed as dist

from mcframe.training.checkpoint_writer import CheckpointWriter, WriteJob, prepare_folder


def write_checkpoint(run_dir, tokens, keep=9):
    """Write a checkpoint of two files, as one rank does, and return its folder."""

    def write(folder):
        for name in ("model.bin", "rank-0.pt"):
            (folder / name).write_text(f"{name} after {tokens} tokens")
            yield name

    writer = CheckpointWriter(dist.HashStore(), 0, 1)
    prepare_folder(run_dir, tokens)
    writer.start(WriteJob(run_dir, tokens, write, {"step": tokens}, keep))
    return writer.wait().path
