"""The user's images, one folder per class, and the random augmentation of those that train."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dlrun.core.errors import DataError, RequestError
from dlrun.core.suggest import build_missing_path_error, suggest_one
from dlrun.data.datasets import partition_by_class
from dlrun.data.files.picture import EXTENSIONS, check_picture, read_picture
from dlrun.data.files.pixels import (
    Constants,
    LabelledImages,
    build_image_spec,
    build_image_splits,
    check_image_size,
    choose_channel_constants,
    normalize_,
)
from dlrun.data.origin import Origin
from dlrun.data.spec import Splits

T = TypeVar("T")

# uint8 images (C, H, W) to images of the same shape.
Augment = Callable[[Tensor], Tensor]

# Images that need less of the machine's memory than this are kept there.
SHARE_OF_MEMORY = 0.25

_FILES_PER_BLOCK = 1024
_IMAGE_ENDINGS = tuple(ending.encode() for ending in sorted(EXTENSIONS))

# Folder names of the parts, in lower case.
_NAMES_OF_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Files:
    """Image files and, in the same order, their classes: targets int64 (N,).

    paths: bytes of the file system. Python objects would take ten times the memory, in each worker anew.
    """

    paths: NDArray[np.bytes_]
    targets: Tensor
    origin: Origin

    def take(self, rows: NDArray[np.int64]) -> "Files":
        """Select files by row number."""
        return Files(self.paths[rows], self.targets[rows], self.origin.take(torch.from_numpy(rows)))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images read from disk one by one: float32 (C, size, size), normalized, and the class.

    targets: int64 (N,), all classes, known without reading an image; augments: whether there is an augmentation.
    dataset[index] is the plain image; dataset[epoch_seed, index] its augmentation in that epoch, the same in any
    order and process. Raises DataError for a file that cannot be decoded.
    """

    def __init__(
        self,
        files: Files,
        image_size: int,
        mean: Constants,
        std: Constants,
        grayscale: bool = False,
        augment: Augment | None = None,
    ) -> None:
        self.paths = files.paths
        self.targets = files.targets
        self.origin = files.origin
        self.image_size = image_size
        self.grayscale = grayscale
        self.augment = augment
        self.augments = augment is not None
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch_seed, row = index if isinstance(index, tuple) else (None, index)
        image = read_picture(_to_path(self.paths[row]), self.image_size, self.grayscale)
        if self.augment is not None and epoch_seed is not None:
            image = apply_seeded(self.augment, image, epoch_seed, row)

        # A transform may have converted to floats already.
        pixels = image.float()
        if image.dtype == torch.uint8:
            pixels.div_(255)
        return normalize_(pixels, self.mean, self.std), int(self.targets[row])


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
) -> Splits:
    """Images in path/<class>/, or divided into path/train/<class>/ and path/test/<class>/ (or val/).

    in_memory=None: yes if they need less than a quarter of the memory and there is no augmentation. In memory
    the parts are `Split`s and mean, std default to those of the training images; else they are `ImageFiles` and
    the default is 0.5. task=binary: two classes, one output. Raises DataError or RequestError, naming the folder,
    file or key.
    """
    check_image_size(image_size)
    if augment and in_memory:
        raise RequestError("data.augment needs images read anew each epoch: leave out data.in_memory=true")

    folder = Path(path).expanduser()
    files, class_names, notes = _find_files(folder, test_fraction, seed)
    folders_of_parts = _find_folders_of_parts(folder)
    unheeded = {"test_fraction": f"the folders in {folder} are the parts"} if folders_of_parts else {}

    nothing_to_learn = ""
    if len(class_names) == 1:
        base = folders_of_parts["train"][0] if folders_of_parts else folder
        nothing_to_learn = f"{base} has only one class folder, '{class_names[0]}', so there is nothing to tell apart"
    if task == "binary" and len(class_names) > 2:
        raise RequestError(f"data.task=binary: {folder} holds {len(class_names)} classes; type data.task=multiclass")

    shape = (1 if grayscale else 3, image_size, image_size)
    # As float32, 4 bytes a value.
    bytes_needed = 4 * sum(len(part.paths) for part in files.values()) * shape[0] * image_size**2
    if in_memory or (in_memory is None and not augment and bytes_needed < SHARE_OF_MEMORY * _memory_bytes()):
        images = {name: _decode(part, image_size, grayscale) for name, part in files.items()}
        origins = {name: part.origin for name, part in files.items()}
        splits = build_image_splits(images, class_names, None, mean, std, notes, origins)
        return _adapt_to_task(replace(splits, unheeded=unheeded), task, nothing_to_learn)

    default = [0.5] * shape[0]
    constants = choose_channel_constants(torch.empty(1, *shape), mean or default, std or default)
    transform = build_augment(augment, shape) if augment else None
    datasets: dict[str, ImageFiles] = {}
    for name, part in files.items():
        # A broken file is better reported now than in the middle of an epoch.
        _map_in_threads(check_picture, part.paths)
        augment_part = transform if name == "train" else None
        datasets[name] = ImageFiles(part, image_size, *constants, grayscale, augment_part)

    spec = build_image_spec(shape, class_names, *constants)
    splits = Splits(datasets["train"], datasets.get("val"), datasets.get("test"), spec, notes, unheeded=unheeded)
    return _adapt_to_task(splits, task, nothing_to_learn)


