"""lm-evaluation-harness with the model `mcframe`: `python -m mcframe.lm_eval --model mcframe --model_args run=RUN`.

All options are those of the harness, which has no entry point for the models of other packages.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcframe.cli.user_errors import report_user_errors
from mcframe.errors import UserError
from mcframe.evaluation.harness_tasks import needs_harness

NAME = "mcframe"


def model_of(
    run: str = "", budget: int | str | None = None, trust: bool = False, batch_size: int | str = 8, device: Any = None
) -> Any:
    """Return the model of `--model_args run=RUN,budget=256`.

    Args:
        run: A run directory, a checkpoint, or a folder of `mcframe export`.
        budget: Entries of a compressed context; without it the full context is read.
        trust: Whether a run of others may execute the plug-ins that it names.
        batch_size: Sequences of a pass of the full context.
        device: The GPU, or cpu; without a GPU the model is computed on the CPU.

    Raises:
        UserError: The run cannot be opened, or an argument is none.
    """
    import torch

    from mcframe.cli.load_run import load_run
    from mcframe.evaluation.harness_model import HarnessModel

    if not run:
        raise UserError("--model_args: expected run=RUN, got no run", remedy="Pass --model_args run=RUN,budget=256.")
    trained = load_run(Path(run), trust=trust)
    # The harness passes a GPU by default.
    model = trained.model.to((device or "cuda") if torch.cuda.is_available() else "cpu")
    config = None
    if budget is not None:
        session = replace(trained.run_config.session, budget=_positive("budget", budget))
        config = session.config(model.tree, model.gpt.positions.bounded)
    size = 8 if batch_size == "auto" else _positive("batch_size", batch_size)
    return HarnessModel(model, trained.tokenizer, trained.run_config.allocator, config, size)


def register() -> None:
    """Add the model to the harness."""
    with needs_harness():
        import lm_eval.models  # noqa: F401 - before, since it fills an empty registry alone
        from lm_eval.api.registry import MODEL_REGISTRY, register_model

        from mcframe.evaluation.harness_model import HarnessModel

    class Model(HarnessModel):
        """The model that the harness builds."""

        def __new__(cls, **arguments: Any) -> Any:
            return model_of(**{name: value for name, value in arguments.items() if name in _ARGUMENTS})

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Any:
            """Return the model of `--model_args`."""
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> Any:
            """Return the model of arguments."""
            if unknown := sorted(set(arg_dict) - set(_ARGUMENTS)):
                raise UserError(
                    f"--model_args: expected {', '.join(_ARGUMENTS)}, got {', '.join(unknown)}",
                    remedy="Remove the others.",
                )
            more = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return cls(**{**more, **arg_dict})

    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(Model)


_ARGUMENTS = ("run", "budget", "trust", "batch_size", "device")


def _positive(name: str, value: int | str) -> int:
    if str(value).isdecimal() and int(value) > 0:
        return int(value)
    raise UserError(f"--model_args: {name}: expected a number from 1, got {value!r}", remedy=f"Correct {name}.")


def main() -> None:
    """Run the command of the harness."""

    def run() -> int:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
        return 0

    sys.exit(report_user_errors(run, traceback=False))


if __name__ == "__main__":
    main()
