"""Text that may be printed and recorded: without control characters, and without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from mcframe.errors import encodable

HIDDEN = "***"

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that a terminal executes, and those that reverse the direction of writing."""

CONTROL_TABLE: Mapping[int, str] = {code: repr(chr(code))[1:-1] for code in _CONTROLS if chr(code) not in "\t\n"}

_SECRET_VARIABLE = re.compile(r"(?i)(^|_)(token|key|secret|password|passwd|passphrase|credentials?)$")
_SECRET_SETTING = (
    r"\w*(?:password|passwd|passphrase|secret|api_?key|access_?key|private_?key|access_?token|auth_?token|api_?token|"
    r"hf_?token)"
)
_ASSIGNED = re.compile(rf"(?i)(?P<name>\b{_SECRET_SETTING}\s*=\s*)(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s,)&'\"@%]+)")
_IN_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?:[^/\s:@'\"]*:[^/\s@'\"]+|[^/\s:@'\"]{16,})@")
_IN_QUERY = re.compile(r"(?i)(?P<name>[?&][\w-]*(?:token|key|secret|password|signature|sig|credential)=)[^&\s'\"#<]+")
_SHORTEST = 8
"""Characters of a secret, at least: the value of a shorter variable is too likely to be a part of other text."""


def printable(text: str) -> str:
    """Return a text with control characters, except tab and newline, and lone surrogates as escapes such as \\x1b."""
    return encodable(text.translate(CONTROL_TABLE))


def redacted(text: str) -> str:
    """Return a text with *** in place of secrets.

    Secrets are the values of environment variables such as HF_TOKEN and WANDB_API_KEY, passwords and tokens in
    addresses, and values of settings such as `password = 'x'`.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    text = _IN_ADDRESS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\g<name>{HIDDEN}", text)
    return _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)


def redacted_setting(name: str, value: Any) -> Any:
    """Return the value of a setting without secrets. A text of a setting such as `api_key` is one."""
    if not isinstance(value, str):
        return value
    return HIDDEN if value and re.fullmatch(rf"(?i){_SECRET_SETTING}", name) else redacted(value)


def _environment_secrets() -> list[str]:
    """Return the secrets of the environment, longest first: one may be a part of another."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
    return sorted(found, key=len, reverse=True)
