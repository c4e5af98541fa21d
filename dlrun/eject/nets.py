"""The net section: what its templates have to know of the model."""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from dlrun.eject.refusal import cannot
from dlrun.eject.source import Code, write_arguments, write_items, write_name
from dlrun.eject.training_run import TrainingRun
from dlrun.experiment.builder.start_values import find_parameters
from dlrun.models.mlp import ACTIVATIONS
from dlrun.models.tabular import WIDE_SCALE, choose_embedding_size

# The template of each target, and the arguments that it knows.
NET_TEMPLATES = {
    "dlrun.models.linear.Linear": ("linear", "bias"),
    "dlrun.models.linear.Logistic": ("linear", "bias"),
    "dlrun.models.mlp.MLP": ("mlp", "hidden_sizes activation dropout bias"),
    "dlrun.models.tabular.Tabular": ("tabular", "blocks hidden_sizes activation dropout embedding_size wide"),
    "dlrun.models.sequential.Sequential": ("sequential", "layers"),
    "dlrun.models.cnn.CNN": ("convolutional", "channels kernel_size"),
    "dlrun.models.resnet.ResNet": ("convolutional", "channels"),
    "dlrun.models.inception.Inception": ("convolutional", "bottleneck"),
    "dlrun.models.pretrained.Torchvision": ("torchvision", "name weights"),
    "dlrun.models.scratch.ScratchMLP": ("scratch", "hidden_sizes activation bias init_std output_activation"),
    "dlrun.models.recurrent.RNN": ("recurrent", "embedding_size hidden_size layers bidirectional dropout"),
    "dlrun.models.recurrent.LSTM": ("recurrent", "embedding_size hidden_size layers bidirectional dropout"),
    "dlrun.models.recurrent.GRU": ("recurrent", "embedding_size hidden_size layers bidirectional dropout"),
    "dlrun.models.one_hot.OneHotRNN": ("one_hot", ""),
    "dlrun.models.one_hot.OneHotRNNCell": ("one_hot", ""),
}


