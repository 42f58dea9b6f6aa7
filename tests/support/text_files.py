"""Files of text, and errors about them."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from mcframe.errors import UserError


def write_parquet(file, texts, field="text", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), field: texts}), file, **options)


def fails(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.remedy
    for part in parts:
        assert part in str(caught.value)
