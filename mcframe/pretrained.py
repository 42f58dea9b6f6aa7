"""Pretrained models of Hugging Face: where their files are, and whether they can be read."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock
from safetensors.torch import save_model

from mcframe.errors import UserError
from mcframe.files import cache_dir, make_folder, replaced, user_path

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Architectures that are tested: decoders with rotary positions."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS, _SMALL = ("*.safetensors",), ("*.json", "*.model", "*.jinja", "*.txt")
_KNOWN = Path(__file__).with_name("pretrained_configs.json")
"""Configurations of models of the hub, by name, for plans without a download."""
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_EXTRA = "pip install 'mcframe[pretrained]'"


@dataclass(frozen=True)
class ModelFiles:
    """The folder of a pretrained model.

    Attributes:
        folder: Configuration, weights as safetensors, and tokenizer.
        origin: What the user named.
    """

    folder: Path
    origin: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        found: dict[str, Any] = _json(self.folder / "config.json")
        return found

    @property
    def architecture(self) -> str:
        """The class of transformers that reads it."""
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files of its weights.

        Raises:
            UserError: Some are missing.
        """
        index = self.folder / _INDEX
        names = sorted(set(_json(index)["weight_map"].values())) if index.exists() else [_SINGLE]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise UserError(
                f"{self.origin}: expected {len(names)} file(s) of weights, and {len(missing)} of them are missing: "
                f"{', '.join(missing[:3])}",
                remedy="Download the folder again, with all of its safetensors files.",
            )
        return [self.folder / name for name in names]

    @cached_property
    def digest(self) -> str:
        """A checksum of configuration and weights."""
        total = xxhash.xxh3_128()
        for file in (self.folder / "config.json", *self.weight_files):
            total.update(file_digest(file).encode())
        return str(total.hexdigest())


def model_files(path: str, *, needs_model: bool = True) -> ModelFiles:
    """Return the files of a pretrained model; a GGUF file is converted and a hub name downloaded, once.

    Args:
        path: A folder, a GGUF file, `package:NAME/FILE` (a file of an installed package), or a name of the hub.
        needs_model: Whether the folder must have more than a tokenizer.

    Raises:
        UserError: The model is missing, or mcframe cannot read it.
    """
    found = _package_file(path) if path.startswith("package:") else user_path(path, "path")
    if found.is_file() and found.suffix == ".gguf":
        return ModelFiles(_converted(found), path)
    if not found.is_dir():
        if found.exists() or path.startswith("package:") or not _HUB_NAME.fullmatch(path):
            got = "a file" if found.exists() else "no such file"
            raise UserError(
                f"expected the folder of a model, a GGUF file, or a name of the hub such as owner/model, got {got}:"
                f" {path}",
                remedy="Correct the path.",
            )
        found = _downloaded(path, (*_SMALL, *(_WEIGHTS if needs_model else ())))
    if needs_model and not (found / "config.json").is_file():
        raise UserError(
            f"{found} is not the folder of a model: missing config.json",
            remedy="Name the folder with config.json and the safetensors files.",
        )
    return ModelFiles(found, path)


def planned_files(path: str) -> ModelFiles:
    """Return files with the configuration of a model; no weights are downloaded or read.

    A model of the hub whose configuration mcframe has needs no network.
    """
    if path.startswith("package:") or not _HUB_NAME.fullmatch(path) or user_path(path, "path").exists():
        return model_files(path)
    known: dict[str, Any] = _json(_KNOWN)
    if path not in known:
        return model_files(path, needs_model=False)
    folder = cache_dir() / "pretrained" / "plans" / path.replace("/", "--")
    make_folder(folder)
    with replaced(folder / "config.json") as partial:
        partial.write_text(json.dumps(known[path]), "utf-8")
    return ModelFiles(folder, path)


