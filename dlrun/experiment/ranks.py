"""How the processes of a run train together, and what `device.strategy=fsdp2` cannot train."""

from typing import Any

from torch import nn

from dlrun.config.request import Request
from dlrun.config.settings import Settings
from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.engine import evaluation
from dlrun.engine.device import is_out_of_memory, preserve_rng_state
from dlrun.engine.object_state import duplicate
from dlrun.engine.preserve import preserve_state
from dlrun.engine.state import TrainState
from dlrun.engine.trainer import requires_closure
from dlrun.experiment.builder import build
from dlrun.experiment.context import RunContext


def is_sharded(settings: Settings, world_size: int) -> bool:
    """Whether a run splits its model over the processes."""
    return world_size > 1 and settings.device.strategy == "fsdp2"


def refuse_unshardable(settings: Settings, state: TrainState) -> None:
    """RequestError for settings that need the full model on each process."""
    loss = state.objective.loss_module
    reason = ""
    if settings.device.compile:
        reason = "device.compile=true compiles a whole net"
    elif requires_closure(state.optimizer):
        reason = f"optimizer={settings.optimizer.choice} evaluates the loss itself"
    elif loss is not None and any(parameter.requires_grad for parameter in loss.parameters()):
        reason = f"task.loss={state.objective.loss_name} has parameters of its own"
    elif not any(parameter.requires_grad for parameter in state.model.parameters()):
        reason = "the model has nothing to train"
    if reason:
        raise RequestError(
            f"device.strategy=fsdp2 splits the net over the processes, and {reason}; type device.strategy=ddp"
        )


def _choose_blocks(context: RunContext, trusted_modules: list[str] | None) -> bool:
    """Whether to gather the blocks of the model one by one: if a trial step of a copy succeeds that way.

    A net that reads the weights of its blocks outside of their forward passes, as for a loss of its own, is gathered at
    once. RequestError if the trial fails in that way too. All processes must call this at the same time.
    """
    if not context.settings.preflight:
        return True
    try:
        _try_step(context, trusted_modules, has_blocks=True)
    except RequestError:
        raise
    except Exception:
        # The user's own code may raise anything; the second trial tells whether it is the blocks.
        pass
    else:
        return True

    try:
        _try_step(context, trusted_modules, has_blocks=False)
    except RequestError:
        raise
    except Exception as error:
        # The user's own code again.
        if is_out_of_memory(error):
            raise
        reason = user_code.explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RequestError(
            f"device.strategy=fsdp2 does not work for this model and optimizer: {reason}; type device.strategy=ddp"
        ) from error
    return False


def _try_step(context: RunContext, trusted_modules: list[str] | None, has_blocks: bool) -> None:
    """Make one step with a copy of the model and a new optimizer, on two rows; the run's own stay as they are."""
    state = context.state
    loss = state.objective.loss_module
    with preserve_rng_state(), preserve_state(nn.Module() if loss is None else loss):
        model = duplicate(state.model)
        optimizer = build.build_optimizer(context.settings, model, trusted_modules, loss)
        sharded = state.ranks.shard_model(model, has_blocks)
        sharded.adopt(optimizer)
        # In training mode: the unsplit model evaluates.
        sharded.training.train()
        inputs, targets = evaluation.take_small_batch(state.train)

        with state.autocast():
            outputs = sharded.training(*inputs)
            value = state.objective.compute_loss(outputs, targets)
            if state.compute_auxiliary_loss is not None:
                model_in_training: Any = sharded.training
                auxiliary_loss = model_in_training.auxiliary_loss()
                sharded.refuse_shards(auxiliary_loss)
                value = value + auxiliary_loss
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.get_total_norm([shard.grad for shard in sharded.weights.shards if shard.grad is not None])
        optimizer.step()


def join_ranks(request: Request, context: RunContext) -> None:
    """Train together with the other processes from here on, as device.strategy says. A collective call."""
    state = context.state
    keys = context.settings.device
    ranks = context.runtime.ranks
    state.join(ranks, keys.timeout_seconds)
    if is_sharded(context.settings, ranks.world_size):
        state.shard_model(_choose_blocks(context, request.trusted_modules))
    else:
        state.wrap_model()
