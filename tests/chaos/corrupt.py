"""Random corruptions of a checkpoint of a run, by seed: what disks, copies and people do to files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from mcframe.errors import UserError
from mcframe.training.checkpoint_folder import find, folder_name, newest
from mcframe.training.run_directory import plan
from tests.support.launches import STEP

COMPLETE = "complete.json"


def undetected(trained: Path, run_dir: Path, seed: int) -> tuple[str, str]:
    """Corrupt the newest checkpoint of a copy of a run, or the one before.

    Args:
        trained: A run with a checkpoint after each of four steps.
        run_dir: A folder for the copy, which is removed.
        seed: Determines the corruption.

    Returns:
        What was done, and what failed to notice it: empty if all did.
    """
    older, middle, last = (folder_name(step * STEP) for step in (2, 3, 4))
    for each in (older, middle, last):
        shutil.copytree(trained / "checkpoints" / each, run_dir / "checkpoints" / each)
    shutil.copy(trained / "checkpoints" / "run-id", run_dir / "checkpoints")
    damaged, intact = (last, middle) if seed % 5 else (middle, last)
    path = run_dir / "checkpoints" / damaged
    done = corrupt(seed, path, run_dir / "checkpoints" / older)
    found = newest(run_dir)
    missed = [] if found is not None and found.path.name == intact else [f"resumption uses {found}"]
    if damaged not in _message(lambda: find(path)):
        missed.append(f"{damaged} is read")
    stopped = _message(lambda: plan("smoke", run_dir, "auto", "stop"))
    if damaged == last and not (last in stopped and middle in stopped):
        missed.append("on_damage = 'stop' continues")
    shutil.rmtree(run_dir)
    return done, ", ".join(missed)


def _message(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return f"{error.message} {error.remedy}" if error.remedy else ""
    return ""


def corrupt(seed: int, target: Path, other: Path) -> str:
    """Corrupt a checkpoint, and return what was done.

    Args:
        seed: Determines the corruption.
        target: The folder of the checkpoint.
        other: The folder of another checkpoint of the run, for files that are put in the wrong folder.
    """
    draw = random.Random(seed)
    kinds = sorted(KINDS)
    kind = kinds[seed % len(kinds)]
    return f"{seed} {kind}: {KINDS[kind](draw, target, other)}"


def _file(draw: random.Random, target: Path) -> Path:
    """Return a file of a checkpoint; large files are as likely as small ones."""
    return draw.choice(sorted(file for file in target.rglob("*") if file.is_file()))


def _flip(draw: random.Random, target: Path, other: Path) -> str:
    file = _file(draw, target)
    content = bytearray(file.read_bytes())
    at, bit = draw.randrange(len(content)), draw.randrange(8)
    content[at] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {at} of {file.name}"


def _flip_in_tensors(draw: random.Random, target: Path, other: Path) -> str:
    file = max((each for each in target.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size)
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content) // 4, 3 * len(content) // 4)
    content[at] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"byte {at} of {file.name}"


def _truncate(draw: random.Random, target: Path, other: Path) -> str:
    file = _file(draw, target)
    size = draw.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"{file.name} to {size}"


def _lengthen(draw: random.Random, target: Path, other: Path) -> str:
    file = _file(draw, target)
    with file.open("ab") as opened:
        opened.write(draw.randbytes(draw.randrange(1, 4096)))
    return file.name


def _zero_block(draw: random.Random, target: Path, other: Path) -> str:
    """Do what a crash of the machine leaves: the right size, and zeros where data was not written."""
    file = _file(draw, target)
    content = bytearray(file.read_bytes())
    at = draw.randrange(len(content))
    size = min(4096, len(content) - at)
    changed = content[:at] + bytes(size) + content[at + size :]
    file.write_bytes(changed if changed != content else content[:-1] + b"\xff\x00")
    return f"{size} bytes at {at} of {file.name}"


def _delete(draw: random.Random, target: Path, other: Path) -> str:
    file = _file(draw, target)
    file.unlink()
    return file.name


def _empty(draw: random.Random, target: Path, other: Path) -> str:
    file = _file(draw, target)
    file.write_bytes(b"")
    return file.name


def _swap_in(draw: random.Random, target: Path, other: Path) -> str:
    """Put in a file of the other checkpoint, or several."""
    names = [file.relative_to(target) for file in sorted(target.rglob("*")) if file.is_file()]
    differ = [name for name in names if (target / name).read_bytes() != (other / name).read_bytes()]
    chosen = draw.sample(differ, draw.randint(1, len(differ)))
    for name in chosen:
        shutil.copy2(other / name, target / name)
    return ", ".join(map(str, sorted(chosen)))


def _exchange(draw: random.Random, target: Path, other: Path) -> str:
    """Exchange two files of the checkpoint."""
    files = sorted(file for file in target.rglob("*") if file.is_file())
    first, second = draw.sample(files, 2)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return f"{first.name}, {second.name}"


def _foreign(draw: random.Random, target: Path, other: Path) -> str:
    name = draw.choice(
        (".DS_Store", "notes.txt", "rank-7.pt", "model (1).safetensors", "deeper/file", "pytorch_model.bin")
    )
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_bytes(draw.randbytes(draw.randrange(100)))
    return name


def _edit(draw: random.Random, target: Path, other: Path) -> str:
    """Edit the manifest."""
    file = target / COMPLETE
    facts = json.loads(file.read_text())
    key = draw.choice(sorted(facts))
    how = draw.choice(("remove", "change", "reformat", "add"))
    if how == "remove":
        del facts[key]
    elif how == "change":
        facts[key] = draw.choice([each for each in (None, 0, "another", [], {}) if each != facts[key]])
    elif how == "add":
        facts["note"] = "the best one"
    file.write_text(json.dumps(facts, indent=2 if how == "reformat" else None, sort_keys=True) + "\n")
    return f"{how} {key}"


def _replace(draw: random.Random, target: Path, other: Path) -> str:
    """Replace a file by a folder, or by a link."""
    file = _file(draw, target)
    if draw.random() < 0.5:
        file.unlink()
        file.mkdir()
        return f"{file.name} by a folder"
    outside = target.parents[1] / file.name
    file.rename(outside)
    file.symlink_to(outside)
    return f"{file.name} by a link"


def _rename(draw: random.Random, target: Path, other: Path) -> str:
    """Replace this checkpoint by the other one, complete."""
    shutil.rmtree(target)
    shutil.copytree(other, target)
    return f"{other.name} as {target.name}"


KINDS: dict[str, Callable[[random.Random, Path, Path], str]] = {
    "flip": _flip,
    "flip in tensors": _flip_in_tensors,
    "truncate": _truncate,
    "lengthen": _lengthen,
    "zero block": _zero_block,
    "delete": _delete,
    "empty": _empty,
    "swap in": _swap_in,
    "exchange": _exchange,
    "foreign": _foreign,
    "edit": _edit,
    "replace": _replace,
    "rename": _rename,
}
