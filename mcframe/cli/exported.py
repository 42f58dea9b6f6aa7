"""Folders that `mcframe export` writes of a run with a pretrained base model, and how they are opened again."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcframe import __version__
from mcframe.errors import UserError
from mcframe.files import unwritable
from mcframe.modeling.low_rank import changes_of, set_changes
from mcframe.modeling.model import MegaContextModel
from mcframe.modeling.pretrained_base import HuggingFaceBase
from mcframe.modeling.pretrained_export import copy_base, reads_positions_alike, write_base
from mcframe.training.checkpoint_folder import Checkpoint, checksum
from mcframe.training.provenance import FOLDER as PLUGINS
from mcframe.training.run_directory import BOUND, PROVENANCE
from mcframe.trust import remember

if TYPE_CHECKING:
    from mcframe.cli.load_run import TrainedRun

MANIFEST, FORMAT = "mcframe.json", 1
_BASE, _TOKENIZER = "base.huggingface.path", "tokenizer.huggingface.path"
_HERE = "exported:this-folder"
"""Stands for the folder in the bindings of `config.gin`, since the folder can be moved."""
_REPEAT = "Export the run again."


def is_export(folder: Path) -> bool:
    """Return whether `mcframe export` wrote a folder."""
    return (folder / MANIFEST).is_file()


def write_export(trained: TrainedRun, folder: Path, copy: bool) -> str:
    """Write base model, GistNet and LensNet of a run into a new folder.

    Args:
        trained: The run. Its low-rank changes are merged by this, but for changes that act from the first gist on: a
            model of transformers has no gists, so they are written next to it.
        folder: The folder, which must not exist or be empty.
        copy: Whether the files of a frozen base model are copied. A base model that was trained is always written.

    Returns:
        A line about the base model.

    Raises:
        UserError: The folder is not empty or cannot be written, or a part has a state that is not of tensors.
    """
    model, base = trained.model, trained.model.gpt
    assert isinstance(base, HuggingFaceBase)
    parts, source, changed = _parts(model), str(base.files.origin), _is_changed(base)
    with _new_folder(folder) as partial:
        names = [f"{name}.safetensors" for name, state in parts.items() if state]
        for name, state in parts.items():
            if state:
                save_file(state, partial / f"{name}.safetensors", {"format": "pt"})
        if changed:
            write_base(base, partial)
        elif copy:
            copy_base(base, partial)
        moved = [_BASE, *([_TOKENIZER] if _same_tokenizer(trained, source) else ())] if changed or copy else []
        files = type(base.files)(partial, source) if moved else base.files
        facts = {
            "format": FORMAT, "mcframe": __version__, "tokens": trained.checkpoint.tokens, "here": moved,
            "run": trained.checkpoint.facts["run"], "base": files.digest, "merged": changed,
            "files": {name: checksum(partial / name) for name in names},
        }  # fmt: skip
        (partial / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        config = (trained.directory / BOUND).read_text("utf-8")
        (partial / BOUND).write_text(config.replace(repr(source), repr(_HERE)) if moved else config, "utf-8")
        shutil.copyfile(trained.directory / PROVENANCE, partial / PROVENANCE)
        if (trained.directory / PLUGINS).is_dir():
            shutil.copytree(trained.directory / PLUGINS, partial / PLUGINS)
    remember(folder)
    if not moved:
        return f"base model: frozen, stays in {source}; --copy-base copies it"
    note = "" if reads_positions_alike(base) else "; transformers computes other positions than this run"
    return f"base model: {'merged' if changed else 'copied'}, a folder of Hugging Face{note}"


def read_manifest(folder: Path) -> Checkpoint:
    """Return the manifest of an exported folder, after comparing its files with it. Raises UserError."""
    try:
        facts: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        if facts["format"] != FORMAT:
            raise UserError(
                f"{folder / MANIFEST}: expected format {FORMAT}, got {facts['format']}",
                remedy=f"Install mcframe {facts['mcframe']}, which wrote it.",
            )
        changed = [name for name, expected in facts["files"].items() if checksum(folder / name) != expected]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} cannot be read: {type(error).__name__}: {error}", remedy=_REPEAT) from error
    if changed:
        raise UserError(f"{', '.join(changed)} of {folder}: expected the content that was exported", remedy=_REPEAT)
    return Checkpoint(folder / MANIFEST, facts)


def bindings(checkpoint: Checkpoint) -> list[str]:
    """Return the bindings that an exported folder replaces."""
    here = repr(str(checkpoint.path.parent.resolve()))
    found = [f"{name} = {here}" for name in checkpoint.facts["here"]]
    merged = checkpoint.facts.get("merged", bool(found))
    return [*found, "base.huggingface.trained = 'nothing'"] if merged else found


def load_parts(model: MegaContextModel, checkpoint: Checkpoint) -> None:
    """Load the weights next to the base model. Raises UserError if the base model is another one."""
    base, folder = model.gpt, checkpoint.path.parent
    assert isinstance(base, HuggingFaceBase)
    if base.files.digest != checkpoint.facts["base"]:
        raise UserError(
            f"{base.files.origin}: expected the model that {folder} was exported with, checksum "
            f"{checkpoint.facts['base']}, got {base.files.digest}",
            remedy=f"Restore the model's files. {_REPEAT}",
            binding=_BASE,
        )
    for name, module in _modules(model).items():
        file = f"{name}.safetensors"
        if isinstance(module, HuggingFaceBase):
            set_changes(module, load_file(folder / file))
            continue
        module.load_state_dict(load_file(folder / file) if file in checkpoint.facts["files"] else {})


def _modules(model: MegaContextModel) -> Mapping[str, nn.Module]:
    """Return the modules of mcframe by the names of their files."""
    assert isinstance(model.gpt, HuggingFaceBase)
    found: dict[str, nn.Module | None] = {
        "positions": model.gpt.positions,
        "gistnet": model.gistnet,
        "lensnet": model.lensnet,
        "changes": model.gpt if model.gpt.reads_gists else None,
    }
    return {name: module for name, module in found.items() if module is not None}


def _parts(model: MegaContextModel) -> dict[str, dict[str, Tensor]]:
    """Return copies of the weights of each module."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, module in _modules(model).items():
        state = changes_of(module) if isinstance(module, HuggingFaceBase) else module.state_dict()
        if others := [key for key, value in state.items() if not isinstance(value, Tensor)]:
            raise UserError(
                f"{name}: expected a state of tensors, got {others[0]} of type {type(state[others[0]]).__name__}",
                remedy="Export with --out FILE.safetensors, which omits it.",
            )
        found[name] = {key: value.contiguous().clone() for key, value in state.items()}
    return found


def _is_changed(base: HuggingFaceBase) -> bool:
    """Return whether weights of the base model were trained, and changed for every context."""
    parts = (base.layers, base.lm_head)
    return not base.reads_gists and any(each.requires_grad for part in parts for each in part.parameters())


def _same_tokenizer(trained: TrainedRun, source: str) -> bool:
    return trained.loaded.config.as_dict().get(_TOKENIZER) == source


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes `folder` at the end of the block, unless the block raises."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a new or empty folder, got {folder}", remedy="Pass --out with another path.")
    partial = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        with suppress(FileNotFoundError):
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        raise unwritable(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
