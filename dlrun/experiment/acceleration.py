"""Faster steps for a run whose settings ask for them: CPU threads, a CUDA graph, torch.compile."""

from collections.abc import Callable

from dlrun.core.errors import RequestError
from dlrun.engine import device
from dlrun.engine.acceleration import compile, threads
from dlrun.experiment.context import RunContext
from dlrun.experiment.preflight import memory


def accelerate(context: RunContext, note: Callable[[str], None]) -> None:
    """Choose the CPU threads, record the CUDA graph and compile the model, where the settings ask for it.

    note: called with the reason if recording a step fails later, in the training.
    """
    keys = context.settings.device
    if keys.num_threads == "auto":
        context.notes.append(threads.choose_fastest(context.state, device.count_cores()))

    if context.runtime.device.type == "cuda" and keys.cuda_graph != "off":
        from dlrun.engine.acceleration import cuda_graph

        kind = context.splits.spec.kind
        reason = cuda_graph.attach_graph(context.state, kind, keys.compile, context.settings.trainer.profile, note)
        if reason is not None:
            context.notes.append(f"no CUDA graph: {reason}")

    if context.runtime.compile:
        compile_model(context)


def compile_model(context: RunContext) -> None:
    """Compile the model before the clock starts; RequestError if that fails or memory runs out."""
    try:
        compile.compile_model(context.state, context.batches.test)
    except Exception as error:
        # The engine has explained all other errors; what to type against this one depends on the settings.
        if not device.is_out_of_memory(error):
            raise
        raise RequestError(memory.explain_out_of_memory(context.settings, str(context.runtime.device))) from error

    context.notes.append(f"device.compile: the model was compiled in {context.state.compile_seconds:.1f} s")
