import pytest
import torch
from torch.nn import functional
from torchvision.transforms import v2

from dlrun.core.errors import RequestError
from dlrun.data.augmentation import BatchMix, apply_seeded, build_augment, seed_generator
from dlrun.data.batches import EpochOrder, LoaderBatches, MemoryBatches, Placement
from dlrun.data.folders import image_folder
from dlrun.data.spec import DataSpec, Split
from dlrun.engine.distributed import Distributed
from dlrun.engine.objective import Objective

SHAPE = (3, 16, 16)
IMAGE = torch.arange(3 * 16 * 16).remainder(256).to(torch.uint8).view(SHAPE)
STEPS = ["RandomHorizontalFlip", {"RandomCrop": {"size": 16, "padding": 4}}]


def test_steps_do_what_they_are_named_for():
    flip = build_augment([{"RandomHorizontalFlip": {"p": 1.0}}], SHAPE)
    assert torch.equal(flip(IMAGE), IMAGE.flip(2))


def test_a_function_of_seed_and_index():
    augment = build_augment(STEPS, SHAPE)
    forwards = {i: apply_seeded(augment, IMAGE, 5, i) for i in range(20)}
    backwards = {i: apply_seeded(augment, IMAGE, 5, i) for i in reversed(range(20))}
    assert all(torch.equal(forwards[i], backwards[i]) for i in range(20))
    assert len({image.numpy().tobytes() for image in forwards.values()}) > 10
    assert any(not torch.equal(forwards[i], apply_seeded(augment, IMAGE, 6, i)) for i in range(20))


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    augment = build_augment(STEPS, SHAPE)
    apply_seeded(augment, IMAGE, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            ["RandomHorizontalFlop"],
            "'RandomHorizontalFlop' is no transform.*did you mean 'RandomHorizontalFlip'",
        ),
        (["zzz"], "such as RandomHorizontalFlip"),
        (["functional"], "is no transform"),
        (["InterpolationMode"], "is no transform"),
        ([{"RandomCrop": {"sise": 16}}], "RandomCrop does not take"),
        (["RandomCrop"], "RandomCrop does not take"),
        ([{"Lambda": {"lambd": "print"}}], "not callable"),
        ([{"RandomCrop": {"size": 8}}], r"into \(3, 8, 8\).*data\.image_size=8"),
        ([{"RandomCrop": {"size": 99}}], "fails on an image"),
        ([{"Normalize": {"mean": [0.5], "std": [0.5]}}], "fails on an image"),
        ([7], "7 is neither a name"),
        ([{"RandomCrop": 16}], "neither a name"),
        ([{"RandomHorizontalFlip": None, "RandomVerticalFlip": None}], "neither a name"),
    ],
)
def test_steps_that_cannot_be(steps, words):
    with pytest.raises(RequestError, match=words) as caught:
        build_augment(steps, SHAPE)
    assert str(caught.value).startswith("data.augment")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RandAugment", "TrivialAugmentWide"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_policies_are_torchvisions_own(name, channels, dtype):
    shape = (channels, 16, 16)
    image = IMAGE[:channels] if dtype == torch.uint8 else IMAGE[:channels].float() / 255
    augment = build_augment([name], shape, dtype)
    for index in range(8):
        with seed_generator(f"3,{index}"):
            expected = getattr(v2, name)()(image)
        assert torch.equal(apply_seeded(augment, image, 3, index), expected)


def batches(count, rows=6, classes=3):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.rand(rows, 2, 8, 8, generator=generator)
        yield (images,), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_batches_are_mixed_as_torchvision_does_it(name):
    before = torch.get_rng_state()
    mixing = BatchMix([{name: {"alpha": 0.7}}], 3)
    mixed = list(mixing.mix(batches(5), seed=4, epoch=2, first=10))
    assert torch.equal(torch.get_rng_state(), before)

    objective = Objective(DataSpec("image", (2, 8, 8), "multiclass", 3), loss_args={"label_smoothing": 0.1})
    for number, ((inputs, dominant), ((images,), targets)) in enumerate(zip(mixed, batches(5), strict=True), 10):
        with seed_generator(f"4,2,batch {number}"):
            torch.randint(1, ())
            expected, shares = getattr(v2, name)(alpha=0.7, num_classes=3)(images, targets)
        assert torch.equal(inputs[0], expected)
        assert torch.equal(inputs[1], shares)
        assert torch.equal(dominant, shares.argmax(-1))

        # The loss of soft targets, by hand: each row has two classes, with shares that add up to 1.
        (model_inputs, loss_targets) = mixing.split_inputs(inputs, dominant)
        assert len(model_inputs) == 1
        outputs = torch.randn(6, 3)
        share = compute_mixed_share(name, images, expected)
        one, other = (functional.cross_entropy(outputs, y, label_smoothing=0.1) for y in (targets, targets.roll(1, 0)))
        loss = objective.compute_loss(outputs, loss_targets)
        torch.testing.assert_close(loss, share * one + (1 - share) * other, rtol=1e-4, atol=1e-5)


def compute_mixed_share(name, images, mixed):
    """The share of the first image in each mixed one, measured on the pixels."""
    if name == "CutMix":
        return float((mixed == images).double().mean())
    others = images.roll(1, 0)
    return float(((mixed - others) * (images - others)).sum() / (images - others).square().sum())