def _adapt_to_task(splits: Splits, task: Literal["multiclass", "binary"], nothing_to_learn: str) -> Splits:
    splits = replace(splits, nothing_to_learn=nothing_to_learn)
    if task == "multiclass":
        return splits

    # One output: the logit of the second class.
    return replace(splits, spec=replace(splits.spec, task=task, output_size=1))


def _find_files(folder: Path, test_fraction: float, seed: int) -> tuple[dict[str, Files], list[str], tuple[str, ...]]:
    """The files of each part, the class names, and notes."""
    if not folder.is_dir():
        if folder.exists():
            raise DataError(f"data.path={folder} is a file, not a folder")
        raise build_missing_path_error(folder, "data.path")

    folders_of_parts = _find_folders_of_parts(folder)
    for part, folders in folders_of_parts.items():
        if len(folders) > 1:
            names = " and ".join(path.name for path in folders)
            raise DataError(f"{folder} holds {names}, of which one is the {part} part; rename the other")

    # The training part decides which classes there are.
    base = folders_of_parts["train"][0] if folders_of_parts else folder
    class_names = [path.name for path in _list_visible(base) if path.is_dir()]
    if not class_names:
        raise DataError(f"{base} has no class folders: put the images of each class into a folder named after it")
    train = _collect_files(base, class_names)
    notes = _note_ignored(base)

    if folders_of_parts:
        parts = {"train": train}
        for part in ("val", "test"):
            if folders_of_parts[part]:
                parts[part] = _collect_files(folders_of_parts[part][0], class_names)

        unread = []
        for path in _list_visible(folder):
            if path.is_dir() and not any(path in folders for folders in folders_of_parts.values()):
                unread.append(path.name)
        if unread:
            notes = (*notes, f"{', '.join(unread)} in {folder} was not read: the parts are train, val and test.")
        return parts, class_names, notes

    # A single class cannot be trained on, so no test part is drawn.
    if len(class_names) == 1:
        return {"train": train}, class_names, notes
    train_rows, test_rows = partition_by_class(train.targets.numpy(), class_names, test_fraction, seed, str(folder))
    drawn = {"train": train_rows, "test": test_rows}
    parts = {name: train.take(rows) for name, rows in drawn.items() if len(rows)}
    return parts, class_names, notes


def _find_folders_of_parts(folder: Path) -> dict[str, list[Path]]:
    """By part, the folders named after it; empty if the class folders lie in `folder` itself.

    A folder called train that holds folders, and no image itself, is a part, whatever lies beside it.
    """
    folders = [path for path in _list_visible(folder) if path.is_dir()]
    parts: dict[str, list[Path]] = {}
    for part, names in _NAMES_OF_PARTS.items():
        parts[part] = [path for path in folders if path.name.lower() in names]

    if not parts["train"]:
        return {}
    if parts["val"] or parts["test"]:
        return parts

    # A single "train" may be the name of a class.
    inside = [path for train in parts["train"] for path in _list_visible(train)]
    holds_folders = any(path.is_dir() for path in inside)
    holds_images = any(_is_image(os.fsencode(path)) for path in inside)
    return parts if holds_folders and not holds_images else {}


def _collect_files(base: Path, class_names: list[str]) -> Files:
    """All images of a part; each of its class folders must be known and hold an image."""
    paths: list[bytes] = []
    targets: list[int] = []
    for folder in _list_visible(base):
        if not folder.is_dir():
            continue
        if folder.name not in class_names:
            raise DataError(f"{folder} is a class without training images: there are {', '.join(class_names)}")

        images = [path for path in list_files_below(os.fsencode(folder)) if _is_image(path)]
        if not images:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}): add some or remove it")
        paths += images
        targets += [class_names.index(folder.name)] * len(images)

    if not paths:
        raise DataError(f"{base} has no class folders: put the images of each class into a folder named after it")
    # As an array of bytes: see Files.
    names = np.array(paths)
    return Files(names, torch.tensor(targets), Origin.from_files(names))


