"""What the error that ends a run is called: one sentence, whatever raised it."""

from pathlib import Path

from dlrun.core import user_code
from dlrun.core.errors import DlrunError
from dlrun.data import workers
from dlrun.engine.device import is_out_of_memory
from dlrun.experiment.context import RunContext
from dlrun.experiment.preflight import memory


def explain_failure(error: BaseException, context: RunContext, log: Path | None = None) -> str:
    """One sentence about the error that ended a run, with `log` as the place of its traceback."""
    message = str(error).strip() or "no message"
    death = workers.explain_death(error)
    if death is not None:
        return f"{death} (traceback in {log})" if log else str(death)
    if is_out_of_memory(error):
        sentence = memory.explain_out_of_memory(context.settings, str(context.runtime.device))
        return f"{sentence} (traceback in {log})" if log else sentence
    # An error of dlrun's own is a sentence for the user already.
    if isinstance(error, DlrunError):
        return message

    explanation = user_code.explain(error) or f"{type(error).__name__}: {message.splitlines()[0]}"
    if log is None:
        return f"{explanation} (-v shows the traceback)"
    return f"{explanation} (traceback in {log}; -v shows it here)"
