"""What is taken out of texts before they are kept: `captured.redact` names a row, a plugin may add one
(docs/extending.md)."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from agent.table import Table

logger = logging.getLogger(__name__)

Redactor = Callable[[str], str]
UNREDACTED = "none"
SESSION_KEY = "session.key"

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]++@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_PHONE = re.compile(r"(?<![\w.])\+\d{1,3}(?:[ ()-]{0,2}\d){6,12}(?![\w.])")


def _unchanged(text: str) -> str:
    return text


def redact_patterns(text: str) -> str:
    """Email addresses, card numbers that pass Luhn's check, IBANs and international telephone numbers
    (`+...`), each replaced by its name. Names and addresses of people are not recognised.

    >>> redact_patterns("ask ann@example.com or +44 20 7946 0958; 4111 1111 1111 1111 is 2 ** 4")
    'ask [email] or [phone]; [card] is 2 ** 4'
    """
    text = _EMAIL.sub("[email]", text)
    text = _CARD.sub(lambda match: "[card]" if _luhn(match[0]) else match[0], text)
    text = _IBAN.sub("[iban]", text)
    return _PHONE.sub("[phone]", text)


def _luhn(text: str) -> bool:
    digits = [int(char) for char in reversed(text) if char.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def session_key(folder: Path) -> bytes:
    """The key that sessions' names are hashed with: made once, for all gateways of `folder`. Where it cannot
    be kept there, one for this process."""
    path = folder / SESSION_KEY
    key = secrets.token_bytes(32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f"{SESSION_KEY}.{secrets.token_hex(4)}"
        made.touch(mode=0o600)
        made.write_bytes(key)
        try:
            os.link(made, path)  # whole or not at all, and never over another's
        except FileExistsError:
            pass
        made.unlink()
        return path.read_bytes()
    except OSError as exc:
        logger.warning("sessions get other names after a restart: cannot keep %s: %s", path, exc)
        return key


REDACTORS: Table[Redactor] = Table("redactor", {UNREDACTED: _unchanged, "patterns": redact_patterns})
