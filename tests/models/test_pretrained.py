"""Nets of torchvision; its downloads are replaced by files made here."""

import functools
import io
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.core.errors import MisfitError, RequestError
from dlrun.data.spec import DataSpec
from dlrun.experiment.builder.freeze import freeze
from dlrun.models import pretrained
from dlrun.models.pretrained import Torchvision, skip_trained_weights

pytestmark = pytest.mark.slow


class Models:
    """torchvision.models, imported when a test uses it: it takes seconds, and the fast suite collects this file."""

    def __getattr__(self, name: str) -> Any:
        # pytest asks each global of a module whether it is a fixture.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.module(), name)

    def module(self) -> Any:
        from torchvision import models

        return models


models = Models()

Make = Callable[..., DataSpec]

SMALLEST = {  # of each family the side that is advised, or one that is known to work
    "alexnet": 64,
    "vgg11": 32,
    "resnet18": 8,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "squeezenet1_1": 28,
    "densenet121": 32,
    "googlenet": 28,
    "inception_v3": 75,
    "shufflenet_v2_x0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mnasnet0_5": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "regnet_x_400mf": 8,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "vit_b_16": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "maxvit_t": 224,
}


@functools.cache
def source_net(name: str) -> Any:
    """A net as torchvision makes it, for tests that only read its weights."""
    return models.get_model(name, **({"init_weights": True} if name in ("googlenet", "inception_v3") else {}))


