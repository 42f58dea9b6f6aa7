"""Calls that execute code from data: none but those listed here, each with its reason."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("mcframe", "plugins", "benchmarks")

FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "import_module", "importlib.import_module", "importlib.reload",
    "spec_from_file_location", "importlib.util.spec_from_file_location", "runpy.run_path", "runpy.run_module",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "pandas.read_pickle",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.jit.load", "torch.hub.load",
    "torch.package.PackageImporter", "get_fp32_state_dict_from_zero_checkpoint", "load_checkpoint",
    "gin.parse_config", "gin.parse_config_file", "gin.parse_config_files_and_bindings",
}  # fmt: skip
"""Names of functions, as they are called; also as the last part of a longer name if they have no dot."""

_WHOLE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "yaml"}
"""Modules of which no function may have another name."""

_AS_METHODS = {"get_fp32_state_dict_from_zero_checkpoint", "load_checkpoint"}

ALLOWED = {
    ("mcframe/__init__.py", "import_module"): "a module of mcframe, by a constant name",
    ("mcframe/cli/app.py", "import_module"): "a command of mcframe, from a constant table",
    ("mcframe/registry/load_from_path.py", "exec"): "the file of --plugin, or of a trusted run",
    ("mcframe/registry/load_from_path.py", "compile"): "the file of --plugin, or of a trusted run",
    ("mcframe/registry/load_from_path.py", "importlib.import_module"): "the module of --plugin, or of a trusted run",
    ("mcframe/testing/__init__.py", "importlib.import_module"): "a module of mcframe, from a constant table",
    ("mcframe/testing/requirements.py", "importlib.import_module"): "a module of mcframe, from a constant table",
    ("mcframe/testing/model_parts.py", "pickle.loads"): "the bytes that the line itself has pickled",
    ("mcframe/testing/any_kind.py", "pickle.loads"): "the bytes that the line itself has pickled",
    ("plugins/folder.py", "importlib.import_module"): "a module of the package, by the names of its files",
}
"""(file, call) -> why it executes no code from data."""


def calls(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, function) of each call that can execute code from data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in _WHOLE:
            yield node.lineno, f"from {node.module} import: import the module, so that calls have its name"
        elif isinstance(node, ast.Import) and any(each.name in _WHOLE and each.asname for each in node.names):
            yield node.lineno, "import as: import the module under its own name"
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {each.arg: each.value for each in node.keywords}
        if name in FORBIDDEN or name.rpartition(".")[2] in _AS_METHODS:
            yield node.lineno, name
        elif name == "torch.load" and not _is(options.get("weights_only"), True):
            yield node.lineno, f"{name} without weights_only=True"
        elif (flag := options.get("allow_pickle")) is not None and not _is(flag, False):
            yield node.lineno, f"{name} with allow_pickle"
        for key in ("shell", "trust_remote_code"):
            if key in options and not _is(options[key], False):
                yield node.lineno, f"{name} with {key}"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def problems() -> list[str]:
    """Return a line for each call that is not allowed."""
    found: list[str] = []
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            where = file.relative_to(ROOT).as_posix()
            for line, name in calls(file.read_text("utf-8")):
                if (where, name) not in ALLOWED:
                    found.append(f"{where}:{line}: {name}")
    return found


if __name__ == "__main__":
    print("\n".join(problems()))
    sys.exit(bool(problems()))
