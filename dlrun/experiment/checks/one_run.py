"""The command line of a check, which is for one run."""

from dlrun.config import request
from dlrun.config.request import Request
from dlrun.core.errors import RequestError


def parse_one_run(words: list[str], check: str) -> Request | None:
    """Return the request of a command line; None if Hydra itself has answered (--cfg).

    check: its name, for messages. Raises RequestError for several runs.
    """
    several = RequestError(
        f"check {check} looks at one run; leave out -m, name one value for each key, "
        "and type sweep.points=[] where a lesson names several runs"
    )
    if {"-m", "--multirun"} & set(words):
        raise several
    requests = request.from_command_line(words)
    if any(one.sweep is not None for one in requests):
        raise several
    return requests[0] if requests else None