@pytest.fixture
def narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vgg whose hidden layers behind the features have 8 units: 4,096 are 120 million weights for every net."""
    from torchvision.models import vgg

    class Narrow(vgg.VGG):  # type: ignore[misc]
        def __init__(self, features: nn.Module, num_classes: int = 1000, **settings: Any) -> None:
            # The wide layers are thrown away, so they get no memory.
            with torch.device("meta"):
                super().__init__(nn.Identity(), num_classes, **settings)
            self.features = features
            for i, inputs, outputs in ((0, 512 * 7 * 7, 8), (3, 8, 8), (6, 8, num_classes)):
                self.classifier[i] = nn.Linear(inputs, outputs)

    monkeypatch.setattr(vgg, "VGG", Narrow)


@pytest.fixture
def publish_weights(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[dict[str, Any]]]:
    """Make torchvision's download yield the weights of a net; the list collects how it was asked for."""

    def publish(net: nn.Module) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def download(url: str, **settings: Any) -> dict[str, Tensor]:
            calls.append(settings)
            return net.state_dict()

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
        return calls

    return publish


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "side"), SMALLEST.items())
def test_each_family_trains_saves_and_loads(name: str, side: int, image_spec: Make, tmp_path: Path) -> None:
    net = Torchvision(image_spec(1, side, side, outputs=7), name)
    x = torch.randn(2, 1, side, side)
    output = net(x)
    assert output.shape == (2, 7)
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.eval()
    torch.save(net, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(again(x), net(x))


def test_every_name_is_built(image_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A net of each family answers above; of all the last layer is looked at, without values in the weights.

    Whether the images fit depends on the family; of a vit also on the patches that its name stands for.
    """
    check_image = pretrained._check_image
    for name in vars(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    names = models.list_models(module=models.module())
    assert len(names) > 70
    for name in names:
        if name == "regnet_y_128gf":  # takes 3 GB, which a test machine may not have
            continue
        monkeypatch.setattr(pretrained, "_check_image", check_image if "vit" in name else lambda *_: None)
        with torch.device("meta"):
            net = Torchvision(image_spec(3, 224, 224, outputs=7), name)
        heads = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        last = heads[-1]
        assert (last.out_features if isinstance(last, nn.Linear) else last.out_channels) == 7, name


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (2, 30, 26), (4, 8, 8)])
def test_default_fits_channels_and_sizes(shape: tuple[int, ...], image_spec: Make) -> None:
    net = Torchvision(image_spec(*shape))
    assert net(torch.randn(2, *shape)).shape == (2, 10)


def test_untrained_net_is_the_one_of_torchvision(image_spec: Make) -> None:
    torch.manual_seed(0)
    net = Torchvision(image_spec(3, 32, 32)).eval()
    torch.manual_seed(0)
    expected = models.resnet18(num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(x), expected(x))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_off(name: str, image_spec: Make) -> None:
    with torch.device("meta"):
        net = Torchvision(image_spec(3, 96, 96), name).train()
        assert net(torch.zeros(2, 3, 96, 96)).shape == (2, 10)
    assert not any("aux" in key.lower() for key in net.state_dict())


@pytest.mark.parametrize(
    ("name", "shape", "advised"),
    [
        ("vgg11", (1, 28, 28), 32),
        ("alexnet", (3, 32, 32), 64),
        ("inception_v3", (3, 64, 64), 75),
        ("maxvit_t", (3, 64, 64), 224),
        ("vit_b_16", (1, 28, 28), 32),
        ("vit_b_16", (1, 32, 64), 32),
        ("densenet121", (3, 40, 16), 32),
    ],
)
def test_image_that_does_not_fit_gets_a_size_to_type(
    name: str, shape: tuple[int, ...], advised: int, image_spec: Make
) -> None:
    with pytest.raises(MisfitError, match=rf"model\.name={name} .*type data\.image_size={advised}\."):
        Torchvision(image_spec(*shape), name)
    with torch.device("meta"):
        assert Torchvision(image_spec(shape[0], advised, advised), name)


@pytest.mark.parametrize(("side", "inputs"), [(32, 512), (63, 512), (64, 25088)])
def test_an_untrained_vgg_has_a_small_head_for_small_images(side: int, inputs: int, image_spec: Make) -> None:
    with torch.device("meta"):
        net = Torchvision(image_spec(3, side, side), "vgg11")
        assert net(torch.zeros(2, 3, side, side)).shape == (2, 10)
    assert net.state_dict()["net.classifier.0.weight"].shape[1] == inputs


def test_unknown_names_end_in_a_sentence(image_spec: Make) -> None:
    with pytest.raises(RequestError, match=r"model\.name=resnet19 .*did you mean .*resnet18"):
        Torchvision(image_spec(), "resnet19")
    with pytest.raises(RequestError, match=r"model\.name=fcn_resnet50 is unknown"):  # segments, not classifies
        Torchvision(image_spec(), "fcn_resnet50")
    with pytest.raises(RequestError, match=r"model\.weights=default .*did you mean DEFAULT\?.*IMAGENET1K_V1, .*null"):
        Torchvision(image_spec(), "resnet18", "default")


def test_trained_weights_are_taken_and_the_last_layer_is_new(publish_weights: Any, image_spec: Make) -> None:
    source = models.resnet18()
    calls = publish_weights(source)
    net = Torchvision(image_spec(3, 32, 32), "resnet18", "IMAGENET1K_V1")
    trained, ours = source.state_dict(), net.net.state_dict()
    assert {key for key in ours if not torch.equal(ours[key], trained[key])} == {"fc.weight", "fc.bias"}
    assert ours["fc.weight"].shape == (10, 512)
    assert calls[0]["weights_only"] is True
    assert calls[0]["check_hash"] is True


@pytest.mark.parametrize("channels", [1, 4])
def test_trained_first_layer_answers_gray_as_before(channels: int, publish_weights: Any, image_spec: Make) -> None:
    source = models.resnet18()
    publish_weights(source)
    net = Torchvision(image_spec(channels, 32, 32), "resnet18", "DEFAULT")
    gray = torch.randn(2, 1, 32, 32)
    conv: nn.Module = net.net.conv1  # type: ignore[assignment]
    torch.testing.assert_close(
        conv(gray.expand(2, channels, 32, 32)), source.conv1(gray.expand(2, 3, 32, 32)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "side"),
    [("squeezenet1_1", 32), ("googlenet", 32), pytest.param("inception_v3", 75, marks=pytest.mark.slow)],
)
def test_trained_nets_of_other_makes(name: str, side: int, publish_weights: Any, image_spec: Make) -> None:
    publish_weights(source_net(name))
    net = Torchvision(image_spec(1, side, side, outputs=7), name, "DEFAULT")
    assert net(torch.randn(2, 1, side, side)).shape == (2, 7)


@pytest.mark.usefixtures("narrow_vgg")
@pytest.mark.parametrize("side", [32, 64, 96])
def test_a_trained_vgg_takes_images_of_any_size(side: int, publish_weights: Any, image_spec: Make) -> None:
    publish_weights(models.vgg11())
    assert Torchvision(image_spec(3, side, side), "vgg11", "DEFAULT")(torch.randn(2, 3, side, side)).shape == (2, 10)


def test_trained_vit_keeps_its_image_size(publish_weights: Any, image_spec: Make) -> None:
    calls = publish_weights(nn.Identity())
    with pytest.raises(MisfitError, match=r"model\.name=vit_b_16 .* 32x32 pixels: type data\.image_size=384\."):
        Torchvision(image_spec(3, 32, 32), "vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert not calls, "the size is checked before anything is downloaded"


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), pickle.UnpicklingError("x")],
)
def test_failing_download_ends_in_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, image_spec: Make
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(RequestError, match=r"model\.weights=.* of resnet18 .*type model\.weights=null"):
        Torchvision(image_spec(), "resnet18", "DEFAULT")


def test_file_that_runs_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_spec: Make) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    file = io.BytesIO()
    torch.save({"fc.bias": Attack()}, file)
    url = models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rpartition("/")[2]).write_bytes(file.getvalue())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        RequestError, match=r"model\.weights=IMAGENET1K_V1 of resnet18 cannot be loaded .*[Ww]eights.only"
    ):
        Torchvision(image_spec(), "resnet18", "DEFAULT")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def save_weights(tmp_path: Path) -> Callable[..., str]:
    """`saved(net)`: a file of a net's weights."""

    def save(held: Any, name: str = "net.pth") -> str:
        torch.save(held.state_dict() if isinstance(held, nn.Module) else held, tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.usefixtures("narrow_vgg")
@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 32), ("densenet121", 32), ("googlenet", 32), ("vgg11", 32), ("mobilenet_v2", 32)]
)
def test_a_file_of_weights_gives_the_net_that_their_name_gives(
    name: str, side: int, publish_weights: Any, save_weights: Any, image_spec: Make
) -> None:
    source = models.vgg11() if name == "vgg11" else source_net(name)
    publish_weights(source)
    by_name = Torchvision(image_spec(1, side, side, outputs=7), name, "DEFAULT")
    by_file = Torchvision(image_spec(1, side, side, outputs=7), name, save_weights(source))
    head = tuple(f"net.{by_name.head}.{end}" for end in ("weight", "bias"))
    one, two = by_name.state_dict(), by_file.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one if key not in head)
    by_file.load_state_dict({**two, **{key: one[key] for key in head}})
    x = torch.randn(2, 1, side, side)
    assert torch.equal(by_name.eval()(x), by_file.eval()(x))


