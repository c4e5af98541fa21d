"""What TensorBoard and metrics.jsonl hold, read back from the files."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import get_experiment, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import GetExperimentRequest, ListSessionGroupsRequest
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor, nn

from dlrun.core import files
from dlrun.core.files import DiskProblems
from dlrun.core.yaml import flatten
from dlrun.runs.folder import reopen
from dlrun.runs.logger import RunLogger, open_logger, read_rows
from dlrun.runs.loggers.base import LoggedRun
from dlrun.runs.tensorboard import EventFile, _compute_checksum

QUIET = ("tracking.graph=false", "figures=false")


def events(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    tags = events(folder)
    return {tag: [(e.step, e.value) for e in tags.Scalars(tag)] for tag in tags.Tags()["scalars"]}


def strict(line: str) -> Any:
    """JSON as every reader takes it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(line, parse_constant=refuse)


def row(epoch: int, **values: float) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch} | {k.replace("_", "/"): v for k, v in values.items()}


def test_rows_and_events_say_the_same(tmp_path: Path) -> None:
    rows = [row(1, train_loss=0.5, val_loss=0.25, lr=0.5), row(2, train_loss=0.125, val_loss=2.0, lr=0.0625)]
    with open_logger(LoggedRun(tmp_path)) as tracker:
        for r in rows:
            tracker.log_epoch(r, {"epoch_seconds": 0.5})
            assert read_rows(tmp_path)[-1] == r  # on the disk before log_epoch returns
    assert read_rows(tmp_path) == rows
    assert scalars(tmp_path) == {
        "train/loss": [(10, 0.5), (20, 0.125)],
        "val/loss": [(10, 0.25), (20, 2.0)],
        "lr": [(10, 0.5), (20, 0.0625)],
        "time/epoch_seconds": [(10, 0.5), (20, 0.5)],
    }


