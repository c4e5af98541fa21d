"""TensorBoard's event files, read back without torch."""

import logging
from pathlib import Path
from typing import Any


def scalars(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """A run's scalars but for timings: (step, value) by tag, the value as text, where NaN equals NaN."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of what a killed run is resumed over
    events: Any = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(event.step, repr(event.value)) for event in events.Scalars(tag)] for tag in tags}
