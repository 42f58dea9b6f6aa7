"""Write a pretrained base model as a folder of Hugging Face, with its changes merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from mcframe.context.working_context import raw_context
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.rope import gaussian_rotation
from mcframe.pretrained import needs_extra

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
_INDEX = "model.safetensors.index.json"
_NOT_COPIED = (_INDEX, "config.json", "mcframe.json", "provenance.json")
_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"
_SHARD = "5GB"


def copy_base(base: HuggingFaceBase, folder: Path) -> None:
    """Copy the files from which a frozen model was read: configuration, weights, tokenizer."""
    source = base.files.folder
    copy_small_files(source, folder)
    for file in (source / "config.json", source / _INDEX, *base.files.weight_files):
        if file.exists():
            shutil.copyfile(file, folder / file.name)


def write_base(base: HuggingFaceBase, folder: Path) -> None:
    """Write configuration, float32 weights with merged LoRA, and the files of the tokenizer."""
    with needs_extra():
        import huggingface_hub as hub
    copy_small_files(base.files.folder, folder)
    config = {name: value for name, value in base.files.config.items() if name not in ("torch_dtype", "_name_or_path")}
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (folder / "config.json").write_text(text + "\n", "utf-8")
    hub.save_torch_state_dict(merged_weights(base), folder, max_shard_size=_SHARD)


def copy_small_files(source: Path, folder: Path) -> None:
    """Copy the other files of a model, such as the tokenizer."""
    for pattern in _COPIED:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)


def merged_weights(base: HuggingFaceBase) -> dict[str, Tensor]:
    """Return the weights under the names of transformers, low-rank changes merged; a tied head is omitted."""
    from_ours = {"token_embed.": "model.embed_tokens.", "layers.": "model.layers.", "norm.": "model.norm."}
    _merge(base)
    found: dict[str, Tensor] = {}
    for name, value in base.named_parameters(remove_duplicate=False):
        part = next((each for each in (*from_ours, "lm_head.") if name.startswith(each)), None)
        if part is not None and ".lora_" not in name:
            new = from_ours.get(part, part) + name.removeprefix(part)
            found[new.replace(".base_layer.", ".")] = value.detach().float().contiguous()
    if base.lm_head.weight is base.token_embed.weight:
        del found[_HEAD]
    return found


@torch.no_grad()
def reads_positions_alike(base: HuggingFaceBase) -> bool:
    """Return whether the run's positions rotate an uncompressed context as transformers does."""
    raw = raw_context(base.tree, 1, torch.device("cpu"))
    mean, spread = raw.positions("centre")
    own = gaussian_rotation(mean, spread, base.head_width, frequencies=base.frequencies)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, base.positions(raw), strict=True))


def _merge(base: HuggingFaceBase) -> None:
    """Add the low-rank changes, if any, to the maps of the layers."""
    if any("lora_" in name for name, _ in base.named_parameters()):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in base.layers.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
