"""The one exception that reaches users: a single clear line (what, which file, what to do)."""

from collections.abc import Sequence

MOST_LINES = 10


class StedmError(Exception):
    """Bad input or an impossible request.

    The command line prints `str(error)` on one line (or one line a problem) and exits with status 1.
    """

    @classmethod
    def of(cls, problems: Sequence[str], hint: str = "") -> "StedmError":
        """One line a problem for the first ones, and how many more there are: a wrong column is wrong in every row.

        `hint` says where all of them can be seen.
        """
        shown = list(problems[:MOST_LINES])
        if more := len(problems) - len(shown):
            shown.append(f"... and {more} more problems{hint and f'; {hint}'}")
        return cls("\n".join(shown))