def neutral_token(files: ModelFiles) -> int:
    """Return the id of a newline, which stands for no content; 0 without a tokenizer."""
    import tokenizers

    file = files.folder / "tokenizer.json"
    if not file.is_file():
        return 0
    ids: list[int] = tokenizers.Tokenizer.from_file(str(file)).encode("\n", add_special_tokens=False).ids
    return ids[-1] if ids else 0


def check_architecture(files: ModelFiles) -> None:
    """Raise UserError unless the architecture is one of `ARCHITECTURES`."""
    if files.architecture not in ARCHITECTURES:
        raise UserError(
            f"{files.origin}: expected a decoder with rotary positions, one of {', '.join(ARCHITECTURES)}, got "
            f"{files.architecture}",
            remedy="Name a model of one of these architectures.",
        )


@contextmanager
def needs_extra() -> Iterator[None]:
    """Raise UserError for a package that the body imports and that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"pretrained models: expected the package {error.name}, which is not installed", remedy=f"Run {_EXTRA}."
        ) from error


def quiet_transformers() -> Any:
    """Return the package transformers, without progress bars and notes.

    Raises:
        UserError: It is not installed.
    """
    with needs_extra():
        import transformers
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def file_digest(file: Path) -> str:
    """Return the checksum of a file."""
    total = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while part := opened.read(2**24):
            total.update(part)
    return str(total.hexdigest())


@contextmanager
def naming(binding: str) -> Iterator[None]:
    """Name the binding in a UserError of the body."""
    try:
        yield
    except UserError as error:
        error.binding = binding
        raise


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}", remedy="Download the model again.") from error


def _package_file(path: str) -> Path:
    """Return the file that `package:NAME/FILE` names."""
    name, _, inside = path.removeprefix("package:").partition("/")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{path}: the package {name} is not installed", remedy=f"Run pip install {name}.") from None
    found = [file for file in files if inside and (str(file) == inside or str(file).endswith(f"/{inside}"))]
    if len(found) != 1:
        models = sorted(file.name for file in files if file.suffix == ".gguf")
        raise UserError(
            f"{path}: expected one file {inside!r} in the package, got {len(found)}",
            remedy=f"Name one of its models: {', '.join(models) or 'none'}.",
        )
    return Path(str(found[0].locate())).resolve()


def _downloaded(name: str, patterns: Sequence[str]) -> Path:
    """Return the folder of a model of the hub in Hugging Face's cache, with the files of these patterns."""
    with needs_extra():
        import huggingface_hub as hub
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{name}: expected a folder, or a model that can be downloaded: {reason}",
            remedy="Correct the name, connect to the network, or download the model elsewhere and name its folder.",
        ) from error


def _converted(file: Path) -> Path:
    """Return the folder that a GGUF file was converted to, in mcframe's cache."""
    folder = cache_dir() / "pretrained" / f"{file.stem}-{file_digest(file)[:16]}"
    make_folder(folder)
    with FileLock(folder / "lock"):
        if not (folder / "done").exists():
            _once(lambda: _convert(file, folder), file)
            (folder / "done").touch()
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Write configuration, float32 weights and tokenizer of a GGUF file."""
    transformers = quiet_transformers()
    with needs_extra():
        import gguf
    named = {"gguf_file": file.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **named)
    save_model(model, str(folder / _SINGLE), metadata={"format": "pt"})
    for name in ("quantization_config", "_name_or_path"):
        vars(model.config).pop(name, None)
    model.config.architectures = [type(model).__name__]
    model.config.to_json_file(str(folder / "config.json"), use_diff=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **named)
    end = gguf.GGUFReader(file).get_field("tokenizer.ggml.eos_token_id")
    if tokenizer.eos_token is None and end is not None:  # transformers takes id 0 for none
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(end.contents()))
    tokenizer.save_pretrained(folder)


def _once(work: Callable[[], None], file: Path) -> None:
    try:
        work()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file} cannot be converted: {type(error).__name__}: {error}",
            remedy="Name a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model, or a folder of safetensors files.",
        ) from error
