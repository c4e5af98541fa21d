"""The runs that a command line asks for: new ones, or one to resume."""

from collections.abc import Sequence

from dlrun.config import explain, request
from dlrun.config.request import Request
from dlrun.core.errors import RequestError
from dlrun.experiment import rerun


def put_resume_first(words: Sequence[str]) -> list[str]:
    """Turn `resume=RUN` among the words into the command `resume RUN`; `resume=auto` stays a word."""
    runs = [word.removeprefix("resume=") for word in words if word.startswith("resume=") and word != "resume=auto"]
    if not runs:
        return list(words)

    others = [word for word in words if not word.startswith("resume=")]
    return ["resume", *runs, *others]


def read_requests(words: Sequence[str]) -> list[Request]:
    """Return the runs to train, none where nothing is left to do. RequestError says what is wrong with the words."""
    words = put_resume_first(words)
    is_resume = words[:1] == ["resume"]
    try:
        # The module resume imports torch.
        if is_resume:
            from dlrun.experiment import resume

            return resume.resume_requests(words[1:])

        if words[:1] == ["rerun"]:
            return rerun.read_requests(words[1:])

        requests = request.from_command_line(words)
        if "resume=auto" in words:
            from dlrun.experiment import resume

            return resume.find_interrupted(requests)
        return requests
    except explain.COMPOSITION_ERRORS as error:
        if is_resume:
            raise RequestError(explain.explain_error(error, words[2:])) from error
        if words[:1] == ["rerun"]:
            # The run's own words may be what is wrong, beside those that were typed.
            raise RequestError(explain.explain_error(error, words[2:])) from error
        raise explain.explain_all_errors(error, words) from error
