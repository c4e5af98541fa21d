"""Notes the state of users' callbacks that a resumed run would not get back."""

from collections.abc import Callable, Mapping

from dlrun.engine.callback import Callback, TrainerView, list_unsaved


class UnsavedAttributes(Callback):
    """Notes the attributes of users' callbacks that no checkpoint holds, after the first epoch that has them."""

    def __init__(self, callbacks: Mapping[str, Callback], note: Callable[[str], None]) -> None:
        """callbacks: of the user's own, by name; note: shows and records a sentence."""
        self.callbacks = callbacks
        self.note = note

    def on_epoch_end(self, trainer: TrainerView, row: dict[str, float]) -> None:
        """Note the attributes that have not been noted before, by this process or an earlier one."""
        for name, callback in self.callbacks.items():
            troubles = trainer.state.progress.troubles
            kind = f"callbacks.{name}"
            attributes = list_unsaved(callback)
            if not attributes or kind in troubles:
                continue

            troubles[kind] = (
                f"{kind}: {', '.join(attributes)} cannot be part of a checkpoint, so a resumed run begins without; "
                "begin a name with _ where that is right, or give the callback state_dict and load_state_dict"
            )
            self.note(troubles[kind])
