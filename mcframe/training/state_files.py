"""Files of a checkpoint's state: one safetensors file a rank, with all that is not a tensor as JSON in its metadata.

Neither can hold code, so that reading a foreign checkpoint runs none. A tensor may be spread over the files of several
ranks in pieces, since each rank writes what it holds.
"""

from __future__ import annotations

import base64
import errno
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcframe.errors import UserError
from mcframe.files import is_full

FORMAT = 1
_FACTS = "mcframe_state"
_PLAIN = (type(None), bool, int, float, str)
_INLINE = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def encode(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value of JSON for numbers, text, tensors, arrays and containers of them; `decode` restores it.

    Args:
        value: The value.
        name: Its name in messages, and of its tensors.
        tensors: Receives copies on the CPU of the tensors in the value.

    Raises:
        TypeError: The value has a part of another type.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict or kind is OrderedDict:
        assert isinstance(value, dict)
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(each, f"{name}/{key}", tensors) for key, each in value.items()}
        pairs = [[encode(key, name, tensors), encode(each, f"{name}/{key}", tensors)] for key, each in value.items()]
        return {"$dict": pairs}
    if kind in (list, tuple, set, frozenset):
        assert isinstance(value, Iterable)
        parts = [encode(each, f"{name}/{number}", tensors) for number, each in enumerate(value)]
        return parts if kind is list else {f"${kind.__name__}": parts}
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode("ascii")}  # type: ignore[arg-type]
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        encoded = encode(torch.from_numpy(np.array(value)), name, tensors)
        return {"$array": encoded} if isinstance(value, np.ndarray) else {"$numpy": encoded}
    if isinstance(value, Tensor) and value.layout == torch.strided:
        if value.dim() == 0 and value.dtype in _INLINE:
            return {"$scalar": [str(value.dtype).removeprefix("torch."), value.item()]}
        return {"$tensor": _add(tensors, name, value.detach().to("cpu", copy=True).contiguous())}
    raise TypeError(f"{name}: expected numbers, text, tensors or lists and dicts of them, got a {kind.__name__}")


def decode(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """Return the value that `encode` was passed; `tensor` returns the tensors by name."""
    if isinstance(value, list):
        return [decode(each, tensor) for each in value]
    if not isinstance(value, dict):
        return value
    kind: str
    content: Any
    kind, content = next(iter(value.items()), ("", None))
    if not kind.startswith("$"):
        return {key: decode(each, tensor) for key, each in value.items()}
    if kind == "$dict":
        return {decode(key, tensor): decode(each, tensor) for key, each in content}
    if kind == "$scalar":
        return torch.tensor(content[1], dtype=getattr(torch, content[0]))
    if kind == "$tensor":
        return tensor(content).clone()
    if kind == "$bytes":
        return base64.b64decode(content)
    content = decode(content, tensor)
    if kind in ("$array", "$numpy"):
        array = content.numpy()
        return array if kind == "$array" else array[()]
    return {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[kind](content)


def _add(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> str:
    """Add a tensor under the first free name, and return it: keys that contain a slash could be ambiguous."""
    free, number = name, 1
    while free in tensors:
        number += 1
        free = f"{name}#{number}"
    tensors[free] = tensor
    return free


def write(folder: Path, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write the file of a rank, and return its path.

    Args:
        folder: The folder of the checkpoint.
        rank: The rank.
        tensors: Tensors on the CPU.
        facts: Values of JSON.

    Raises:
        OSError: The file cannot be written.
    """
    path = folder / f"rank-{rank}.safetensors"
    path.touch()  # with the mode that the umask leaves; safetensors would deny it to others
    mode = path.stat().st_mode & 0o7777
    try:
        save_file(dict(tensors), path, {_FACTS: json.dumps({"format": FORMAT, **facts})})
    except SafetensorError as error:
        raise OSError(errno.ENOSPC if is_full(error) else errno.EIO, str(error), str(path)) from error
    path.chmod(mode)
    return path


@dataclass(frozen=True)
class _Piece:
    """Elements from `start` on of an entry, in a tensor of a file."""

    start: int
    length: int
    file: Any
    key: str


class SavedState:
    """The state in the files of all ranks. Tensors are memory-mapped: what is not used is not read.

    Attributes:
        facts: Facts of each rank, as `write` was passed them.
    """

    def __init__(self, files: Sequence[Any], facts: Sequence[Mapping[str, Any]]) -> None:
        self.facts = facts
        self._files = files
        self._pieces: dict[str, list[_Piece]] = {}
        for file, each in zip(files, facts, strict=True):
            for key, (entry, start) in each.get("pieces", {}).items():
                length = int(np.prod(file.get_slice(key).get_shape(), dtype=np.int64))
                self._pieces.setdefault(entry, []).append(_Piece(start, length, file, key))

    def value(self, rank: int, name: str) -> Any:
        """Return a fact of a rank, decoded."""
        return self.decoded(rank, self.facts[rank][name])

    def decoded(self, rank: int, encoded: Any) -> Any:
        """Return the value of a part of a rank's facts."""
        return decode(encoded, self._files[rank].get_tensor)

    def part(self, entry: str, start: int, length: int) -> Tensor:
        """Return elements `start` to `start + length` of an entry -> [length]. It may be a view of the file.

        Raises:
            ValueError: No file holds them.
        """
        out: Tensor | None = None
        done = start
        for piece in sorted(self._pieces.get(entry, ()), key=lambda piece: piece.start):
            stop = min(piece.start + piece.length, start + length)
            if piece.start > done or stop < done or (stop == done and length):
                continue
            flat: Tensor = piece.file.get_tensor(piece.key).reshape(-1)[done - piece.start : stop - piece.start]
            if flat.numel() == length:
                return flat
            out = torch.empty(length, dtype=flat.dtype) if out is None else out
            out[done - start : stop - start] = flat
            done = stop
        if out is None or done < start + length:
            raise ValueError(f"{entry}: elements from {done} on are in no file")
        return out


def read(folder: Path) -> SavedState:
    """Return the state in the files of a checkpoint.

    Raises:
        UserError: A version of mcframe with another format wrote them.
        OSError, SafetensorError, ValueError: A file is missing or damaged.
    """
    found = {path.name for path in folder.glob("rank-*")}
    if any(name.endswith(".pt") for name in found):
        raise UserError(
            f"{folder} was written by mcframe 0.1, whose checkpoints hold pickles, which this version does not load",
            remedy="Finish this run with mcframe 0.1, or start a new run with --resume never.",
        )
    first = _open(folder, 0)
    world = first[1]["world_size"]
    opened = [first, *(_open(folder, rank) for rank in range(1, world))]
    return SavedState([file for file, _ in opened], [facts for _, facts in opened])


def _open(folder: Path, rank: int) -> tuple[Any, dict[str, Any]]:
    file: Any = safe_open(folder / f"rank-{rank}.safetensors", "pt")
    facts: dict[str, Any] = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
    if (version := facts.get("format")) != FORMAT:
        raise UserError(
            f"{folder}: expected files of format {FORMAT}, got {version}",
            remedy="Resume with the version of mcframe that wrote the checkpoint.",
        )
    return file, facts