@pytest.mark.slow
def test_a_run_has_the_tags_of_its_rows_and_no_others(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    outcome = dlrun("trainer.epochs=2", "data.limit_batches=3", "trainer.log_every_steps=1", *QUIET)
    tags = scalars(tmp_path / outcome.folder)
    keys = set(outcome.rows[0]) - {"epoch", "step"}
    test = {tag for tag in outcome.result["metrics"] if tag.startswith("test/")}
    timings = {"time/epoch_seconds", "time/samples_per_second"}
    final = {f"hparam/{tag}" for tag in outcome.result["metrics"]}
    assert set(tags) == keys | test | timings | final | {"train/loss_step", "train/grad_norm"}
    for key in keys:
        assert {step: value for step, value in tags[key] if step in (3, 6)} == approx(
            {r["step"]: r[key] for r in outcome.rows}
        )
    assert [step for step, _ in tags["train/loss_step"]] == [1, 2, 3, 4, 5, 6]
    assert all(value != -1 for tag in tags.values() for _, value in tag)
    for tag, value in outcome.result["metrics"].items():
        assert dict(tags[f"hparam/{tag}"]) == approx({6: value})
    children = sorted(p.name for p in (tmp_path / outcome.folder).iterdir() if p.is_dir())
    assert children == [".hydra", "checkpoints"]  # no sub-run, which TensorBoard would show as a run of its own


def approx(wanted: dict[int, float]) -> Any:
    """Events hold 32 bits."""
    return pytest.approx(wanted, rel=1e-6)


def plugin(folder: Path, tag: str) -> Any:
    metadata = events(folder).SummaryMetadata(f"_hparams_/{tag}")
    return HParamsPluginData.FromString(metadata.plugin_data.content)


def test_hyperparameters_are_readable_with_their_metrics(tmp_path: Path) -> None:
    settings = {"optimizer": {"lr": 0.1, "nesterov": False}, "model": "mlp", "sizes": [4, 2], "seed": 3}
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_hparams(settings, {"val/loss": 0.25, "val/r2": math.nan}, step=40)
    hparams = plugin(tmp_path, "session_start_info").session_start_info.hparams
    hyperparameters = {k: getattr(v, v.WhichOneof("kind")) for k, v in hparams.items()}
    assert hyperparameters == {
        "optimizer.lr": 0.1,
        "optimizer.nesterov": False,
        "model": "mlp",
        "sizes": "[4, 2]",
        "seed": 3,
    }
    metrics = plugin(tmp_path, "experiment").experiment.metric_infos
    assert [m.name.tag for m in metrics] == ["hparam/val/loss"]
    assert scalars(tmp_path) == {"hparam/val/loss": [(40, 0.25)]}
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.slow
def test_the_table_of_hyperparameters_begins_with_what_a_sweep_varies(
    dlrun: Callable[..., Any], tmp_path: Path
) -> None:
    """As TensorBoard itself reads the folder: columns by the description of one run, rows by the names of folders."""
    words = ("data=line", "model=linear", "optimizer=sgd", "trainer.epochs=1", *QUIET)
    swept = ("optimizer.lr=0.1,0.01", "seed=range(6)")
    assert dlrun("-m", *words, *swept, "sweep.dir=s").code == 0
    columns, rows = read_table(tmp_path / "s")
    assert columns[:2] == ["optimizer.lr", "seed"]
    assert columns[2:] == sorted(columns[2:])
    assert {"data", "optimizer", "trainer.epochs"} < set(columns)
    assert [int(row.partition("_")[0]) for row in rows] == list(range(12))
    assert rows[0] == "00_optimizer.lr=0.1,seed=0"

    # A resumed sweep adds its points behind the others.
    assert dlrun("resume", "s", "seed=7").code == 0
    _, rows = read_table(tmp_path / "s")
    assert rows[-2:] == ["12_optimizer.lr=0.1,seed=7", "13_optimizer.lr=0.01,seed=7"]

    # A run alone begins with what its command line has set.
    assert dlrun(*words, "hydra.run.dir=alone").code == 0
    columns, _ = read_table(tmp_path / "alone")
    assert columns[:4] == ["data", "model", "optimizer", "trainer.epochs"]


def read_table(folder: Path) -> tuple[list[str], list[str]]:
    """Columns and rows of the HParams page, in its order."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(folder))
    context = Context(TBContext(data_provider=provider))
    request = RequestContext()
    experiment = get_experiment.Handler(request, context, "", GetExperimentRequest()).run()
    query = ListSessionGroupsRequest(allowed_statuses=[0, 1, 2, 3], slice_size=100)
    groups = list_session_groups.Handler(request, context, "", query).run().session_groups
    return [column.name for column in experiment.hparam_infos], [group.name for group in groups]


def test_what_is_not_finite_is_null_in_strict_json(tmp_path: Path) -> None:
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_epoch(row(1, train_loss=math.nan, val_loss=math.inf, lr=0.5), {})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert strict(line) == {"epoch": 1, "step": 10, "train/loss": None, "val/loss": None, "lr": 0.5}
    assert math.isnan(scalars(tmp_path)["train/loss"][0][1])


LARGE_DATA = """
import torch
from dlrun.data.spec import DataSpec, Split, Splits

def make():
    x = torch.arange(40.0).view(20, 2) / 40
    bad = x[:4].clone()
    bad[0, 0] = 3e38  # a finite number, whose square is not
    return Splits(Split((x,), x[:, :1]), Split((bad,), bad[:, :1]), None, DataSpec("vector", (2,), "regression", 1))
"""


def test_a_validation_metric_that_is_not_finite_does_not_end_the_run(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "large_data.py").write_text(LARGE_DATA)
    outcome = dlrun("data._target_=large_data.make", "model=linear", "trainer.epochs=2", *QUIET)
    assert outcome.code == 0, outcome.err
    assert outcome.result["status"] == "completed"
    assert outcome.result["metrics"]["val/loss"] is None
    assert outcome.result["metrics"]["train/loss"] > 0


@pytest.mark.slow
def test_a_resumed_writer_takes_the_place_of_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with open_logger(LoggedRun(tmp_path)) as tracker:
        for step in range(1, 6):
            tracker.log_step(step, {"loss": float(step)})
    with open_logger(LoggedRun(tmp_path, resumed_step=3)) as tracker:
        for step in (4, 5, 6):
            tracker.log_step(step, {"loss": 10.0 * step})
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0)]}


@pytest.mark.parametrize(
    ("tail", "epoch", "left"),
    [("", 2, [1, 2]), ("", 3, [1, 2, 3]), ("", 0, []), ('{"epoch": 4, "st', 4, [1, 2, 3]), ("\n", 2, [1, 2])],
)
def test_rows_after_the_checkpoint_are_cut_and_a_torn_line_with_them(
    tail: str, epoch: int, left: list[int], tmp_path: Path
) -> None:
    lines = [json.dumps(row(epoch, train_loss=0.1)) + "\n" for epoch in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + tail)
    assert reopen(tmp_path, epoch, {}) == []
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[: len(left)])
    assert os.listdir(tmp_path) == ["metrics.jsonl"]  # noqa: PTH208


@pytest.mark.slow
def test_the_events_of_the_end_are_dropped_and_written_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        reopen(tmp_path, 3, {})
        with open_logger(LoggedRun(tmp_path, resumed_step=10)) as tracker:
            tracker.log_step(11, {"train/loss": value})
            tracker.start_final_events()
            tracker.log_step(11, {"test/loss": value})
    assert scalars(tmp_path) == {"train/loss": [(11, 2.0)], "test/loss": [(11, 2.0)]}


def test_there_may_be_no_rows_yet(tmp_path: Path) -> None:
    assert reopen(tmp_path, 3, {}) == []
    assert read_rows(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_text_is_shown(tmp_path: Path) -> None:
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_text("config", "    lr: 0.1")
    (event,) = events(tmp_path).Tensors("config/text_summary")
    assert event.tensor_proto.string_val == [b"    lr: 0.1"]


@pytest.mark.parametrize("floats", [False, True])
def test_images_are_shown_with_their_pixels(floats: bool, tmp_path: Path) -> None:
    from matplotlib.image import imread

    pixels = torch.randint(0, 256, (3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_image("visuals/x", pixels.float() / 255 if floats else pixels, 7)
    (event,) = events(tmp_path).Images("visuals/x")
    assert (event.step, event.height, event.width) == (7, 4, 6)
    shown = torch.from_numpy(imread(io.BytesIO(event.encoded_image_string))[..., :3] * 255).round()
    assert (shown - pixels.permute(1, 2, 0)).abs().max() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_of_a_model_is_shown_and_the_model_left_as_it_was(training: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train(training)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(5)
    with open_logger(LoggedRun(tmp_path)) as tracker:
        assert tracker.log_graph(model, (torch.ones(2, 3),)) is None
    assert torch.rand(1).item() == torch.rand(1, generator=torch.Generator().manual_seed(5)).item()
    assert model.training == training
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert events(tmp_path).Tags()["graph"]
    assert any("Linear[0]" in node.name for node in _graph(tmp_path).node)


def _graph(folder: Path) -> Any:
    return events(folder).Graph()


def test_a_graph_that_cannot_be_drawn_is_a_sentence(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("no such thing")

    with open_logger(LoggedRun(tmp_path)) as tracker:
        reason = tracker.log_graph(Odd(), (torch.ones(1),))
    assert reason is not None
    assert reason.startswith("KeyError: ")


def test_histograms_are_of_every_parameter(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_histograms(model, 1)
    assert sorted(events(tmp_path).Tags()["histograms"]) == ["weights/bias", "weights/weight"]


def test_everything_is_on_the_disk_even_after_an_exception(tmp_path: Path) -> None:
    def fails() -> None:
        with open_logger(LoggedRun(tmp_path)) as tracker:
            for step in range(50):
                tracker.log_step(step, {"loss": 1.0})
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert len(scalars(tmp_path)["loss"]) == 50


def test_event_files_of_one_second_sort_by_age(tmp_path: Path) -> None:
    paths = [EventFile(tmp_path, "", DiskProblems()).file.path for _ in range(12)]
    assert sorted(paths) == paths
    assert len({path.name for path in paths}) == 12


def test_a_full_disk_ends_neither_rows_nor_events_and_both_are_made_good(tmp_path: Path) -> None:
    import resource

    messages: list[str] = []
    unsaved, before = DiskProblems(messages.append), resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_logger(LoggedRun(tmp_path, disk_problems=unsaved)) as tracker:
        for epoch in range(1, 31):
            full = 10 <= epoch < 20
            resource.setrlimit(resource.RLIMIT_FSIZE, (400 if full else before[0], before[1]))
            try:
                tracker.log_epoch(row(epoch, train_loss=0.5 / epoch), {})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert tracker.rows[-1]["epoch"] == epoch
            assert set(unsaved.reasons) == ({"metrics.jsonl", "TensorBoard's events"} if full else set())
    assert len(messages) == 2
    assert read_rows(tmp_path) == tracker.rows
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [10 * epoch for epoch in range(1, 31)]


def test_events_of_short_epochs_are_written_together_and_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FLUSH_SECONDS", 1e9)

    def count_events() -> int:
        return len(scalars(tmp_path)["train/loss"])

    with open_logger(LoggedRun(tmp_path)) as tracker:
        for epoch in (1, 2, 3):
            tracker.log_epoch(row(epoch, train_loss=0.5), {"epoch_seconds": 0.001})
            assert len(read_rows(tmp_path)) == epoch
        # The first one does not wait.
        assert count_events() == 1
        tracker.log_epoch(row(4, train_loss=0.5), {"epoch_seconds": 0.3})
        assert count_events() == 4
        tracker.log_epoch(row(5, train_loss=0.5), {"epoch_seconds": 0.001})
        # Whatever else is logged takes them along.
        tracker.log_text("note", "six")
        assert count_events() == 5
        tracker.log_epoch(row(6, train_loss=0.5), {"epoch_seconds": 0.001})
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == [10, 20, 30, 40, 50, 60]


def test_rows_in_memory_are_what_would_be_read(tmp_path: Path) -> None:
    with open_logger(LoggedRun(tmp_path)) as tracker:
        tracker.log_epoch(row(1, train_loss=math.inf, lr=0.1), {})
        assert math.isnan(tracker.rows[0]["train/loss"])
        assert str(tracker.rows) == str(read_rows(tmp_path))
    with open_logger(LoggedRun(tmp_path)) as tracker:
        assert str(tracker.rows) == str(read_rows(tmp_path))


def test_nested_keys_become_dotted() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}


def test_a_tracker_goes_on_with_the_rows_that_are_there(tmp_path: Path) -> None:
    for epoch in (1, 2):
        tracker = RunLogger(LoggedRun(tmp_path), {})
        tracker.log_epoch(row(epoch, train_loss=0.5), {})
        tracker.close()
    assert [r["epoch"] for r in read_rows(tmp_path)] == [1, 2]


def test_checksums_of_events_are_those_that_tensorboard_computes() -> None:
    for content in (b"", b"a", bytes(range(256)), b"x" * 1000):
        assert _compute_checksum(content) == masked_crc32c(content).to_bytes(4, "little")