def describe_net(run: TrainingRun, template: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments, and what its template needs besides; RequestError for a model that cannot be written."""
    details: dict[str, Any] = {}
    match template:
        case "mlp" | "scratch":
            # Those by hand are called as torch's.
            details["activation_class"] = Code(ACTIVATIONS[arguments["activation"]].__name__)
            details["dropout"] = arguments.get("dropout", 0)
        case "tabular":
            details = _describe_tabular(run, arguments)
        case "sequential":
            details["calls"] = [_write_layer(run, entry) for entry in arguments["layers"]]
            details["is_lazy"] = any("Lazy" in call for call in details["calls"])
        case "convolutional":
            channels = run.spec.input_shape[0]
            # An Inception block makes 88 channels of any number.
            details["stages"] = [(channels, 10), (88, 20)]
            if "channels" in arguments:
                details["stages"] = list(pairwise([channels, *arguments["channels"]]))
            details["kernel_size"] = arguments.get("kernel_size", 5)
            classifier = run.model.get_submodule("classifier")
            assert isinstance(classifier, nn.Linear)
            details["features"] = classifier.in_features
        case "torchvision":
            details = _describe_torchvision(run, **arguments)

    name = write_name(str(run.settings.model.target).rpartition(".")[2])
    return (
        {"template": f"nets/{template}.py.j2", "class": name, "is_by_hand": template == "scratch"} | arguments | details
    )


def _describe_tabular(run: TrainingRun, arguments: dict[str, Any]) -> dict[str, Any]:
    counts = run.spec.code_counts or (0,) * run.spec.input_size
    coded = [count for count in counts if count]
    activation = ACTIVATIONS[arguments["activation"]].__name__
    sizes = [arguments["embedding_size"] or choose_embedding_size(count) for count in coded]
    numbers = [column for column, count in enumerate(counts) if not count]
    width = len(numbers) + sum(sizes)
    hidden_sizes = arguments["hidden_sizes"]

    calls = []
    if arguments["blocks"] == "mlp":
        for before, after in pairwise([width, *hidden_sizes]):
            calls += [f"nn.Linear({before}, {after})", f"nn.{activation}()", f"nn.Dropout({arguments['dropout']!r})"]
        head = hidden_sizes[-1]
    else:
        head = hidden_sizes[0]
        calls.append(f"nn.Linear({width}, {head})")
        calls += [f"ResidualBlock({head}, {size})" for size in hidden_sizes]
        calls += [f"nn.LayerNorm({head})", f"nn.{activation}()"]
    return {
        "activation_class": Code(activation),
        "numbers": numbers,
        "coded": [column for column, count in enumerate(counts) if count],
        "embeddings": list(zip(coded, sizes, strict=True)),
        "calls": list(map(Code, calls)),
        "head": head,
        "code_count": sum(coded),
        "starts": [0, *accumulate(coded)][: len(coded)],
        "has_wide": arguments["wide"],
        "wide_scale": WIDE_SCALE,
    }


def _write_layer(run: TrainingRun, entry: Any) -> Code:
    """The call that makes one layer of `model.layers`."""
    name, settings = next(iter(entry.items())) if isinstance(entry, dict) else (entry, [])
    # `in` stands for what the layer sees of a row: its channels or all its numbers.
    is_on_channels = run.spec.kind == "image" and (name.startswith("Conv") or name.endswith("2d"))
    inputs = run.spec.input_shape[0] if is_on_channels else run.spec.input_size
    sizes = {"in": inputs, "out": run.spec.output_size}

    def replace_sizes(value: Any) -> Any:
        if isinstance(value, list):
            return [replace_sizes(item) for item in value]
        return sizes.get(value, value) if isinstance(value, str) else value

    if isinstance(settings, dict):
        named = {key: replace_sizes(value) for key, value in settings.items()}
        return Code(f"nn.{write_name(name)}({write_items(write_arguments(named))})")
    values = settings if isinstance(settings, list) else [settings]
    return Code(f"nn.{write_name(name)}({write_items(replace_sizes(values))})")


def _describe_torchvision(run: TrainingRun, name: str, weights: str | None) -> dict[str, Any]:
    if weights is not None:
        raise cannot(f"model.weights={weights}, as the training began with weights of another file")

    channels, height, width = run.spec.input_shape
    details: dict[str, Any] = {"function": write_name(name), "size": (height, width)}
    details["has_aux"] = name in ("googlenet", "inception_v3")
    # As models/pretrained.py fits vgg to images that its layers would shrink to nothing.
    details["is_small"] = name.startswith("vgg") and min(height, width) >= 32 and max(height, width) < 64
    details["features"] = 512 * (height // 32) * (width // 32)

    # The first convolution is another one for images without three colours.
    modules = run.model.get_submodule("net").named_modules()
    path, first = next((path, module) for path, module in modules if isinstance(module, nn.Conv2d))
    details["first_path"] = write_path(path)
    details["first_layer"] = None if channels == 3 else Code(repr(first))
    return details


def write_path(path: str) -> Code:
    """A dotted path of a module or parameter as Python: layers.0.weight is layers[0].weight."""
    first, *rest = path.split(".")
    code = write_name(first)
    for part in rest:
        code = Code(f"{code}[{part}]" if part.isdigit() else f"{code}.{write_name(part)}")
    return code


def list_start_values(run: TrainingRun) -> list[tuple[Code, Any]]:
    """Path and value of each parameter that model.init fills: a number, or nested lists of its shape."""
    parameters = dict(run.model.named_parameters())
    values = []
    for key, value in (run.settings.model.keys.init or {}).items():
        for name in find_parameters(key, list(parameters)):
            # In 64 bits, as the run read them.
            start = value
            if isinstance(value, list):
                start = torch.as_tensor(value, dtype=torch.float64).reshape(parameters[name].shape).tolist()
            values.append((write_path(name), start))
    return values
