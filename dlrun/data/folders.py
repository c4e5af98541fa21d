"""Images of the user's, in a folder a class."""

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
from dlrun.core.suggest import did_you_mean, missing
from dlrun.data.datasets import partition_by_class
from dlrun.data.files.picture import EXTENSIONS, check_picture, read_picture
from dlrun.data.files.pixels import (
    Constants,
    Part,
    build_image_spec,
    build_image_splits,
    check_image_size,
    choose_channel_constants,
    normalize_,
)
from dlrun.data.origin import Origin
from dlrun.data.spec import Splits

T = TypeVar("T")
Augment = Callable[[Tensor], Tensor]
_AT_ONCE = 1024  # files
_ENDINGS = tuple(ending.encode() for ending in sorted(EXTENSIONS))
_NAMES_OF_PARTS = {  # in small letters
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
SHARE_OF_MEMORY = 0.25  # images that need less of the machine's memory than this are kept there


@dataclass(frozen=True)
class Files:
    """Image files and, in the same order, their classes: targets int64 (N,).

    paths: as the file system has them. Objects of Python's would take ten times as much, in each worker anew.
    """

    paths: NDArray[np.bytes_]
    targets: Tensor
    origin: Origin

    def take(self, rows: NDArray[np.int64]) -> "Files":
        """Some of them."""
        return Files(self.paths[rows], self.targets[rows], self.origin.take(torch.from_numpy(rows)))


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Images read from disk one by one: float32 (C, size, size), normalized, and the class.

    targets: int64 (N,), all classes without reading an image; augments: whether there is an augmentation.
    dataset[index] is the image as it is; dataset[epoch_seed, index] its augmentation in that epoch, the same
    in whatever order and process it is asked for. Raises DataError for a file that cannot be decoded.
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
        self.paths, self.targets, self.origin = files.paths, files.targets, files.origin
        self.image_size, self.grayscale, self.augment = image_size, grayscale, augment
        self.mean, self.std = mean, std
        self.augments = augment is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, int]:
        epoch_seed, row = index if isinstance(index, tuple) else (None, index)
        image = read_picture(_path(self.paths[row]), self.image_size, self.grayscale)
        if self.augment is not None and epoch_seed is not None:
            image = apply_seeded(self.augment, image, epoch_seed, row)
        scaled = image.float().div_(255) if image.dtype == torch.uint8 else image.float()
        return normalize_(scaled, self.mean, self.std), int(self.targets[row])


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
    """Images in path/<class>/, or already parted in path/train/<class>/ and path/test/<class>/ (or val/).

    in_memory=None: yes if they need less than a quarter of the memory and nothing is to be augmented. In
    memory the parts are `Split`s and mean, std default to those of the training images; else they are
    `ImageFiles` and the default is 0.5. task=binary: two classes, one output. Raises DataError or
    RequestError, naming the folder, file or key.
    """
    check_image_size(image_size)
    if augment and in_memory:
        raise RequestError("data.augment needs images read anew each epoch: leave out data.in_memory=true")
    folder = Path(path).expanduser()
    files, class_names, notes = _find(folder, test_fraction, seed)
    parted = _folders_of_parts(folder)
    unheeded = {"test_fraction": f"the folders in {folder} are the parts"} if parted else {}
    nothing_to_learn = ""
    if len(class_names) == 1:
        base = parted["train"][0] if parted else folder
        nothing_to_learn = f"{base} has only one class folder, '{class_names[0]}', so there is nothing to tell apart"
    if task == "binary" and len(class_names) > 2:
        raise RequestError(f"data.task=binary: {folder} holds {len(class_names)} classes; type data.task=multiclass")
    shape = (1 if grayscale else 3, image_size, image_size)
    needed = 4 * sum(len(part.paths) for part in files.values()) * shape[0] * image_size**2
    if in_memory or (in_memory is None and not augment and needed < SHARE_OF_MEMORY * _memory_bytes()):
        parts = {name: _decode(part, image_size, grayscale) for name, part in files.items()}
        origins = {name: part.origin for name, part in files.items()}
        splits = build_image_splits(parts, class_names, None, mean, std, notes, origins)
        return _for_task(replace(splits, unheeded=unheeded), task, nothing_to_learn)
    half = [0.5] * shape[0]
    constants = choose_channel_constants(torch.empty(1, *shape), mean or half, std or half)
    transform = build_augment(augment, shape) if augment else None
    streamed: dict[str, ImageFiles] = {}
    for name, part in files.items():
        _each(check_picture, part.paths)
        changed = transform if name == "train" else None
        streamed[name] = ImageFiles(part, image_size, *constants, grayscale, changed)
    spec = build_image_spec(shape, class_names, *constants)
    splits = Splits(streamed["train"], streamed.get("val"), streamed.get("test"), spec, notes, unheeded=unheeded)
    return _for_task(splits, task, nothing_to_learn)


