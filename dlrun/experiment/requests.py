"""What a command line asks to be trained: new runs, or one to go on with."""

from collections.abc import Sequence

from dlrun.config import explain, request
from dlrun.config.request import Request
from dlrun.core.errors import RequestError


def put_resume_first(words: Sequence[str]) -> list[str]:
    """`resume=RUN` among the words is the command `resume RUN`; `resume=auto` stays a word."""
    runs = [word.removeprefix("resume=") for word in words if word.startswith("resume=") and word != "resume=auto"]
    if not runs:
        return list(words)
    return ["resume", *runs, *(word for word in words if not word.startswith("resume="))]


def read_requests(words: Sequence[str]) -> list[Request]:
    """The runs to train; empty where nothing is left to do. RequestError says what is wrong with the words."""
    words = put_resume_first(words)
    resumes = words[:1] == ["resume"]
    try:
        if resumes:
            from dlrun.experiment import resume  # which imports torch

            return resume.resume_requests(words[1:])

        requests = request.from_command_line(words)
        if "resume=auto" in words:
            from dlrun.experiment import resume

            return resume.find_interrupted(requests)
        return requests
    except explain.COMPOSITION_ERRORS as error:
        if resumes:
            raise RequestError(explain.sentence(error, words[2:])) from error
        raise explain.request_error(error, words) from error