def test_an_epoch_of_mixed_batches_is_entered_anywhere():
    mixing = BatchMix(["MixUp", "CutMix"], 3)
    full_epoch = list(mixing.mix(batches(20), 1, 1, 0))
    rest = list(batches(20))[7:]
    for (inputs, targets), (other_inputs, other_targets) in zip(
        mixing.mix(iter(rest), 1, 1, 7), full_epoch[7:], strict=True
    ):
        assert torch.equal(inputs[0], other_inputs[0])
        assert torch.equal(inputs[1], other_inputs[1])
        assert torch.equal(targets, other_targets)
    assert not torch.equal(full_epoch[0][0][0], next(mixing.mix(batches(1), 1, 2, 0))[0][0])

    # Both are drawn: CutMix leaves pixels as they were.
    are_unmixed = [
        bool((inputs[0] == images).any()) for (inputs, _), ((images,), _) in zip(full_epoch, batches(20), strict=True)
    ]
    assert 3 < sum(are_unmixed) < 17


@pytest.mark.parametrize("count", [2, 3, 7])
def test_processes_mix_the_rows_that_one_does(count):
    spec = DataSpec("image", (2, 8, 8), "multiclass", 3)
    split = Split((torch.rand(22, 2, 8, 8),), torch.arange(22) % 3)
    batches = MemoryBatches(split, EpochOrder(22, 6, shuffle=True), Placement(torch.device("cpu"), torch.float32, spec))
    mixing = BatchMix(["MixUp", "CutMix"], 3)
    reference = list(mixing.mix(batches.epoch(1), 1, 1, 0))

    parts = []
    for number in range(count):
        ranks = Distributed()
        ranks.rank, ranks.world_size = number, count
        shards = batches.epoch(1, pick=ranks.shard_batch_for_mixing)
        parts.append(list(mixing.mix(shards, 1, 1, 0, is_part=True)))

    for (inputs, targets), *pieces in zip(reference, *parts, strict=True):
        # A process without a row has no shares of classes either.
        filled = [piece for piece in pieces if len(piece[1])]
        assert torch.equal(torch.cat([piece[0][0] for piece in filled]), inputs[0])
        assert torch.equal(torch.cat([piece[0][1] for piece in filled]), inputs[1])
        assert torch.equal(torch.cat([piece[1] for piece in filled]), targets)


def test_rows_that_are_drawn_again_are_augmented_anew(tmp_path, formats):
    formats.write_folder(tmp_path, {"a": 3, "b": 1}, (16, 16))
    augment = [{"RandomCrop": {"size": 16, "padding": 8}}]
    splits = image_folder(str(tmp_path), image_size=16, augment=augment, test_fraction=0)
    weights = torch.tensor([1.0, 1.0, 1.0, 9.0], dtype=torch.float64)
    order = EpochOrder(4, 4, shuffle=True, weights=weights)
    place = Placement(torch.device("cpu"), torch.float32, splits.spec)
    loader = LoaderBatches(splits.train, order, place, 0)
    for epoch in range(1, 9):
        ((inputs, targets),) = loader.epoch(epoch)
        rare = inputs[0][targets == 1]
        assert len(torch.unique(rare, dim=0)) == len(rare)
        ((again, _),) = loader.epoch(epoch)
        assert torch.equal(inputs[0], again[0])


RUN = ("data=image_folder", "data.path=photos", "data.image_size=16", "data.batch_size=5", "trainer.epochs=2")
QUIET = ("tracking.graph=false", "figures=false")


@pytest.mark.slow
def test_a_run_with_mixed_batches_is_the_same_from_memory_and_workers(dlrun, tmp_path, formats):
    formats.write_folder(tmp_path / "photos", {"a": 9, "b": 8})
    words = (*RUN, *QUIET, "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", "data.augment=[MixUp,CutMix]")
    memory = dlrun(*words, "model=cnn")
    assert memory.code == 0, memory.err
    assert "in memory" in memory.out
    read = dlrun(*words, "model=cnn", "data.in_memory=false", "data.num_workers=0")
    assert read.code == 0, read.err
    assert read.result["weights_sha256"] == memory.result["weights_sha256"]
    assert read.rows[-1]["train/loss"] == memory.rows[-1]["train/loss"]
    plain = dlrun(*words[:-1], "model=cnn")
    assert plain.result["weights_sha256"] != memory.result["weights_sha256"]
    assert "the same as recorded in training" in dlrun("eval", str(memory.folder), "figures=false").out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("data.augment=[MixUp]", "data.task=binary"), "this task is binary; type data.task=multiclass"),
        (("data.augment=[CutMix]", "task.class_weights=balanced"), "type data.sampler=balanced in its place"),
        (("data.augment=[MixUp]", "task.loss=focal"), "task.loss=focal takes none; leave one of the two out"),
        (("data.augment=[{MixUp:{alpa:1}}]",), "MixUp does not take {'alpa': 1}"),
        (("data.augment=[RandAugment]", "data.loader=memory"), "type data.in_memory=true to decode the files once"),
    ],
)
def test_what_cannot_be_mixed(words, sentence, dlrun, tmp_path, formats):
    formats.write_folder(tmp_path / "photos", {"a": 4, "b": 4})
    outcome = dlrun(*RUN, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err
    assert not (tmp_path / "outputs").exists()