def _for_task(splits: Splits, task: Literal["multiclass", "binary"], nothing_to_learn: str) -> Splits:
    """Two classes as one output: the probability of the second."""
    splits = replace(splits, nothing_to_learn=nothing_to_learn)
    if task == "multiclass":
        return splits
    return replace(splits, spec=replace(splits.spec, task=task, output_size=1))


def _find(folder: Path, test_fraction: float, seed: int) -> tuple[dict[str, Files], list[str], tuple[str, ...]]:
    """The files of each part, the class names, and notes."""
    if not folder.is_dir():
        raise (
            DataError(f"data.path={folder} is a file, not a folder")
            if folder.exists()
            else missing(folder, "data.path")
        )
    parted = _folders_of_parts(folder)
    for part, folders in parted.items():
        if len(folders) > 1:
            listed = " and ".join(path.name for path in folders)
            raise DataError(f"{folder} holds {listed}, of which one is the {part} part; rename the other")
    base = parted["train"][0] if parted else folder
    class_names = [p.name for p in _visible(base) if p.is_dir()]
    if not class_names:
        raise DataError(f"{base} has no class folders: put the images of each class into a folder named after it")
    train = _files(base, class_names)
    notes = _ignored(base)
    if parted:
        parts = {"train": train}
        for part in ("val", "test"):
            if parted[part]:
                parts[part] = _files(parted[part][0], class_names)
        known = [path for folders in parted.values() for path in folders]
        unread = [path.name for path in _visible(folder) if path.is_dir() and path not in known]
        if unread:
            notes = (*notes, f"{', '.join(unread)} in {folder} was not read: the parts are train, val and test.")
        return parts, class_names, notes
    if len(class_names) == 1:
        return {"train": train}, class_names, notes
    rows = partition_by_class(train.targets.numpy(), class_names, test_fraction, seed, str(folder))
    parts = {name: train.take(part) for name, part in zip(("train", "test"), rows, strict=True) if len(part)}
    return parts, class_names, notes


def _folders_of_parts(folder: Path) -> dict[str, list[Path]]:
    """By part, the folders named after it; empty where the classes lie in `folder` itself.

    A folder called train that holds folders, and no image itself, is a part, whatever lies beside it.
    """
    folders = [path for path in _visible(folder) if path.is_dir()]
    parts = {part: [p for p in folders if p.name.lower() in names] for part, names in _NAMES_OF_PARTS.items()}
    if not parts["train"]:
        return {}
    if parts["val"] or parts["test"]:
        return parts

    inside = [path for train in parts["train"] for path in _visible(train)]
    holds_folders = any(path.is_dir() for path in inside)
    holds_images = any(_is_image(os.fsencode(path)) for path in inside)
    return parts if holds_folders and not holds_images else {}


