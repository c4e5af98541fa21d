"""One sentence for the error that ended a run, whatever raised it."""

from pathlib import Path

from dlrun.core import user_code
from dlrun.core.errors import DlrunError
from dlrun.data import workers
from dlrun.engine.device import is_out_of_memory
from dlrun.experiment.context import RunContext
from dlrun.experiment.preflight import memory


def describe_failure(error: BaseException, context: RunContext, log: Path | None = None) -> str:
    """Describe the error that ended a run in one sentence.

    log: the file that has the traceback, which the sentence then names.
    """
    death = workers.explain_death(error)
    if death is not None:
        return _add_log(str(death), log)
    if is_out_of_memory(error):
        return _add_log(memory.explain_out_of_memory(context.settings, str(context.runtime.device)), log)

    message = str(error).strip() or "no message"
    # An error of dlrun's own is a sentence for the user already.
    if isinstance(error, DlrunError):
        return message

    explanation = user_code.explain(error) or f"{type(error).__name__}: {message.splitlines()[0]}"
    if log is None:
        return f"{explanation} (-v shows the traceback)"
    return f"{explanation} (traceback in {log}; -v shows it here)"


def _add_log(sentence: str, log: Path | None) -> str:
    return sentence if log is None else f"{sentence} (traceback in {log})"