def test_files_of_other_makes(save_weights: Any, image_spec: Make) -> None:
    trained = models.resnet18(num_classes=3).state_dict()
    for held in (
        {f"module.{key}": value for key, value in trained.items()},
        {"state_dict": trained, "epoch": 3},
        {key: value for key, value in trained.items() if "batches_tracked" not in key},
    ):
        net = Torchvision(image_spec(3, 32, 32), "resnet18", save_weights(held))
        assert torch.equal(net.state_dict()["net.layer4.1.conv2.weight"], trained["layer4.1.conv2.weight"])
    old = {
        key.replace("norm1", "norm.1")
        .replace("conv1", "conv.1")
        .replace("norm2", "norm.2")
        .replace("conv2", "conv.2"): v
        for key, v in source_net("densenet121").state_dict().items()
    }
    assert Torchvision(image_spec(3, 32, 32), "densenet121", save_weights(old))


def test_a_file_that_is_not_of_the_net_is_refused(save_weights: Any, tmp_path: Path, image_spec: Make) -> None:
    resnet = source_net("resnet18").state_dict()
    lacking = {key: value for key, value in resnet.items() if not key.startswith("layer3.0")}
    (tmp_path / "junk.pth").write_bytes(b"junk")
    for weights, message in (
        (
            save_weights(models.resnet34(), "34.pth"),
            r"34.pth is not of model.name=resnet18: it holds layer1.2.conv1.weight, ",
        ),
        (
            save_weights(lacking, "lacking.pth"),
            "lacking.pth is not of model.name=resnet18: it lacks layer3.0.conv1.weight, ",
        ),
        (
            save_weights({**resnet, "conv1.weight": torch.zeros(64, 1, 7, 7)}, "other.pth"),
            "size mismatch for conv1.weight",
        ),
        (
            save_weights({"format_version": 1, "model": resnet}, "run.pt"),
            r"run.pt is a checkpoint of dlrun; type init_from=",
        ),
        (save_weights([1, 2], "list.pth"), "holds no weights by name"),
        (save_weights({"a": 1}, "numbers.pth"), "holds no weights by name"),
        (str(tmp_path / "junk.pth"), r"junk.pth cannot be loaded \("),
        (str(tmp_path / "nowhere.pth"), r"nowhere.pth: there is no such file; type its path, or one of IMAGENET1K_V1"),
        ("IMAGENET", r"model.weights=IMAGENET is unknown \(did you mean IMAGENET1K_V1\?\).*<file>"),
    ):
        with pytest.raises(RequestError, match=message):
            Torchvision(image_spec(3, 32, 32), "resnet18", weights)