def _files(base: Path, class_names: list[str]) -> Files:
    """All images of a part; every class folder of it must be known and hold one."""
    paths: list[bytes] = []
    targets: list[int] = []
    for folder in _visible(base):
        if not folder.is_dir():
            continue
        if folder.name not in class_names:
            raise DataError(f"{folder} is a class without training images: there are {', '.join(class_names)}")
        found = [path for path in files_below(os.fsencode(folder)) if _is_image(path)]
        if not found:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}): add some or remove it")
        paths += found
        targets += [class_names.index(folder.name)] * len(found)
    if not paths:
        raise DataError(f"{base} has no class folders: put the images of each class into a folder named after it")
    names = np.array(paths)
    return Files(names, torch.tensor(targets), Origin.from_files(names))


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def files_below(folder: bytes) -> Iterator[bytes]:
    """All files at any depth, hidden ones left out, in an order that depends on their names only.

    DataError for a folder that cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{os.fsdecode(folder)} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(b"."):
            yield from files_below(entry.path)
        elif not entry.name.startswith(b"."):
            yield entry.path


def _path(name: bytes) -> Path:
    return Path(os.fsdecode(name))


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(_ENDINGS)


def _ignored(base: Path) -> tuple[str, ...]:
    count = sum(not _is_image(path) for path in files_below(os.fsencode(base)))
    return (f"{count} files in {base} are no images by their names and were ignored.",) if count else ()


def _decode(files: Files, image_size: int, grayscale: bool) -> Part:
    images = _each(lambda path: read_picture(path, image_size, grayscale), files.paths)
    return torch.stack(images).float().div_(255), files.targets


def _each(function: Callable[[Path], T], paths: NDArray[np.bytes_]) -> list[T]:
    """The function of each path, in order; in threads, as Pillow decodes outside the interpreter lock.

    Some at a time: a task that waits takes a kilobyte.
    """
    found: list[T] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _AT_ONCE):
            found += pool.map(function, map(_path, paths[start : start + _AT_ONCE]))
    return found


def _memory_bytes() -> int:
    """All memory of this machine: unlike what is free right now, the same for a run and its resumption."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def build_augment(steps: list[Any], shape: tuple[int, int, int]) -> Augment:
    """The steps as one function on uint8 images of that shape (C, H, W), which it must keep.

    A step is a name of torchvision.transforms.v2, or {name: {argument: value}}.
    Raises RequestError for an unknown name, unsuitable arguments or another shape.
    """
    from torchvision.transforms import v2

    augment: Augment = v2.Compose([_build_transform(step) for step in steps])
    try:
        result = apply_seeded(augment, torch.zeros(shape, dtype=torch.uint8), 0, 0)
    except Exception as error:  # whatever the transform raises when its arguments do not suit the images
        raise _augment_error(f"fails on an image of shape {shape}", error) from error
    if tuple(result.shape) != shape:
        raise RequestError(
            f"data.augment turns images of shape {shape} into {tuple(result.shape)}, but test images stay as "
            f"they are: set data.image_size={result.shape[-1]} or let it end with the size {shape[-1]}"
        )
    return augment


def apply_seeded(augment: Augment, image: Tensor, epoch_seed: int, index: int) -> Tensor:
    """The augmented image, a function of (epoch_seed, index) alone; the global generator is left alone."""
    digest = hashlib.blake2b(f"{epoch_seed},{index}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the generators of all GPUs as well.
        torch.default_generator.manual_seed(int.from_bytes(digest, "big"))
        return augment(image)


def _build_transform(step: Any) -> Any:
    from torchvision.transforms import v2

    name, arguments = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, {})
    if not isinstance(name, str) or not isinstance(arguments, dict | None):
        raise RequestError(
            f"data.augment: {step!r} is neither a name nor name and arguments, "
            "as in [RandomHorizontalFlip, {RandomCrop: {size: 28, padding: 4}}]"
        )
    known = [n for n, v in vars(v2).items() if isinstance(v, type) and issubclass(v, v2.Transform)]
    if name not in known:
        hint = did_you_mean(name, known) or " such as RandomHorizontalFlip"
        raise RequestError(f"data.augment: '{name}' is no transform of torchvision.transforms.v2{hint}")
    try:
        return getattr(v2, name)(**(arguments or {}))
    except Exception as error:  # its constructors raise what they like
        raise _augment_error(f"{name} does not take {arguments}", error) from error


def _augment_error(what: str, error: Exception) -> RequestError:
    return RequestError(f"data.augment: {what} ({' '.join(str(error).split())[:160]})")
