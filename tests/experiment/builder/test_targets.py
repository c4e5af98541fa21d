"""What a saved run may name is not imported, let alone run, unless it is ours, torch's or trusted."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
import torch
from torch import Tensor, nn

from dlrun.config.schema import ModelKeys
from dlrun.config.settings import Component
from dlrun.core import own_code
from dlrun.core.errors import RequestError
from dlrun.experiment.builder import targets

OWN = """
import os
from pathlib import Path
from torch import nn

Path(__file__).with_name("marker").touch()

class Net(nn.Module):
    def __init__(self, spec, width: int = 4):
        super().__init__()

def make():
    return None

number = 3
"""


@pytest.fixture
def import_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module mynet; the path given is a file that exists once it was imported."""
    (tmp_path / "mynet.py").write_text(OWN)
    (tmp_path / "mynetwork.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker"
    for name in ("mynet", "mynetwork"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torchvision.datasets.utils.pathlib.Path.unlink",
        "torchvision.datasets.utils.download_url",
        "dlrun.runs.checkpoint.os.remove",
        "dlrun.runs.checkpoint.load_full_model",
        "dlrun.data.files.download.tarfile.open",
        "dlrun.models.mlp.nn.modules.module.torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.Module.load_state_dict",
        "torch.optim.Optimizer.load_state_dict",
        "torch.nn.functional.relu",
        "dlrun.data.names.np.load",
        "dlrun.data.files.download.fetch",
        "dlrun.data.files.download.fetch_images",
        "dlrun.data.files.download.unpack",
        "dlrun.data.images.read_labelled",
        "dlrun.data.spec.Split",
        "dlrun.models.pretrained._import_models",
        "torch.nn.Linear.__class__",
        "torch.nn.Linear.__init__.__globals__",
        "torch.nn.Linear.__subclasses__",
        "torch.nn.Module.__getattribute__",
        "torch.nn.__builtins__.eval",
        "torch.nn.__loader__.load_module",
        "dlrunner.Net",
        "torch.nnx.Net",
    ],
)
@pytest.mark.parametrize("trusted", [[], ["mynet"]])
def test_a_saved_run_cannot_reach_code_through_an_allowed_prefix(target: str, trusted: list[str]) -> None:
    with pytest.raises(RequestError, match=f"^model._target_={target} comes from a saved run"):
        targets.resolve(target, "model._target_", trusted)


@pytest.mark.parametrize(
    "target",
    [
        "dlrun.models.mlp.MLP",
        "dlrun.data.synthetic.blobs",
        "torch.optim.Adam",
        "torch.optim.lr_scheduler.StepLR",
        "torch.nn.Linear",
        "torchvision.models.resnet.ResNet",
    ],
)
def test_what_is_ours_or_torchs_is_always_there(target: str) -> None:
    target_object = targets.resolve(target, "x", [])
    assert target_object is targets.resolve(target, "x", None)
    assert f"{target_object.__module__}.{target_object.__name__}".split(".")[0] == target.split(".")[0]


TOUCH = {"_target_": "pathlib.Path.touch", "_args_": ["canary"]}  # what Hydra itself does not refuse either
UNLINK = {"_target_": "torchvision.datasets.utils.pathlib.Path.unlink", "_args_": ["victim"]}
ESCAPED = "$" + "{oc.create:'{_target_: pathlib.Path.touch, _args_: [canary]}'}"


def layers(*entries: Any) -> dict[str, Any]:
    """A model whose argument takes anything."""
    return {"model": {"_target_": "dlrun.models.sequential.Sequential", "init": None, "layers": list(entries)}}


HOSTILE: dict[str, Any] = {
    "the data": {"data": UNLINK},
    "the model": {"model": {"_target_": "torch.nn.modules.os.system", "command": "touch canary"}},
    "the optimizer": {"optimizer": {"_target_": "builtins.eval", "_args_": ["open('canary', 'w')"]}},
    "the scheduler": {"scheduler": {"_target_": "shutil.rmtree", "path": "."}},
    "an argument": layers(TOUCH),
    "a list in a list": layers([[1, {"a": [UNLINK]}]]),
    "positional": {"model": {"_args_": [TOUCH]}},
    "a partial": layers({"_partial_": True, **TOUCH}),
    "a group": {"optimizer": {"groups": [{"match": "*", "lr": TOUCH}]}},
    "a resolver": layers(ESCAPED),
    "a data function": {
        "data": {"_target_": "dlrun.data.files.download.fetch", "url": "x", "checksum": "x", "path": "canary"}
    },
    **{f"{n} backslashes": layers("\\" * n + ESCAPED) for n in range(1, 9)},
}


