"""Arrays in .npy files of a folder, mapped into memory, or in one .npz file, read as a whole."""

import zipfile
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dlrun.core.errors import DataError, explain_unreadable, join_names
from dlrun.core.suggest import build_missing_path_error

Numbers = NDArray[Any]

# Usual names of arrays, in .npz files and of .npy files; the first is ours.
_USUAL_NAMES = {
    "x": ("x", "X", "x_train", "X_train", "train_x", "train_X", "train_images", "images", "data", "features", "inputs"),
    "y": ("y", "Y", "y_train", "Y_train", "train_y", "train_Y", "train_labels", "labels", "label", "target", "targets"),
    "val_x": ("val_x", "x_val", "X_val", "val_images", "valid_x", "x_valid", "X_valid"),
    "val_y": ("val_y", "y_val", "Y_val", "val_labels", "valid_y", "y_valid", "Y_valid"),
    "test_x": ("test_x", "x_test", "X_test", "test_X", "test_images"),
    "test_y": ("test_y", "y_test", "Y_test", "test_Y", "test_labels"),
}

# What numpy.savez(file, x, y) calls its arrays.
_UNNAMED = {"x": "arr_0", "y": "arr_1"}


class ArrayFiles(Protocol):
    """Where the arrays x, y, val_x, val_y, test_x and test_y are."""

    def locate(self, name: str) -> Path:
        """The place of an array, for sentences; it need not be there."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is such an array."""
        ...

    def open(self, name: str) -> Numbers:
        """The array, rows first; DataError if it is missing or damaged, or has no rows."""
        ...


def open_files(path: Path) -> ArrayFiles:
    """The arrays of a folder, or of an .npz file; DataError for another file and for none."""
    if path.is_dir():
        return ArrayFolder(path)
    if not path.exists():
        raise build_missing_path_error(path, "data.path")
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"data.path={path} is a file; type the folder that x.npy and y.npy lie in, or an .npz file of both"
        )
    return ArrayArchive(path)


class ArrayFolder:
    """A folder of .npy files, under our names or usual ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate(self, name: str) -> Path:
        """The path of the file, under our name or a usual one."""
        paths = [self.folder / f"{usual}.npy" for usual in _USUAL_NAMES[name]]
        return next(filter(Path.exists, paths), paths[0])

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return self.locate(name).exists()

    def open(self, name: str) -> Numbers:
        """Map the file into memory, copy-on-write, as torch insists on writable arrays."""
        path = self.locate(name)
        if not path.exists():
            raise DataError(f"{path} does not exist; write it with numpy.save, a row a sample")

        try:
            # A pickled array could run code when it is loaded.
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            why = _describe_damage(error)
            damage = DataError(f"{path} is not a whole .npy file of numbers ({why}); write it with numpy.save")
            raise explain_unreadable(path, error) or damage from error

        return _check_array(path, array)


class ArrayArchive:
    """An .npz file, with arrays under our names or usual ones."""

    def __init__(self, path: Path) -> None:
        """DataError for a damaged file."""
        self.path = path
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                self.names = set(archive.files)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
            why = _describe_damage(error)
            damage = DataError(f"{path} is not a whole .npz file of arrays ({why}); write it with numpy.savez")
            raise explain_unreadable(path, error) or damage from error

    def locate(self, name: str) -> Path:
        """The file with the array's name in it behind."""
        if self.names == set(_UNNAMED.values()) and name in _UNNAMED:
            return self.path / _UNNAMED[name]
        # The first that is there, so that our own names win.
        usual = [key for key in _USUAL_NAMES[name] if key in self.names]
        return self.path / (usual or [name])[0]

    def has(self, name: str) -> bool:
        """Whether the file has the array, under any usual name."""
        return self.locate(name).name in self.names

    def open(self, name: str) -> Numbers:
        """Read the array."""
        path = self.locate(name)
        if path.name not in self.names:
            usual = join_names(_USUAL_NAMES[name][1:])
            raise DataError(
                f"{self.path} holds no {name} (or {usual}), but {join_names(sorted(self.names))}; "
                f"write it with numpy.savez(..., {name}=...), a row a sample"
            )

        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                array = archive[path.name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            why = _describe_damage(error)
            raise DataError(f"{path} is not a whole array of numbers ({why}); write it with numpy.savez") from error

        return _check_array(path, array)


def _describe_damage(error: Exception) -> str:
    """What is wrong with a file in one phrase, without NumPy's advice to load it in an unsafe way."""
    if "pickle" in str(error):
        return "it holds Python objects, or no array"
    return str(error)


def _check_array(path: Path, array: Any) -> Numbers:
    if len(getattr(array, "shape", ())) == 0 or len(array) == 0:
        raise DataError(f"{path} holds no rows; write an array with a row a sample")
    # torch takes arrays of this machine's byte order alone.
    if not array.dtype.isnative:
        raise DataError(f"{path} holds {array.dtype} in another machine's byte order; write it with numpy.save here")
    return cast(Numbers, array)
