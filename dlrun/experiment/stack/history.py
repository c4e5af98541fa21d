"""The records of a run in memory, from which its folder is written when it has left its stack."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dlrun.engine import plain
from dlrun.engine.callback import Callback, TrainerView
from dlrun.engine.stack.member import Member
from dlrun.engine.stack.snapshot import Part
from dlrun.runs.checkpoint import hash_member, hash_weights


class History(Callback):
    """Rows, log points, hashes of the weights and the best weights of one run of a stack."""

    def __init__(self, model: nn.Module) -> None:
        """model: before its first step."""
        self.rows: list[dict[str, float]] = []
        # epoch_seconds and samples_per_second of each epoch.
        self.timings: list[dict[str, float]] = []
        # Whether each epoch was the best so far.
        self.are_best: list[bool] = []
        # Step and values of each log point.
        self.log_points: list[tuple[int, dict[str, float]]] = []
        # Lines of fingerprints.jsonl.
        self.fingerprints: list[dict[str, Any]] = [{"epoch": 0, "step": 0, "weights_sha256": hash_weights(model)}]
        self._model = model
        # Epoch, step, metrics and, unless they are in the row, weights of the best epoch.
        self._best: dict[str, Any] | None = None
        # Weights of the best epoch as one tensor (D,).
        self._best_row: Tensor | None = None
        self._parts: Sequence[Part] = ()

    @property
    def best(self) -> dict[str, Any] | None:
        """Weights, epoch, step and metrics of the best epoch, as best.pt holds them."""
        if self._best is None or self._best_row is None:
            return self._best

        # Built on demand, as in most trainings nearly every epoch is the best so far.
        state = self._model.state_dict()
        for key, _, shape, begin, end in self._parts:
            state[key] = self._best_row[begin:end].view(shape).clone()
        return {"model": state} | self._best

    def on_log(self, trainer: TrainerView, values: dict[str, float]) -> None:
        """Record the values of a step."""
        self.log_points.append((trainer.step, values))

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Record the row, the hash of the weights, and a copy of them if they are the best."""
        self.rows.append(dict(row))
        self.timings.append(dict(trainer.timings))
        self.are_best.append(trainer.is_best)
        epoch = int(row["epoch"])
        step = int(row["step"])
        weights = trainer.weights if isinstance(trainer, Member) else None
        digest = hash_weights(trainer.model) if weights is None else hash_member(weights)
        self.fingerprints.append({"epoch": epoch, "step": step, "weights_sha256": digest})
        if not trainer.is_best:
            return

        self._best = {"epoch": row["epoch"], "step": row["step"], "metrics": dict(row)}
        if weights is None:
            self._best_row = None
            self._best = plain.take_copy(trainer.state.get_weights()) | self._best
        else:
            # A copy: a view would keep the weights of all members in memory.
            self._best_row = weights.row.clone()
            self._parts = weights.parts

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values and tensors."""
        return {
            "rows": self.rows,
            "timings": self.timings,
            "are_best": self.are_best,
            "log_points": [list(point) for point in self.log_points],
            "fingerprints": self.fingerprints,
            "best": self.best,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.rows = list(state["rows"])
        self.timings = list(state["timings"])
        self.are_best = list(state["are_best"])
        self.log_points = [(int(step), values) for step, values in state["log_points"]]
        self.fingerprints = list(state["fingerprints"])
        self._best = state["best"]
        self._best_row = None
