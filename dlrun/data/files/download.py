"""Downloads of published files, and the error for those that cannot be downloaded."""

import contextlib
import errno
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import IO

from dlrun.core import lock
from dlrun.core.errors import DlrunError, UnavailableError

COURSE_URL = "https://raw.githubusercontent.com/hunkim/PyTorchZeroToAll/master/data/"


def _name_idx_files(*md5: str) -> dict[str, str]:
    """The four files of MNIST and the data sets in its format, with their checksums."""
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{part}-ubyte.gz": digits for part, digits in zip(parts, md5, strict=True)}


# Address of each data set, and its files there with their md5.
_PUBLISHED: dict[str, tuple[str, dict[str, str]]] = {
    "MNIST": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _name_idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "FashionMNIST": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        _name_idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "KMNIST": (
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        _name_idx_files(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    "CIFAR10": (
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
    "CIFAR100": (
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    ),
}


# Errors of the disk, not of the network.
_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)

_is_forbidden = ContextVar("is_forbidden", default=False)


class DownloadForbiddenError(DlrunError):
    """A download that was not begun."""


@contextlib.contextmanager
def forbid_downloads() -> Iterator[None]:
    """Raise DownloadForbiddenError for every download inside the block."""
    token = _is_forbidden.set(True)
    try:
        yield
    finally:
        _is_forbidden.reset(token)


def build_unavailable_error(data: str, folder: Path, files: Sequence[str], reason: Exception) -> UnavailableError:
    """The error for files that are neither in `folder` nor can be downloaded."""
    # The disk is at fault, so a network would not help.
    if isinstance(reason, OSError) and reason.errno in _DISK_ERRORS:
        return UnavailableError(
            f"data={data} is not in {folder}, and nothing can be written there ({reason.strerror}); make room "
            "there, or type paths.data=<folder>"
        )

    why = " ".join(f"{type(reason).__name__}: {reason}".split())
    return UnavailableError(
        f"data={data} is not in {folder} and could not be downloaded ({why[:160]}): "
        f"put {', '.join(files)} there, or set paths.data=<folder that holds the data>, "
        "or choose data that needs no network: digits, line, regression, parabola, blobs or csv"
    )


def fetch(url: str, checksum: str, path: Path, schemes: Sequence[str] = ("https",)) -> None:
    """Download `url` to `path`, which appears only once it is complete and its checksum is right.

    checksum: `sha256:` or `md5:` and hex digits. An interrupted download leaves its bytes in `<path>.part`, and the
    next one resumes there. Raises OSError (no connection, no permission) or ValueError (another checksum, or an
    address that is not https), DownloadForbiddenError inside `forbid_downloads`.
    """
    import pooch

    if _is_forbidden.get():
        raise DownloadForbiddenError(url)
    if url.partition("://")[0] not in schemes:
        raise ValueError(f"{url} is not https")

    # By default pooch reports every download on stderr.
    pooch.get_logger().setLevel("ERROR")
    part = path.with_name(path.name + ".part")
    pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=partial(_resume_download, part))


def _resume_download(part: Path, url: str, target: str, _: object) -> None:
    """Download the bytes that `part` still lacks, then rename it to `target`."""
    import pooch
    import requests

    with part.open("ab") as file:
        if not lock.try_lock(file.fileno()):
            # Another process downloads the same file: this one starts a copy of its own.
            pooch.HTTPDownloader(progressbar=False)(url, target, None)
            return

        headers = {"Accept-Encoding": "identity"}
        if file.tell():
            headers = {"Range": f"bytes={file.tell()}-", **headers}
        with requests.get(url, headers=headers, stream=True, timeout=30) as response:
            # Status 416: the range is empty, so the file is complete.
            if response.status_code != requests.codes.requested_range_not_satisfiable:
                response.raise_for_status()
                if response.status_code != requests.codes.partial_content:
                    # The server ignores ranges and sends the file from its start.
                    file.truncate(0)
                for chunk in response.iter_content(2**16):
                    file.write(chunk)
        file.flush()
        part.replace(target)


def fetch_course_table(data: str, root: str, name: str, sha256: str) -> Path:
    """Path of `<name>.csv.gz` or `<name>.csv` in the folder `root`; downloaded if there is neither.

    sha256: of the published .csv.gz. Raises DataError if it cannot be downloaded.
    """
    # An unpacked table may have been put there by hand.
    folder = Path(root).expanduser()
    packed = folder / f"{name}.csv.gz"
    for path in (packed, folder / f"{name}.csv"):
        if path.is_file():
            return path

    try:
        fetch(COURSE_URL + packed.name, f"sha256:{sha256}", packed)
    except (OSError, ValueError) as error:
        raise build_unavailable_error(data, folder, [packed.name], error) from error
    return packed


def fetch_images(data: str, dataset: str, folder: Path, files: Sequence[str]) -> None:
    """Download an image set and move its `files` into `folder`, each at once. Raises DataError for any failure."""
    address, archives = _PUBLISHED[dataset]
    try:
        for name, md5 in archives.items():
            fetch(address + name, f"md5:{md5}", folder / name)
            unpack(folder / name, files)
            # The files are there, so the archive is not needed any more.
            (folder / name).unlink()
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        raise build_unavailable_error(data, folder, files, error) from error


def unpack(archive: Path, files: Sequence[str]) -> None:
    """Unpack a .gz, or those `files` that a .tar.gz holds under its folder's name, beside the archive.

    Nothing else in it is written, and no path in it is followed. Raises ValueError for a file that it lacks.
    """
    if not archive.name.endswith(".tar.gz"):
        with gzip.open(archive) as stream:
            _write_whole(stream, archive.with_name(archive.stem))
        return

    with tarfile.open(archive) as tar:
        # Links and folders are left out: they could point elsewhere.
        members = {member.name: member for member in tar if member.isfile()}
        for name in files:
            member = members.get(f"{archive.parent.name}/{name}")
            packed = tar.extractfile(member) if member else None
            if not packed:
                raise ValueError(f"{archive} holds no file {archive.parent.name}/{name}")
            _write_whole(packed, archive.with_name(name))


def _write_whole(stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
    # A rename is atomic: no reader sees half a file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            shutil.copyfileobj(stream, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
