"""The errors that users are meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class UsageError(ValueError):
    """A foreseeable mistake, in one line: the value, the rule that it breaks, and the fix.

    The command line prints the line to stderr and exits with status 2. Everything else that is raised, but a Failure,
    is a bug.
    """


class Failure(RuntimeError):
    """What went wrong is not the user's input, and is foreseen: a worker died, an export does not act as it should.

    The command line prints it to stderr, without a traceback of its own, and exits with status 1.
    """


def unknown(kind: str, value: object, known: Iterable[object]) -> UsageError:
    """`unknown task 'pik': known are pick, put (did you mean pick?)`"""
    names = [str(name) for name in known]
    close = get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    listed = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    return UsageError(f"unknown {kind} {str(value)!r}: known are {listed or 'none'}{hint}")
