"""The data section."""

from collections.abc import Callable

from dlrun.eject.plain import data_files, data_formulas, data_images, data_rows
from dlrun.eject.plain.refusal import only_known
from dlrun.eject.plain.source import Piece
from dlrun.eject.plain.training_run import TrainingRun

_FORMULAS: dict[str, Callable[..., Piece]] = {
    "dlrun.data.synthetic.line": data_formulas.line,
    "dlrun.data.synthetic.regression": data_formulas.regression,
    "dlrun.data.synthetic.parabola": data_formulas.parabola,
    "dlrun.data.synthetic.blobs": data_formulas.blobs,
    "dlrun.data.shapes.points": data_formulas.points,
    "dlrun.data.shapes.flower": data_formulas.flower,
    "dlrun.data.words.words": data_formulas.words,
}
_FILES: dict[str, Callable[..., Piece]] = {
    "dlrun.data.tabular.diabetes": data_files.diabetes,
    "dlrun.data.tabular.csv": data_files.csv,
    "dlrun.data.names.names": data_files.names,
    "dlrun.data.images.digits": data_images.digits,
    "dlrun.data.images.mnist": data_images.mnist,
    "dlrun.data.images.fashion_mnist": data_images.fashion_mnist,
    "dlrun.data.images.kmnist": data_images.kmnist,
    "dlrun.data.images.cifar10": data_images.cifar10,
    "dlrun.data.images.cifar100": data_images.cifar100,
}


def data(run: TrainingRun) -> Piece:
    """Source that defines what trains, validates and tests; RequestError for data that it cannot express."""
    write = only_known(run.data, {**_FORMULAS, **_FILES})
    made = write(run, **run.data.arguments)
    return data_rows.parted(run, made) if run.data.target in _FORMULAS else made
