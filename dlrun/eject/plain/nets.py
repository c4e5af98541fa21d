"""The net section: a class Net for each model of ours."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import nn

from dlrun.eject.plain import recurrent, scratch
from dlrun.eject.plain.refusal import cannot, only_known
from dlrun.eject.plain.source import Piece, filled, literal, named, stack
from dlrun.eject.plain.training_run import TrainingRun
from dlrun.models.mlp import ACTIVATIONS

_LINEAR = '''\
class Net(nn.Linear):
    """One linear layer, y = x Wᵀ + b."""

    def forward(self, x):
        return super().forward(x.flatten(1))
'''
_LAYERS = '''\
class Net(nn.Module):
    """$about"""

    def __init__(self):
        super().__init__()
        $layers
        $sized

    def forward(self, x):  # $shapes
        return self.layers(x)
'''
_FEATURES = '''\
class Net(nn.Module):
    """$about"""

    def __init__(self):
        super().__init__()
        $features
        self.classifier = nn.Linear($area, $outputs)

    def forward(self, x):  # $shapes
        return self.classifier(self.features(x).flatten(1))
'''
_BLOCK = '''\
class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))): what comes in is added to what two convolutions make of it."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):  # (B, channels, H, W) -> the same shape
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))
'''
_INCEPTION = '''\
class InceptionA(nn.Module):
    """Four branches of different reach, side by side: (B, in_channels, H, W) -> (B, 88, H, W)."""

    def __init__(self, in_channels):
        super().__init__()
        self.branch1x1 = nn.Conv2d(in_channels, 16, 1)
        self.branch5x5 = nn.Sequential(nn.Conv2d($width, 24, 5, padding=2))
        self.branch3x3 = nn.Sequential(nn.Conv2d($width, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1))
        for branch in (self.branch5x5, self.branch3x3):  # before them a 1x1 convolution to fewer channels  #? narrow
            branch.insert(0, nn.Conv2d(in_channels, 16, 1))  #? narrow
        self.branch_pool = nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), nn.Conv2d(in_channels, 24, 1))

    def forward(self, x):
        branches = (self.branch1x1, self.branch5x5, self.branch3x3, self.branch_pool)
        return torch.cat([branch(x) for branch in branches], dim=1)
'''
_TORCHVISION = '''\
class Net(nn.Module):
    """$name of torchvision."""

    def __init__(self):
        super().__init__()
        self.net = models.$name($arguments)
        self.net.avgpool = nn.Identity()  #? small
        self.net.classifier = nn.Sequential(nn.Linear($features, $outputs))  #? small
        self.net.$first  #? channels
        self.net.transform_input = False  #? transform

    def forward(self, x):  # $shapes
        return self.net(x)
'''


def net(run: TrainingRun) -> Piece:
    """Source that defines class Net, and what it is made of; RequestError for a model that it cannot express."""
    return Piece(str(only_known(run.settings.model, _NETS)(run, **run.settings.model.arguments)))


def made(run: TrainingRun) -> str:
    """The expression that makes the net."""
    if run.settings.model.target in _LINEAR_TARGETS:
        bias = "" if run.settings.model.arguments["bias"] else ", bias=False"
        return f"Net({run.spec.input_size}, {run.spec.output_size}{bias})"
    return "Net()"


def linear(run: TrainingRun, bias: bool) -> str:
    """See models/linear.py."""
    return _LINEAR if bias else _LINEAR.replace(" + b.", ".")


def mlp(run: TrainingRun, hidden_sizes: list[int], activation: str, dropout: float, bias: bool) -> str:
    """See models/mlp.py."""
    sizes, layers = [run.spec.input_size, *hidden_sizes], ["nn.Flatten()"] if run.spec.kind == "image" else []
    without = "" if bias else ", bias=False"
    for before, after in pairwise(sizes):
        layers += [f"nn.Linear({before}, {after}{without})", f"nn.{ACTIVATIONS[activation].__name__}()"]
        layers += [f"nn.Dropout({dropout})"] if dropout > 0 else []
    layers.append(f"nn.Linear({sizes[-1]}, {run.spec.output_size}{without})")
    about = "Linear layers with an activation between them." if hidden_sizes else "One linear layer."
    return filled(_LAYERS, about=about, layers=stack("self.layers", layers), sized="", shapes=run.shapes)


def sequential(run: TrainingRun, layers: list[Any]) -> str:
    """See models/sequential.py."""
    lines = [_layer(run, entry) for entry in layers]
    sized = ""
    if any("Lazy" in line for line in lines):
        inside = ", ".join(str(n) for n in run.spec.input_shape)
        sized = f"with torch.no_grad():  # gives the lazy layers their sizes\n    self.eval()(torch.zeros(2, {inside}))"
    about = "The layers one after the other."
    return filled(_LAYERS, about=about, layers=stack("self.layers", lines), sized=sized, shapes=run.shapes)


def _layer(run: TrainingRun, entry: Any) -> str:
    """One layer of a list as a call."""
    name, settings = next(iter(entry.items())) if isinstance(entry, dict) else (entry, [])
    on_channels = run.spec.kind == "image" and (name.startswith("Conv") or name.endswith("2d"))
    words = {"in": run.spec.input_shape[0] if on_channels else run.spec.input_size, "out": run.spec.output_size}

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(shown(item) for item in value)}]"
        return literal(words.get(value, value) if isinstance(value, str) else value)

    if isinstance(settings, dict):
        return f"nn.{name}({', '.join(named(key, shown(value)) for key, value in settings.items())})"
    given = settings if isinstance(settings, list) else [settings]
    return f"nn.{name}({', '.join(shown(value) for value in given)})"


def cnn(run: TrainingRun, channels: list[int], kernel_size: int) -> str:
    """See models/cnn.py."""
    layers: list[str] = []
    for before, after in pairwise([run.spec.input_shape[0], *channels]):
        layers += [f"nn.Conv2d({before}, {after}, {kernel_size})", "nn.MaxPool2d(2)", "nn.ReLU()"]
    return _features(run, "Convolution and pooling, then a linear layer.", layers)


def resnet(run: TrainingRun, channels: list[int]) -> str:
    """See models/resnet.py."""
    layers: list[str] = []
    for before, after in pairwise([run.spec.input_shape[0], *channels]):
        layers += [f"nn.Conv2d({before}, {after}, 5)", "nn.MaxPool2d(2)", "nn.ReLU()", f"ResidualBlock({after})"]
    about = "Convolution, pooling and a residual block, stage by stage, then a linear layer."
    return f"{_BLOCK}\n{_features(run, about, layers)}"


def inception(run: TrainingRun, bottleneck: bool) -> str:
    """See models/inception.py."""
    layers: list[str] = []
    for before, after in ((run.spec.input_shape[0], 10), (88, 20)):
        layers += [f"nn.Conv2d({before}, {after}, 5)", "nn.MaxPool2d(2)", "nn.ReLU()", f"InceptionA({after})"]
    width = "16" if bottleneck else "in_channels"
    block = filled(_INCEPTION, {"narrow": bottleneck}, width=width)
    return (
        f"{block}\n{_features(run, 'Twice convolution, pooling and an Inception block, then a linear layer.', layers)}"
    )


def _features(run: TrainingRun, about: str, layers: list[str]) -> str:
    classifier = run.model.get_submodule("classifier")
    assert isinstance(classifier, nn.Linear)
    return filled(
        _FEATURES,
        about=about,
        features=stack("self.features", layers),
        area=classifier.in_features,
        outputs=run.spec.output_size,
        shapes=run.shapes,
    )


def torchvision(run: TrainingRun, name: str, weights: str | None, freeze: str | None = None) -> str:
    """See models/pretrained.py."""
    if weights is not None:
        raise cannot(f"model.weights={weights}, as the training began with weights of another file")
    if freeze is not None:
        raise cannot(f"model.freeze={freeze}, as what is frozen had weights of another file")
    channels, height, width = run.spec.input_shape
    whole: nn.Module = run.model.get_submodule("net")
    path, first = next((path, m) for path, m in whole.named_modules() if isinstance(m, nn.Conv2d))
    arguments = [f"num_classes={run.spec.output_size}"]
    arguments += [f"image_size={height}"] if name.startswith("vit_") else []
    arguments += [f"input_size=({height}, {width})"] if name.startswith("maxvit_") else []
    aux = name in ("googlenet", "inception_v3")
    arguments += ["aux_logits=False", "init_weights=True"] if aux else []
    small = name.startswith("vgg") and min(height, width) >= 32 and max(height, width) < 64
    return filled(
        _TORCHVISION,
        {"small": small, "channels": channels != 3, "transform": channels != 3 and aux},
        name=name,
        arguments=", ".join(arguments),
        features=512 * (height // 32) * (width // 32),
        outputs=run.spec.output_size,
        first=f"{attribute(path)} = nn.{first!r}",
        shapes=run.shapes,
    )


def attribute(path: str) -> str:
    """A dotted path of a module or parameter as Python: layers.0.weight is layers[0].weight."""
    first, *rest = path.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)


_LINEAR_TARGETS = ("dlrun.models.linear.Linear", "dlrun.models.linear.Logistic")
_NETS: dict[str, Callable[..., str]] = {
    **dict.fromkeys(_LINEAR_TARGETS, linear),
    "dlrun.models.mlp.MLP": mlp,
    "dlrun.models.sequential.Sequential": sequential,
    "dlrun.models.cnn.CNN": cnn,
    "dlrun.models.resnet.ResNet": resnet,
    "dlrun.models.inception.Inception": inception,
    "dlrun.models.pretrained.Torchvision": torchvision,
    scratch.TARGET: scratch.net,
    "dlrun.models.recurrent.RNN": recurrent.rnn,
    "dlrun.models.recurrent.LSTM": recurrent.lstm,
    "dlrun.models.recurrent.GRU": recurrent.gru,
    "dlrun.models.one_hot.OneHotRNN": recurrent.one_hot,
    "dlrun.models.one_hot.OneHotRNNCell": recurrent.one_hot_cell,
}
