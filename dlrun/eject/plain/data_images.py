"""Image sets that are published: the data section for each."""

from pathlib import Path

from dlrun.core.errors import RequestError
from dlrun.data.files.idx import find_idx
from dlrun.data.images import IDX_FILES
from dlrun.eject.plain import data_rows
from dlrun.eject.plain.source import Constant, Piece, filled
from dlrun.eject.plain.training_run import TrainingRun

Mean = float | list[float]

_DIGITS = """\
pixels, labels = load_digits(return_X_y=True)  # 1,797 images of 8x8 pixels in 17 shades
x = torch.tensor(pixels, dtype=torch.float32).div(16).view(-1, 1, 8, 8)$repeated
$prepared
y = torch.tensor(labels)  #? !binary
y = torch.tensor(labels == POSITIVE).to($dtype).unsqueeze(1)  # that digit or another  #? binary
"""
_IDX = '''\
def read(part):
    """Images and classes of one part; before them the files have headers of 16 and 8 bytes."""
    pixels = $pixels
    labels = $labels
    x = torch.tensor(pixels.reshape(-1, 1, 28, 28)).float().div(255)
    $prepared
    return x, torch.tensor(labels).long()

x, y = read("train")
test = read("t10k")
'''
_CIFAR = '''\
def read(train):
    """Images and classes of one part; torchvision looks at the checksums of the files."""
    part = datasets.$name(DATA, train=train)
    x = torch.tensor(part.data).permute(0, 3, 1, 2).float().div(255)
    $prepared
    return x, torch.tensor(part.targets)

x, y = read(train=True)
test = read(train=False)
'''
_PREPARED = """\
x = F.interpolate(x, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear"$antialias)  #? resized
x = (x - MEAN) / STD  #? grey
x = (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)  #? !grey
x = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C) in memory: convolutions are faster on that  #? last
x = x.double()  #? double
"""


def prepared(run: TrainingRun, side: int, image_size: int | None) -> tuple[str, dict[str, Constant]]:
    """Resizing, scaling and layout of `x`, whose images are so many pixels a side."""
    mean, std = list(run.spec.mean), list(run.spec.std)
    grey = len(set(mean)) == 1 and len(set(std)) == 1
    flags = {
        "resized": image_size not in (None, side),
        "grey": grey,
        "last": run.channels_last,
        "double": run.double,
    }
    shrinks = ", antialias=True" if image_size is not None and image_size < side else ""
    constants = {
        "IMAGE_SIZE": Constant(image_size),
        "MEAN": Constant(mean[0] if grey else mean, "of the training images"),
        "STD": Constant(std[0] if grey else std),
    }
    return filled(_PREPARED, flags, antialias=shrinks), constants


def digits(
    run: TrainingRun,
    image_size: int,
    mean: float | None,
    std: float | None,
    positive: int | None,
    channels: int,
    test_fraction: float,
    seed: int,
) -> Piece:
    """See data/images.py."""
    lines, constants = prepared(run, 8, image_size)
    repeated = "" if channels == 1 else f".repeat(1, {channels}, 1, 1)"
    flags = {"binary": positive is not None}
    code = filled(_DIGITS, flags, repeated=repeated, prepared=lines, dtype=run.dtype)
    if test_fraction > 0:
        careful = not 0.01 < test_fraction < 0.99
        code += "\n" + filled(data_rows.STRATIFIED, classes=10, share=data_rows.share("len(rows)", careful))
    constants["POSITIVE"] = Constant(positive)
    return data_rows.parted(run, Piece(code, constants), indexed=test_fraction > 0)


def idx(run: TrainingRun, dataset: str, root: str, image_size: int | None) -> Piece:
    """MNIST and what was published in its format."""
    folder = Path(root).expanduser() / dataset / "raw"
    packed = [(find_idx(folder, name) or folder / name).suffix == ".gz" for name in IDX_FILES]
    if len(set(packed)) > 1:
        raise RequestError(f"the files in {folder} are not packed alike; unpack them all")
    lines, constants = prepared(run, 28, image_size)
    code = filled(
        _IDX,
        pixels=_bytes("{part}-images-idx3-ubyte", 16, packed[0]),
        labels=_bytes("{part}-labels-idx1-ubyte", 8, packed[0]),
        prepared=lines,
    )
    return data_rows.parted(run, Piece(code, {"DATA": Constant(folder.resolve()), **constants}))


def _bytes(name: str, header: int, packed: bool) -> str:
    if packed:
        return f'np.frombuffer(gzip.decompress((DATA / f"{name}.gz").read_bytes()), np.uint8, offset={header})'
    return f'np.fromfile(DATA / f"{name}", np.uint8, offset={header})'


def mnist(run: TrainingRun, root: str, image_size: int | None, mean: Mean, std: Mean) -> Piece:
    """See data/images.py."""
    return idx(run, "MNIST", root, image_size)


def fashion_mnist(run: TrainingRun, root: str, image_size: int | None, mean: Mean, std: Mean) -> Piece:
    """See data/images.py."""
    return idx(run, "FashionMNIST", root, image_size)


def kmnist(run: TrainingRun, root: str, image_size: int | None, mean: Mean, std: Mean) -> Piece:
    """See data/images.py."""
    return idx(run, "KMNIST", root, image_size)


def cifar10(run: TrainingRun, root: str, image_size: int | None, mean: Mean, std: Mean) -> Piece:
    """See data/images.py."""
    return _cifar(run, "CIFAR10", root, image_size)


def cifar100(run: TrainingRun, root: str, image_size: int | None, mean: Mean, std: Mean) -> Piece:
    """See data/images.py."""
    return _cifar(run, "CIFAR100", root, image_size)


def _cifar(run: TrainingRun, name: str, root: str, image_size: int | None) -> Piece:
    lines, constants = prepared(run, 32, image_size)
    code = filled(_CIFAR, name=name, prepared=lines)
    return data_rows.parted(run, Piece(code, {"DATA": Constant(Path(root).expanduser().resolve()), **constants}))
