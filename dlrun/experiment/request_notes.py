"""Notes on a request: its own, on settings without effect, and on the batch size of several processes."""

from dlrun.config import unheeded
from dlrun.config.request import Request
from dlrun.experiment import ignored
from dlrun.experiment.context import RunContext
from dlrun.runs.record import RunRecord


def add_notes(context: RunContext, request: Request) -> None:
    """Add the notes on a request to those of its run."""
    settings = context.settings
    runtime = context.runtime
    context.notes.extend(request.notes)
    if request.continues and request.folder is not None and request.sweep is None:
        # A resumed run repeats what the uninterrupted one notes on its command line.
        context.notes.extend(unheeded.find_repeated(RunRecord(request.folder).overrides))

    words = read_typed_words(request)
    keys_in_files = _read_keys_in_files(request)
    context.notes.extend(ignored.find_ignored_keys(context, request, words, keys_in_files))
    if settings.device.tf32 is not None and runtime.device.type != "cuda":
        context.notes.append(f"device.tf32 is for cuda, and changes nothing on {runtime.device}")

    batches_per_step = runtime.batches_per_step
    world_size = runtime.ranks.world_size
    if batches_per_step > 1 or world_size > 1:
        rows = settings.data.keys.batch_size
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        context.notes.append(f"{processes}: a batch is of {batches_per_step} × {rows} = {batches_per_step * rows} rows")


def read_typed_words(request: Request) -> list[str]:
    """The overrides of a run; a resumed run has those of its start too, so that it notes the same."""
    if not request.continues or request.folder is None:
        return request.overrides
    return [*RunRecord(request.folder).overrides, *request.overrides]


def _read_keys_in_files(request: Request) -> dict[str, str]:
    """Keys set by the user's own config files, with the file; of a resumed run those of its start."""
    if not request.continues or request.folder is None:
        return request.keys_in_files
    return dict(RunRecord(request.folder).environment.get("keys_in_files", {}))