@pytest.fixture
def hostile(dlrun: Callable[..., Any], tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """`hostile(changes)`: a whole checkpoint whose config was changed, alone in a run folder."""
    from dlrun.runs import checkpoint

    words = ("data=line", "model=linear", "trainer.epochs=1", "figures=false", "tracking.graph=false")
    assert dlrun(*words, "hydra.run.dir=run").code == 0
    last = tmp_path / "run/checkpoints/last.pt"
    state = checkpoint.load(last)
    (tmp_path / "victim").touch()

    def change(changes: dict[str, Any]) -> Path:
        before = state["config"]
        changed = {k: block if "layers" in block else {**before[k], **block} for k, block in changes.items()}
        for file in last.parent.iterdir():
            file.unlink()
        checkpoint.save(last, state | {"config": before | changed})
        return tmp_path / "run"

    return change


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_no_saved_config_runs_code(
    every: int, hostile: Callable[[dict[str, Any]], Path], dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    for name, changes in list(HOSTILE.items())[::every]:
        run = hostile(changes)
        for words in (("resume", str(run), "trainer.epochs=2"), ("eval", str(run))):
            if name in ("the optimizer", "the scheduler", "a group") and words[0] == "eval":
                continue  # eval builds neither
            outcome = dlrun(*words)
            assert outcome.code == 2, (name, words, outcome.out, outcome.err)
            assert len(outcome.err.splitlines()) == 1, outcome.err
            assert not (tmp_path / "canary").exists(), name
            assert (tmp_path / "victim").exists(), name


def test_resolvers_that_only_read_are_not_evaluated_either(
    hostile: Callable[[dict[str, Any]], Path], dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS", "40")
    run = hostile({"data": {"rows": "$" + "{oc.decode:$" + "{oc.env:ROWS}}"}})
    outcome = dlrun("eval", str(run))
    assert outcome.code == 2
    assert "data.rows='$" + "{oc.decode:$" + "{oc.env:ROWS}}' must be a whole number" in outcome.err


@pytest.mark.parametrize("target", ["mynet.Net", "mynet.make", "mynet.os.remove"])
@pytest.mark.parametrize("trusted", [[], ["other"], ["my"], ["mynetwork"]])
def test_an_own_module_is_not_even_imported(target: str, trusted: list[str], import_marker: Path) -> None:
    with pytest.raises(RequestError) as caught:
        targets.resolve(target, "model._target_", trusted)
    assert not import_marker.exists()
    assert f"trusted_modules='[{', '.join([*trusted, 'mynet'])}]'" in str(caught.value)


@pytest.mark.parametrize("trusted", [None, ["mynet"], ["other", "mynet"]])
@pytest.mark.parametrize("target", ["mynet.Net", "mynet.make"])
def test_an_own_module_is_used_when_it_is_trusted(target: str, trusted: list[str] | None, import_marker: Path) -> None:
    target_object = targets.resolve(target, "model._target_", trusted)
    assert import_marker.exists()
    assert f"{target_object.__module__}.{target_object.__name__}" == target


def test_trust_in_a_module_is_not_trust_in_what_it_imports(import_marker: Path) -> None:
    with pytest.raises(RequestError, match=r"mynet\.os\.remove comes from a saved run"):
        targets.resolve("mynet.os.remove", "x", ["mynet"])
    with pytest.raises(RequestError, match=r"mynetwork\.Net comes from a saved run"):
        targets.resolve("mynetwork.Net", "x", ["mynet"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.Net", "there is no module nowhere in the working directory or among the installed ones"),
        ("mynet.Missing", "mynet.Missing cannot be imported: "),
        ("mynet.number", "mynet.number is of type int, not a class or a function"),
        ("broken.Net", "broken.Net cannot be imported: ZeroDivisionError: division by zero"),
    ],
)
def test_a_target_that_is_not_there_is_a_sentence(target: str, message: str, import_marker: Path) -> None:
    import_marker.with_name("broken.py").write_text("1 / 0\n")
    with pytest.raises(RequestError) as caught:
        targets.resolve(target, "model._target_", None)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"model._target_={target} ")
    assert "\n" not in str(caught.value)


def test_targets_are_found_however_deep_they_lie() -> None:
    block = {
        "a": [1, {"_target_": "os.system", "b": {"_target_": "x.y"}}],
        "c": {"d": [[{"_target_": "builtins.eval"}]]},
        "_target_": "torch.nn.Linear",
        "e": "_target_",
    }
    assert sorted(own_code.iter_targets(block)) == ["builtins.eval", "os.system", "torch.nn.Linear", "x.y"]


class Anything:
    """A class that a plain value cannot be."""


FITS: list[tuple[Any, list[Any], list[Any]]] = [  # annotation, what fits, what does not
    (int, [3, -1, 0], [3.0, "3", True, None, [3]]),
    (float, [3, 0.5, -1e9], ["0.5", True, None, [0.5]]),
    (bool, [True, False], [1, 0, "true", None]),
    (str, ["", "relu"], [1, None, ["a"], True]),
    (None, [None], [0, "", False]),
    (int | None, [3, None], [3.5, "3", True]),
    (Optional[float], [3, 0.5, None], ["x", False]),  # noqa: UP045
    (Union[int, str], [3, "3"], [3.5, None, [1]]),  # noqa: UP007
    (Literal["mean", "sum"], ["mean", "sum"], ["none", None, 1]),
    (Literal[1, 2] | None, [1, None], [3, "1"]),
    (list[int], [[], [1, 2]], [[1, 2.5], ["1"], 1, "12", None, [True]]),
    (list[Any], [[], [1, "a", None, {}]], [1, "ab", {}]),
    (list, [[1, "a"]], [1, "a"]),
    (list[list[int]], [[[1], []]], [[1], [["a"]]]),
    (tuple[float, float], [[0.9, 0.999], [1, 0]], [["a", 1], 0.9, None]),
    (tuple[int, ...], [[1, 2, 3]], [[1.5], 1]),
    (Sequence[int], [[1]], [[1.5], 1, "a"]),
    (dict[str, Any], [{}, {"a": 1}], [[], 1, "a"]),
    (dict, [{"a": 1}], [[1]]),
    (float | Tensor, [0.1, 1], ["0.1", None, True]),
    (tuple[float | Tensor, float | Tensor], [[0.9, 0.999]], [["0.9", 0.999]]),
    (Tensor, [], [1, 0.5, "a"]),
    (Any, [1, "a", None, [], {}], []),
]


@pytest.mark.parametrize(
    ("annotation", "value", "wanted"),
    [
        *((annotation, value, True) for annotation, fitting, _ in FITS for value in fitting),
        *((annotation, value, False) for annotation, _, others in FITS for value in others),
    ],
)
def test_a_plain_value_fits_its_annotation(annotation: Any, value: Any, wanted: bool) -> None:
    assert targets.is_accepted(annotation, value) is wanted


def build(width: int, depth: int = 2, shape: list[int] | None = None, *, rate: float = 0.1) -> None:
    """A target with an argument of every kind."""


def open_ended(spec: Any, **settings: Any) -> None:
    """A target that takes whatever it is given."""


def block(**arguments: Any) -> Component[Any]:
    return Component("model", "mine", "x", arguments, ModelKeys())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 3, "rat": 0.1}, "model=mine has no setting model.rat; did you mean model.rate? it has"),
        ({"width": 3, "xyz": 0}, "model=mine has no setting model.xyz; it has depth, init, rate, shape, width"),
        ({"width": 3, "ini": {}}, "did you mean model.init?"),
        ({}, "model.width has no value yet; type +model.width=..."),
        ({"width": "a"}, "model.width='a' must be a whole number"),
        ({"width": 3, "rate": "fast"}, "model.rate='fast' must be a number"),
        ({"width": 3, "shape": 4}, "model.shape=4 must be a list like [number] or null"),
    ],
)
def test_arguments_that_do_not_fit_are_sentences(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        targets.check_arguments(block(**arguments), build, ["init"], 0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("target", "arguments", "given"),
    [
        (build, {"width": 3, "rate": 1, "shape": [2, 3]}, 0),
        (build, {"depth": 4}, 1),  # dlrun itself passes the first
        (build, {"width": 3, "_convert_": "all"}, 0),
        (open_ended, {"whatever": object()}, 1),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 1),
        (torch.optim.Adam, {"lr": 0.1, "betas": [0.9, 0.999]}, 1),
        (nn.Linear, {"in_features": 2, "out_features": 1}, 0),
        (int, {"anything": 1}, 0),  # a C function shows no parameters
    ],
)
def test_arguments_that_fit_pass(target: Callable[..., Any], arguments: dict[str, Any], given: int) -> None:
    targets.check_arguments(block(**arguments), target, [], given)


def test_what_dlrun_passes_itself_is_not_a_setting() -> None:
    with pytest.raises(RequestError, match=r"no setting model\.width; .*it has depth, rate, shape$"):
        targets.check_arguments(block(width=1), build, [], 1)


@pytest.mark.parametrize(
    "target", ["torch.hub.load", "dlrun.data.files.download.fetch", "torchvision.datasets.utils.download_url"]
)
def test_nobody_is_told_to_trust_all_of_torch(target: str) -> None:
    with pytest.raises(RequestError, match=rf"if you trust it type task\.loss={target}"):
        targets.resolve(target, "task.loss", [])
    with pytest.raises(RequestError, match="a saved run cannot use that"):
        targets.resolve(target, "scheduler: _target_", [])
    assert callable(targets.resolve("torch.hub.load", "task.loss", ["torch.hub.load"]))
