"""The one exception a user's mistake ends in."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input from outside: a file, a setting, a checkpoint.

    The message is a single line that names the offending file or key and the remedy. The command line prints it as
    ``error: <message>`` and exits with status 2; library users catch it like any ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def raise_or_add(error: UserError, faults: list[UserError] | None) -> None:
    """Raise ``error``, or add it to ``faults`` where a list is given: to find one fault, or all."""
    if faults is None:
        raise error
    faults.append(error)
