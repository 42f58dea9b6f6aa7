"""The size of a vocabulary whose tokenizer may not be trained or downloaded yet."""

from __future__ import annotations

from collections.abc import Callable

from mcframe.config.run_config import Loaded
from mcframe.errors import UserError
from mcframe.pretrained import planned_files


def vocabulary(loaded: Loaded, note: Callable[[UserError], object] = lambda error: None) -> int:
    """Return the tokenizer's size; if it is not trained or downloaded yet, that of the base model.

    Args:
        loaded: A configuration.
        note: Called with what the tokenizer needs.
    """
    try:
        return loaded.run_config.tokenizer().vocab_size
    except UserError as error:
        bound = loaded.config.as_dict()
        stated = bound.get("gpt.vocab_size")
        if bound.get("run.base") == "@base.huggingface" and (path := bound.get("base.huggingface.path")):
            stated = planned_files(path).config.get("vocab_size")
        if not isinstance(stated, int):
            raise
        note(error)
        return stated