def test_a_frozen_backbone_stays_as_it_is_while_the_head_learns(save_weights: Any, image_spec: Make) -> None:
    net = Torchvision(image_spec(1, 32, 32, outputs=5), "resnet18", save_weights(models.resnet18()))
    freeze(net, "backbone")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    learning = [p for p in net.parameters() if p.requires_grad]
    assert [tuple(p.shape) for p in learning] == [(5, 512), (5,)]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    x = 3 + torch.randn(8, 1, 32, 32)
    for _ in range(2):
        loss = nn.functional.cross_entropy(net.train()(x), torch.arange(8) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"net.fc.weight", "net.fc.bias"}  # no statistic of batch norm either
    assert net.training
    assert torch.equal(net.train()(x), net.eval()(x))


@pytest.mark.usefixtures("narrow_vgg")
def test_nothing_frozen_is_dropped_out_and_the_head_is(save_weights: Any, image_spec: Make) -> None:
    net = Torchvision(image_spec(3, 64, 64), "vgg11", save_weights(models.vgg11()))
    freeze(net, "backbone")
    net.train()
    dropouts = [m for m in net.modules() if isinstance(m, nn.Dropout)]
    assert dropouts
    assert not any(m.training for m in dropouts)
    assert net.net.get_submodule(net.head).training
    assert not any(m.training for m in net.eval().modules())
    assert Torchvision(image_spec(3, 64, 64), "vgg11").train().net.training  # without freeze as ever


@pytest.mark.usefixtures("narrow_vgg")
@pytest.mark.parametrize("name", ["resnet18", "vgg11", "googlenet"])
def test_weights_that_a_checkpoint_brings_are_not_read(
    name: str, publish_weights: Any, save_weights: Any, image_spec: Make
) -> None:
    source = models.vgg11() if name == "vgg11" else source_net(name)
    calls = publish_weights(source)
    trained = Torchvision(image_spec(1, 32, 32), name, "DEFAULT")
    assert calls
    calls.clear()
    for weights in ("DEFAULT", "gone.pth"):
        with skip_trained_weights():
            again = Torchvision(image_spec(1, 32, 32), name, weights)
        again.load_state_dict(trained.state_dict())
        x = torch.randn(2, 1, 32, 32)
        assert torch.equal(again.eval()(x), trained.eval()(x))
    assert not calls


def test_broken_torchvision_is_explained(monkeypatch: pytest.MonkeyPatch, image_spec: Make) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(RequestError, match="install torch and torchvision together"):
        Torchvision(image_spec())
