"""What can go wrong, as one small tree: a user's mistake, or a run that failed."""


class DlrunError(Exception):
    """Something went wrong that one sentence explains; `exit_code` is what the command ends with."""

    exit_code = 1


class RequestError(DlrunError):
    """The request was wrong (exit code 2): the message says what, where, and what to type instead."""

    exit_code = 2


class DataError(RequestError):
    """A data file is missing, unreadable or holds what it may not hold."""


class MisfitError(RequestError):
    """This model cannot take this data."""


class CheckpointError(RequestError):
    """A checkpoint file is missing, damaged, foreign or not allowed to be opened."""


class RunError(DlrunError):
    """The run failed after it had started (exit code 1)."""
