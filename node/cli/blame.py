"""From an exception to what is said of it and the exit code. Knows neither voice nor command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from swarmnode.errors import SwarmnodeError

from .events import Failed

__all__ = ["BROKEN_PIPE_EXIT", "INTERNAL_EXIT", "INTERRUPTED", "Blame", "blame"]

# sysexits.h calls 70 an internal software error; shells call 141 death by SIGPIPE.
INTERNAL_EXIT: Final = 70
BROKEN_PIPE_EXIT: Final = 141
INTERRUPTED: Final = Failed(code="interrupted", message="Interrupted.", hint="")


class Blame:
    """What to say of an error, and the exit code; `failed` is None where nothing is to be said."""

    def __init__(self, failed: Failed | None, exit_code: int) -> None:
        self.failed = failed
        self.exit_code = exit_code


def blame(error: BaseException) -> Blame:
    """One error to speak of, out of a group that tasks raised together: what nobody foresaw first, then ours."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if not isinstance(leaf, SwarmnodeError | BrokenPipeError):
            return Blame(_unforeseen(leaf), INTERNAL_EXIT)
    for leaf in leaves:
        if isinstance(leaf, SwarmnodeError):
            return Blame(Failed(code=leaf.code, message=leaf.message, hint=leaf.hint), leaf.exit_code)
    return Blame(None, BROKEN_PIPE_EXIT)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _unforeseen(error: BaseException) -> Failed:
    what = type(error).__name__ + (f": {error}" if str(error) else "")
    return Failed(
        code="internal",
        message=f"swarmnode met an error that it did not foresee ({' '.join(what.split())}).",
        hint="Please report it with what --debug prints.",
    )
