"""Files that come over the network, and what is said when it does not bring them."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dlrun.errors import DataError

COURSE_URL = "https://raw.githubusercontent.com/hunkim/PyTorchZeroToAll/master/data/"


def unavailable(data: str, folder: Path, files: Sequence[str], reason: Exception) -> DataError:
    """The error for files that are neither in `folder` nor to be had over the network."""
    why = " ".join(f"{type(reason).__name__}: {reason}".split())
    return DataError(
        f"data={data} is not in {folder} and could not be downloaded ({why[:160]}): "
        f"put {', '.join(files)} there, or set paths.data=<folder that holds the data>, "
        "or choose data that needs no network: digits, line, regression, parabola, blobs or csv"
    )


def fetch(url: str, sha256: str, path: Path) -> None:
    """Download `url` to `path`, which appears only when it is whole and its checksum is right.

    Raises OSError (no connection, no permission) or ValueError (another checksum).
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")  # by default it tells every download on stderr
    quiet = pooch.HTTPDownloader(progressbar=False)
    pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=quiet)


def course_table(data: str, root: str, name: str, sha256: str) -> Path:
    """Where `<name>.csv.gz` or `<name>.csv` lies in the folder `root`; downloaded when neither does.

    sha256 is that of the published .csv.gz. Raises DataError when there is no way to get it.
    """
    folder = Path(root).expanduser()
    packed = folder / f"{name}.csv.gz"
    for path in (packed, folder / f"{name}.csv"):
        if path.is_file():
            return path
    try:
        fetch(COURSE_URL + packed.name, sha256, packed)
    except (OSError, ValueError) as error:
        raise unavailable(data, folder, [packed.name], error) from error
    return packed


def fetch_with_torchvision(data: str, dataset: str, root: Path, folder: str, files: Sequence[str]) -> None:
    """Download `torchvision.datasets.<dataset>` and put its `files` into `root/folder`, each in one move.

    Raises DataError, whatever the reason.
    """
    try:
        from torchvision import datasets

        root.mkdir(parents=True, exist_ok=True)
        # torchvision unpacks in place: interrupted, it would leave half a file that it later takes for whole.
        with TemporaryDirectory(dir=root, prefix="download-") as half:
            getattr(datasets, dataset)(half, download=True)
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name in files:
                Path(half, folder, name).replace(root / folder / name)
    except Exception as error:  # its download fails with half a dozen classes, of which RuntimeError is one
        raise unavailable(data, root / folder, files, error) from error
