"""Files that come over the network, and what is said when it does not bring them."""

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


def _idx(*md5: str) -> dict[str, str]:
    """The four files in which MNIST, and what was made after it, are published."""
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{part}-ubyte.gz": digits for part, digits in zip(parts, md5, strict=True)}


_PUBLISHED: dict[str, tuple[str, dict[str, str]]] = {  # address, and the files there with their md5
    "MNIST": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _idx(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "FashionMNIST": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        _idx(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "KMNIST": (
        "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        _idx(
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


_OF_THE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)

_is_forbidden = ContextVar("is_forbidden", default=False)


class DownloadForbiddenError(DlrunError):
    """A download that was not begun."""


@contextlib.contextmanager
def forbid_downloads() -> Iterator[None]:
    """Inside it nothing is downloaded: DownloadForbiddenError instead."""
    token = _is_forbidden.set(True)
    try:
        yield
    finally:
        _is_forbidden.reset(token)


def build_unavailable_error(data: str, folder: Path, files: Sequence[str], reason: Exception) -> UnavailableError:
    """The error for files that are neither in `folder` nor to be had over the network."""
    if isinstance(reason, OSError) and reason.errno in _OF_THE_DISK:
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
    """Download `url` to `path`, which appears only when it is whole and its checksum is right.

    checksum: `sha256:` or `md5:` and hex digits. What an interrupted download brought lies in `<path>.part`, and
    the next one goes on from there. Raises OSError (no connection, no permission) or ValueError (another checksum,
    or an address that is not https), DownloadForbiddenError inside `forbid_downloads`.
    """
    import pooch

    if _is_forbidden.get():
        raise DownloadForbiddenError(url)
    if url.partition("://")[0] not in schemes:
        raise ValueError(f"{url} is not https")
    pooch.get_logger().setLevel("ERROR")  # by default it tells every download on stderr
    part = path.with_name(path.name + ".part")
    pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=partial(_go_on, part))


def _go_on(part: Path, url: str, target: str, _: object) -> None:
    """Bring the bytes that `part` still lacks, then make it `target`."""
    import pooch
    import requests

    with part.open("ab") as file:
        if not lock.locked(file.fileno()):  # another process is at it: each its own
            pooch.HTTPDownloader(progressbar=False)(url, target, None)
            return
        asked = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
        with requests.get(url, headers=asked | {"Accept-Encoding": "identity"}, stream=True, timeout=30) as answer:
            if answer.status_code != requests.codes.requested_range_not_satisfiable:  # else it is all there
                answer.raise_for_status()
                if answer.status_code != requests.codes.partial_content:
                    file.truncate(0)  # the server sends all of it
                for chunk in answer.iter_content(2**16):
                    file.write(chunk)
        file.flush()
        part.replace(target)


def fetch_course_table(data: str, root: str, name: str, sha256: str) -> Path:
    """Where `<name>.csv.gz` or `<name>.csv` lies in the folder `root`; downloaded when neither does.

    sha256 is that of the published .csv.gz. Raises DataError when there is no way to get it.
    """
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
    """Download an image set and put its `files` into `folder`, each in one move. Raises DataError, whatever happens."""
    address, archives = _PUBLISHED[dataset]
    try:
        for name, md5 in archives.items():
            fetch(address + name, f"md5:{md5}", folder / name)
            unpack(folder / name, files)
            (folder / name).unlink()
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        raise build_unavailable_error(data, folder, files, error) from error


def unpack(archive: Path, files: Sequence[str]) -> None:
    """Put what a .gz holds, or those of `files` that a .tar.gz holds under the folder's name, beside the archive.

    Nothing else of it is written, and no path in it is followed. Raises ValueError where a file is not in it.
    """
    if not archive.name.endswith(".tar.gz"):
        with gzip.open(archive) as stream:
            _place(stream, archive.with_name(archive.stem))
        return
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar if member.isfile()}
        for name in files:
            inside = members.get(f"{archive.parent.name}/{name}")
            packed = inside and tar.extractfile(inside)
            if not packed:
                raise ValueError(f"{archive} holds no file {archive.parent.name}/{name}")
            _place(packed, archive.with_name(name))


def _place(stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with half.open("wb") as file:
            shutil.copyfileobj(stream, file)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
