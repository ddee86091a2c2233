"""The one exception that reaches users: a single clear line (what, which file, what to do)."""


class StedmError(Exception):
    """Bad input or an impossible request.

    The command line prints `str(error)` on one line (or one line a problem) and exits with status 1.
    """
