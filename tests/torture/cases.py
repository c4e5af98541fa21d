"""What is tortured: small runs with everything that has a state, drawn from a seed."""

import random
from pathlib import Path

QUIET = ("tracking.graph=false", "device=cpu", "device.num_threads=1")
DIGITS = ("data=digits", "data.limit_batches=12", "trainer.epochs=8")
MODELS = {
    "mlp": (*DIGITS, "data.image_size=8", "model=mlp", "model.hidden_sizes=[256]", "model.dropout=0.3"),
    "cnn": (*DIGITS, "data.image_size=12", "model=cnn", "model.kernel_size=3", "model.channels=[8,16]"),
    "gru": (
        "data=names",
        "data.batch_size=8",
        "model=gru",
        "model.embedding_size=8",
        "model.hidden_size=24",
        "model.dropout=0.2",
        "trainer.epochs=9",
    ),
}
OPTIMIZERS = (("optimizer=adam",), ("optimizer=momentum", "optimizer.lr=0.05"))
SCHEDULES = (
    (),
    ("scheduler=one_cycle", "scheduler.interval=step"),
    ("scheduler=plateau", "scheduler.patience=1"),
    ("scheduler=cosine", "scheduler.warmup_steps=5"),
)
EXTRAS = (
    (),
    ("trainer.accumulate_steps=3",),
    ("trainer.early_stopping.patience=2", "trainer.early_stopping.min_delta=0.05"),
    ("data.loader=workers", "data.num_workers=1", "trainer.epochs=3"),
    ("trainer.grad_clip_norm=0.5", "trainer.accumulate_steps=2"),
)


def draw(number: int, seed: int, longer: bool = False) -> list[str]:
    """The words of run `number`: models, optimizers and extras in turn, the rest at random.

    longer: more epochs, where starting takes seconds: kills are to fall into the training too.
    """
    chance = random.Random(f"{seed} {number}")
    steps = chance.choice([1, 2, 3, 4, 5, None])
    words = [
        *MODELS[list(MODELS)[number % 3]],
        *OPTIMIZERS[number // 3 % 2],
        *chance.choice(SCHEDULES),
        *EXTRAS[number % len(EXTRAS)],
        *QUIET,
        f"seed={chance.randrange(1000)}",
        f"checkpoint.every_steps={'null' if steps is None else steps}",
        f"trainer.log_every_steps={chance.choice([1, 7, 50])}",
        f"figures={'true' if number % 10 == 9 else 'false'}",
    ]
    if number % 4 == 2:
        # By the clock, so that an undisturbed run and a killed one save at other steps.
        words.append(f"checkpoint.every_seconds={chance.choice(['0.001', '0.02', '0.1'])}")
    if longer:
        words.append("trainer.epochs=12" if "data.loader=workers" in words else "trainer.epochs=30")
    last = {word.partition("=")[0]: word for word in words}  # an extra's epochs win over the model's
    return list(last.values())


def write_names(folder: Path) -> None:
    """Names of two made-up countries, as data=names reads them."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for part, rows in (("train", 120), ("test", 20)):
        lines = []
        for i in range(rows):
            letters = "aeioumn" if i % 2 else "bcdrstk"
            name = "".join(chance.choice(letters) for _ in range(chance.randint(2, 7)))
            lines.append(f'"{name.title()}","{"Vowelia" if i % 2 else "Consonia"}"')
        (folder / f"names_{part}.csv").write_text("\n".join(lines) + "\n")
