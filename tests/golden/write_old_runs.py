"""Write the run folders that tests/test_old_runs.py opens: python write_old_runs.py FOLDER, with the dlrun to pin.

Each run is trained twice: to its end, and to its second epoch, where its process ends without a word as `kill -9` ends
it. The sweep ends so in its third job. FOLDER becomes the working directory; all paths in the runs are relative to it.
"""

import os
import random
import sys
from pathlib import Path
from typing import Any
from unittest import mock

COMMON = (
    "device=cpu",
    "device.num_threads=1",
    "device.precision=fp64",
    "tracking.graph=false",
    "figures=false",
    "trainer.epochs=4",
    "checkpoint.keep=1",
)
RUNS: dict[str, tuple[str, ...]] = {
    "mlp": (
        "data=blobs",
        "model=mlp",
        "model.hidden_sizes=[6]",
        "model.dropout=0.2",
        "optimizer=momentum",
        "trust=true",
    ),
    "cosine": ("data=blobs", "model=mlp", "model.hidden_sizes=[4]", "optimizer=sgd", "scheduler=cosine"),
    "gru": (
        *("data=names", "paths.data=data", "model=gru", "model.embedding_size=4", "model.hidden_size=4"),
        *("data.batch_size=16", "trainer.accumulate_steps=2", "trainer.grad_clip_norm=0.5"),
    ),
    "scratch": ("data=blobs", "model=scratch_mlp", "task.loss=scratch_cross_entropy", "optimizer=sgd"),
    "exhaustive": (
        *("data=three_points", "model=linear", "model.bias=false", "optimizer=exhaustive", "optimizer.refine=4"),
        "data.batch_size=3",
    ),
    "average": ("data=blobs", "model=mlp", "model.hidden_sizes=[4]", "trainer.ema_decay=0.9", "scheduler=plateau"),
    "full": ("data=digits", "data.limit_batches=4", "model=linear", "checkpoint.format=full"),
    "table": (
        *("data=csv", "data.path=data/rows.csv", "data.target=color", "model=mlp", "model.hidden_sizes=[4]"),
        "checkpoint.monitor=val/accuracy",
    ),
}
SWEEP = (
    "-m",
    "data=blobs",
    "model=mlp",
    "model.hidden_sizes=[4]",
    "optimizer.lr=0.01,0.02,0.03,0.04",
    "sweep.dir=sweep",
)


def write_data(folder: Path) -> None:
    """Names of two made-up countries, and a table of two kinds of rectangles."""
    folder.mkdir()
    draw = random.Random(0)
    for part, rows in (("train", 120), ("test", 20)):
        lines = []
        for i in range(rows):
            letters = "aeioumn" if i % 2 else "bcdrstk"
            name = "".join(draw.choice(letters) for _ in range(draw.randint(2, 7)))
            lines.append(f'"{name.title()}","{"Vowelia" if i % 2 else "Consonia"}"')
        (folder / f"names_{part}.csv").write_text("\n".join(lines) + "\n")

    table = ["width,height,color"]
    for _ in range(80):
        width = draw.random()
        color = "red" if width > 0.5 else "blue"
        table.append(f"{width:.4f},{draw.random():.4f},{color}")
    (folder / "rows.csv").write_text("\n".join(table) + "\n")


def train(words: tuple[str, ...], killed_after_epochs: int | None = None) -> None:
    """Run one command line in a process of its own; it may be killed when so many epochs of it are saved."""
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        return

    from dlrun.cli.main import main
    from dlrun.runs.checkpoint_manager import CheckpointManager

    on_epoch_end = CheckpointManager.on_epoch_end
    epochs = 0

    def save_and_die(saver: CheckpointManager, *arguments: Any) -> None:
        nonlocal epochs
        on_epoch_end(saver, *arguments)
        # Versions before the thread that writes have nothing to wait for.
        getattr(saver, "wait", lambda: None)()
        epochs += 1
        if epochs == killed_after_epochs:
            os._exit(137)

    sys.argv = ["dlrun", *words]
    with mock.patch.object(CheckpointManager, "on_epoch_end", save_and_die):
        code = main()
    os._exit(code)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir()
    os.chdir(target)
    write_data(Path("data"))
    for name, words in RUNS.items():
        train((*words, *COMMON, f"hydra.run.dir=whole/{name}"))
        train((*words, *COMMON, f"hydra.run.dir=killed/{name}"), killed_after_epochs=2)
    train((*SWEEP, *COMMON), killed_after_epochs=10)
