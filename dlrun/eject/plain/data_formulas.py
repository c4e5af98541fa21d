"""Data that come from a formula, or are typed: the data section for each."""

from typing import Any

from dlrun.eject.plain.source import Constant, Piece, filled, literal
from dlrun.eject.plain.training_run import TrainingRun

_LINE = """\
generator = torch.Generator().manual_seed(DATA_SEED)
x = torch.rand(ROWS, 1, generator=generator, dtype=torch.float64)
y = SLOPE * x + INTERCEPT  #? !noisy
y = SLOPE * x + INTERCEPT + NOISE * torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)  #? noisy
x, y = x.float(), y.float()  #? !double
"""
_REGRESSION = """\
x, y = make_regression(n_samples=ROWS, n_features=FEATURES, noise=NOISE, bias=BIAS, random_state=DATA_SEED)
x = torch.tensor(x, dtype=$dtype)
y = torch.tensor(y, dtype=$dtype).unsqueeze(1)
"""
_PARABOLA = """\
x = torch.linspace(-1, 1, ROWS, dtype=torch.float64).unsqueeze(1)
noise = torch.$draw(ROWS, 1, generator=torch.Generator().manual_seed(DATA_SEED), dtype=torch.float64)
y = x**2 + NOISE * noise
x, y = x.float(), y.float()  #? !double
"""
_BLOBS = """\
generator = torch.Generator().manual_seed(DATA_SEED)
x = SPREAD * torch.randn(2 * ROWS_PER_CLASS, 2, generator=generator, dtype=torch.float64)
x[:ROWS_PER_CLASS] += 2  # class 0 lies around (2, 2)
x[ROWS_PER_CLASS:] -= 2  # class 1 around (-2, -2)
x = x.float()  #? !double
y = torch.arange(2).repeat_interleave(ROWS_PER_CLASS)$column
"""
_FLOWER = """\
generator = torch.Generator().manual_seed(DATA_SEED)
y = (torch.arange(ROWS) >= ROWS // 2).long()$column
angle = 2 * math.pi * torch.arange(ROWS, dtype=torch.float64) / ROWS
angle += NOISE * torch.randn(ROWS, generator=generator, dtype=torch.float64)
reach = RADIUS * (PETALS * angle).sin() + NOISE * torch.randn(ROWS, generator=generator, dtype=torch.float64)
x = torch.stack([reach * angle.cos(), reach * angle.sin()], 1)$cast
"""
_WORDS = """\
letters = sorted({*SOURCE, *TARGET})
codes = torch.tensor([[letters.index(letter) + 1 for letter in SOURCE]])  # 0 would be padding
lengths = torch.tensor([len(SOURCE)])
y = torch.tensor([[letters.index(letter) for letter in TARGET]])
"""


def column(run: TrainingRun) -> str:
    """What makes targets of class numbers: for two classes and one output a column of 0.0 and 1.0."""
    if run.spec.task != "binary":
        return ""
    return ".double().unsqueeze(1)" if run.double else ".float().unsqueeze(1)"


def line(run: TrainingRun, rows: int, slope: float, intercept: float, noise: float, seed: int) -> Piece:
    """See data/synthetic.py."""
    constants = {"ROWS": rows, "SLOPE": slope, "INTERCEPT": intercept, "NOISE": noise}
    return _piece(filled(_LINE, {"noisy": noise != 0, "double": run.double}), constants)


def regression(run: TrainingRun, rows: int, features: int, noise: float, bias: float, seed: int) -> Piece:
    """See data/synthetic.py."""
    constants = {"ROWS": rows, "FEATURES": features, "NOISE": noise, "BIAS": bias}
    return _piece(filled(_REGRESSION, dtype=run.dtype), constants)


def parabola(run: TrainingRun, rows: int, noise: str, noise_scale: float | None, seed: int) -> Piece:
    """See data/synthetic.py."""
    draw, scale = ("rand", 0.2) if noise == "uniform" else ("randn", 0.1)
    scale = scale if noise_scale is None else noise_scale
    return _piece(filled(_PARABOLA, {"double": run.double}, draw=draw), {"ROWS": rows, "NOISE": scale})


def blobs(run: TrainingRun, rows_per_class: int, spread: float, task: str, seed: int) -> Piece:
    """See data/synthetic.py."""
    constants = {"ROWS_PER_CLASS": rows_per_class, "SPREAD": spread}
    return _piece(filled(_BLOBS, {"double": run.double}, column=column(run)), constants)


def flower(run: TrainingRun, rows: int, petals: int, radius: float, noise: float, task: str, seed: int) -> Piece:
    """See data/shapes.py."""
    constants = {"ROWS": rows, "PETALS": petals, "RADIUS": radius, "NOISE": noise}
    cast = "" if run.double else ".float()"
    return _piece(filled(_FLOWER, column=column(run), cast=cast), constants)


def points(
    run: TrainingRun,
    x: list[Any],
    y: list[Any],
    task: str,
    class_names: list[str] | None,
    feature_names: list[str] | None,
) -> Piece:
    """See data/shapes.py."""
    inputs = [[float(value) for value in (row if isinstance(row, list) else [row])] for row in x]
    flat = [row[0] if isinstance(row, list) else row for row in y]
    targets: list[Any] = [[float(value) for value in (row if isinstance(row, list) else [row])] for row in y]
    floats = "" if run.spec.task == "multiclass" else f", dtype={run.dtype}"
    if run.spec.task == "multiclass":
        targets = [int(value) for value in flat]
    short = max(len(literal(rows)) for rows in (inputs, targets)) < 80
    first, second = (literal(inputs), literal(targets)) if short else ("X", "Y")
    code = f"x = torch.tensor({first}, dtype={run.dtype})\ny = torch.tensor({second}{floats})\n"
    return _piece(code, {"X": inputs, "Y": targets})


def words(run: TrainingRun, source: str, target: str) -> Piece:
    """See data/words.py."""
    return _piece(_WORDS, {"SOURCE": source, "TARGET": target})


def _piece(code: str, constants: dict[str, Any]) -> Piece:
    return Piece(code, {name: Constant(value) for name, value in constants.items()})
