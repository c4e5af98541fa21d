"""The user's images, one folder per class, and the random augmentation of those that train."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dlrun.data.class_folders import LabelColumns, find_files, find_labelled_files, list_tables
from dlrun.data.class_numbers import Answers, refuse_many_classes
from dlrun.data.pictures import PictureOptions, build_picture_splits, measure_pixel_range
from dlrun.data.spec import Splits


def image_folder(
    path: str,
    image_size: int = 64,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    grayscale: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    augment: list[Any] | None = None,
    in_memory: bool | None = None,
    task: Literal["multiclass", "binary"] = "multiclass",
    labels: str | None = None,
    file_column: str | None = None,
    label_column: str | None = None,
    background: str = "white",
    pixel_range: Sequence[float] | None = (),
    normalization: Literal["auto", "images"] = "images",
) -> Splits:
    """Images in path/<class>/, or divided into path/train/<class>/ and path/test/<class>/ (or val/).

    labels: a table in `path` of files and their labels in place of class folders; file_column, label_column: names of
    its columns, the first and the second by default.

    background: colour behind transparent images. pixel_range: the grey values that become 0 and 1 in images of more
    than 8 bits; None: the lowest and highest of the training images; (): 16 bits are scaled to 8, as older runs do.

    normalization: auto lets a net with trained weights choose mean and std, see experiment/builder/normalization.py.

    augment: transforms of torchvision.transforms.v2 by name, or {name: {argument: value}}, for training images; MixUp
    and CutMix for training batches.

    in_memory=None: yes if they need less than a quarter of the memory and there is no augmentation of images. In
    memory the parts are `Split`s, with augmentation `Pictures`, and mean, std default to those of the training
    images; else they are `Pictures` and the default is 0.5. task=binary: two classes, one output. Raises DataError
    or RequestError, naming the folder, file or key.
    """
    pixels = tuple(pixel_range or ())
    options = PictureOptions(image_size, mean, std, grayscale, augment, in_memory, background, pixels, task)
    options.check()
    folder = Path(path).expanduser()
    if labels is None:
        catalogue = find_files(folder, test_fraction, seed)
    else:
        catalogue = find_labelled_files(folder, LabelColumns(labels, file_column, label_column), test_fraction, seed)
    files = catalogue.parts
    class_names = catalogue.class_names
    notes = catalogue.notes

    unheeded = {"test_fraction": f"the folders in {folder} are the parts"} if catalogue.has_own_parts else {}
    if labels is None:
        unheeded |= dict.fromkeys(("file_column", "label_column"), "it is for data.labels=<table>")

    nothing_to_learn = ""
    if len(class_names) == 1:
        what = "class folder" if labels is None else "label"
        nothing_to_learn = (
            f"{catalogue.source} has only one {what}, '{class_names[0]}', so there is nothing to tell apart"
        )
        only = catalogue.source / class_names[0]
        if labels is None and any(path.is_dir() for path in only.iterdir()):
            nothing_to_learn += f"; it holds folders itself, so perhaps type data.path={only}"
        elif labels is None and (tables := list_tables(folder)):
            nothing_to_learn += f"; if {tables[0]} names the files and their classes, type data.labels={tables[0]}"
    # One class is no mistake here: such data can still be evaluated.
    refuse_many_classes(task, class_names, str(folder))

    if pixel_range is None:
        pixels, note = measure_pixel_range(files["train"])
        options = replace(options, pixel_range=pixels)
        notes += note
    targets = {part: pictures.targets for part, pictures in files.items()}
    answers = Answers(targets, task, class_names, nothing_to_learn=nothing_to_learn)
    return build_picture_splits(files, answers, options, notes, unheeded)