def _list_visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def list_files_below(folder: bytes) -> Iterator[bytes]:
    """Yield all files at any depth, except hidden ones, in an order that depends on their names only.

    Raises DataError for a folder that cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from error

    for entry in entries:
        # Recursion keeps the folders in order too; os.walk would yield files before folders.
        if entry.is_dir() and not entry.name.startswith(b"."):
            yield from list_files_below(entry.path)
        elif not entry.name.startswith(b"."):
            yield entry.path


def _to_path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_IMAGE_ENDINGS)


def _note_ignored(base: Path) -> tuple[str, ...]:
    count = sum(not _is_image(path) for path in list_files_below(os.fsencode(base)))
    if not count:
        return ()
    return (f"{count} files in {base} are no images by their names and were ignored.",)


def _decode(files: Files, image_size: int, grayscale: bool) -> LabelledImages:
    images = _map_in_threads(lambda path: read_picture(path, image_size, grayscale), files.paths)
    return torch.stack(images).float().div_(255), files.targets


def _map_in_threads(function: Callable[[Path], T], paths: NDArray[np.bytes_]) -> list[T]:
    """Apply a function to each path, in order; in threads, as Pillow decodes without the interpreter lock."""
    results: list[T] = []
    with ThreadPoolExecutor() as pool:
        # A pending task takes a kilobyte, so not all are submitted at once.
        for start in range(0, len(paths), _FILES_PER_BLOCK):
            results += pool.map(function, map(_to_path, paths[start : start + _FILES_PER_BLOCK]))
    return results


def _memory_bytes() -> int:
    """All memory of this machine: unlike the free memory it is the same for a run and its resumption."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_augment(steps: list[Any], shape: tuple[int, int, int]) -> Augment:
    """Build one function of uint8 images (C, H, W) from the steps; it must keep `shape`.

    A step is a name of torchvision.transforms.v2, or {name: {argument: value}}.
    Raises RequestError for an unknown name, unsuitable arguments or another shape.
    """
    from torchvision.transforms import v2

    augment: Augment = v2.Compose([_build_transform(step) for step in steps])
    try:
        # One black image shows wrong arguments before the first epoch.
        result = apply_seeded(augment, torch.zeros(shape, dtype=torch.uint8), 0, 0)
    except Exception as error:
        # Transforms raise anything when their arguments do not suit the images.
        raise _build_augment_error(f"fails on an image of shape {shape}", error) from error

    if tuple(result.shape) != shape:
        raise RequestError(
            f"data.augment turns images of shape {shape} into {tuple(result.shape)}, but test images stay as "
            f"they are: set data.image_size={result.shape[-1]} or let it end with the size {shape[-1]}"
        )
    return augment


def apply_seeded(augment: Augment, image: Tensor, epoch_seed: int, index: int) -> Tensor:
    """Augment an image as a function of (epoch_seed, index) alone; the global generator keeps its state."""
    digest = hashlib.blake2b(f"{epoch_seed},{index}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of all GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        return augment(image)


def _build_transform(step: Any) -> Any:
    from torchvision.transforms import v2

    name = step
    arguments: Any = {}
    if isinstance(step, dict) and len(step) == 1:
        name, arguments = next(iter(step.items()))
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RequestError(
            f"data.augment: {step!r} is neither a name nor name and arguments, "
            "as in [RandomHorizontalFlip, {RandomCrop: {size: 28, padding: 4}}]"
        )

    transforms = []
    for key, value in vars(v2).items():
        if isinstance(value, type) and issubclass(value, v2.Transform):
            transforms.append(key)
    if name not in transforms:
        hint = suggest_one(name, transforms) or " such as RandomHorizontalFlip"
        raise RequestError(f"data.augment: '{name}' is no transform of torchvision.transforms.v2{hint}")

    try:
        return getattr(v2, name)(**(arguments or {}))
    except Exception as error:
        # Constructors raise anything for arguments they do not take.
        raise _build_augment_error(f"{name} does not take {arguments}", error) from error


def _build_augment_error(what: str, error: Exception) -> RequestError:
    return RequestError(f"data.augment: {what} ({' '.join(str(error).split())[:160]})")
