"""The branches for a GPU on a machine without one: what they train, resume and evaluate is what the CPU does."""

import contextlib
import copy
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlrun.engine.device import get_rng_state
from dlrun.engine.state import TrainState

QUIET = ("tracking.graph=false", "figures=false")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("data=digits", "model=cnn", "device.deterministic=true", "device.tf32=false"),
        ("data=digits", "model=mlp", "model.dropout=0.3", "device.precision=bf16", "trainer.ema_decay=0.9"),
        ("data=digits", "model=mlp", "optimizer=sgd", "device.precision=fp16", "trainer.grad_clip_norm=1"),
    ],
)
def test_a_run_is_that_of_the_cpu(dlrun: Callable[..., Any], pretended: Any, words: tuple[str, ...]) -> None:
    words = (*words, *QUIET, "trainer.epochs=2", "optimizer.lr=0.01")
    expected = dlrun(*words, "device=cpu", "hydra.run.dir=cpu")
    assert expected.code == 0, expected.err
    with pretended.pretend_cuda():
        outcome = dlrun(*words, "device=cuda", "hydra.run.dir=cuda")
        assert outcome.code == 0, outcome.err
        assert "device      cuda:0" in outcome.out
        evaluated = dlrun("eval", "cuda", "device=cuda")
    assert evaluated.code == 0, evaluated.err
    assert outcome.result["weights_sha256"] == expected.result["weights_sha256"]
    assert outcome.result["metrics"] == pytest.approx(expected.result["metrics"])

    # What it saved is of use where there is no GPU.
    refused = dlrun("eval", "cuda")
    assert refused.code == 2
    assert "type device=auto" in refused.err
    assert dlrun("eval", "cuda", "device=auto").code == 0
    assert dlrun("export", "cuda", "format=safetensors").code == 0
    assert dlrun("resume", "cuda", "trainer.epochs=3", "device=cpu").code == 0


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_the_numbers_of_the_gpu(
    dlrun: Callable[..., Any], pretended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("data=blobs", "model=mlp", "model.dropout=0.3", "trainer.epochs=3", *QUIET, "device=cuda")
    with pretended.pretend_cuda():
        unbroken = dlrun(*words, "hydra.run.dir=unbroken")
        assert unbroken.code == 0, unbroken.err

        real, calls = TrainState.log_model_metrics, []

        def stop_in_the_sixth_step(state: TrainState) -> None:
            calls.append(state.progress.step)
            if len(calls) == 6:
                signal.raise_signal(signal.SIGTERM)
            real(state)

        with monkeypatch.context() as patched:
            patched.setattr(TrainState, "log_model_metrics", stop_in_the_sixth_step)
            assert dlrun(*words, "hydra.run.dir=stopped").code == 143
        saved = torch.load(Path("stopped/checkpoints/last.pt"), weights_only=True)
        assert len(saved["rng"]["cuda"]) == 1
        assert dlrun("resume", "stopped").code == 0

    results = [json.loads(Path(name, "result.json").read_text()) for name in ("unbroken", "stopped")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


@pytest.mark.slow
def test_pictures_that_are_read_by_workers_are_copied_on_a_stream_of_their_own(
    dlrun: Callable[..., Any], pretended: Any, tmp_path: Path
) -> None:
    from PIL import Image

    for name, grey in (("dark", 20), ("light", 230)):
        for i in range(6):
            path = tmp_path / "pictures" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), grey + i).save(path)
    words = ("data=image_folder", "data.path=pictures", "data.in_memory=false", "data.image_size=8", "model=mlp")
    with pretended.pretend_cuda():
        before = pretended.Stream.waits
        outcome = dlrun(*words, *QUIET, "trainer.epochs=2", "data.num_workers=1", "device=cuda")
        assert outcome.code == 0, outcome.err
        # One a batch at least: training and validation rows of two epochs.
        assert pretended.Stream.waits - before >= 4


@pytest.mark.slow
def test_a_sweep_is_stacked_and_reported(dlrun: Callable[..., Any], pretended: Any) -> None:
    words = (
        "-m",
        "data=blobs",
        "model=mlp",
        "model.dropout=0.2",
        "trainer.epochs=2",
        "seed=range(4)",
        "sweep.stack=on",
    )
    expected = dlrun(*words, "device=cpu", "sweep.dir=cpu")
    assert expected.code == 0, expected.err
    with pretended.pretend_cuda():
        outcome = dlrun(*words, "device=cuda", "sweep.dir=cuda")
    assert outcome.code == 0, outcome.err
    assert "4 runs train as one stack" in outcome.out

    hashes = []
    for sweep in ("cpu", "cuda"):
        results = [json.loads(path.read_text()) for path in sorted(Path(sweep).glob("*/result.json"))]
        hashes.append([result["weights_sha256"] for result in results])
    assert len(hashes[0]) == 4
    assert hashes[0] == hashes[1]


def test_a_member_that_was_saved_on_a_cpu_goes_on_with_the_generator_of_the_gpu(pretended: Any) -> None:
    from dlrun.engine.stack.member import Member

    state: Any = SimpleNamespace(model=torch.nn.Linear(1, 1), get_parameter_values=dict)
    saved_on_cpu = get_rng_state()
    member = Member(state, saved_on_cpu)
    member.device = torch.device("cuda", 1)
    with pretended.pretend_cuda(2):
        member.set_rng_state(saved_on_cpu)
        saved = member.get_rng_state()
        assert len(saved["cuda"]) == 2
        assert torch.equal(saved["cuda"][1], member.generator.get_state())

        drawn = torch.rand(3, generator=member.generator)
        member.set_rng_state(saved)
        assert torch.equal(torch.rand(3, generator=member.generator), drawn)


@pytest.mark.parametrize(
    ("choice", "index"),
    [({"name": "auto"}, 2), ({"name": "cuda"}, 2), ({"name": "cuda", "index": 0}, 0), ({"name": "cpu"}, None)],
)
def test_a_job_takes_the_card_that_is_handed_out(choice: dict[str, Any], index: int | None) -> None:
    from dlrun.config.request import from_command_line
    from dlrun.sweep.process_engine import _assign_gpu

    (request,) = from_command_line([f"device.{key}={value}" for key, value in choice.items()])
    assert _assign_gpu(request, 2).config["device"]["index"] == index
    assert _assign_gpu(request, None).config["device"] == request.config["device"]


@pytest.mark.parametrize(("cards", "jobs"), [(1, 1), (3, 3)])
def test_jobs_of_a_sweep_share_the_cards_out(pretended: Any, cards: int, jobs: int) -> None:
    from dlrun.sweep.process_engine import Parallel, resolve_job_count

    with pretended.pretend_cuda(cards):
        assert resolve_job_count("auto") == jobs
        # Slots are taken from the end.
        assert list(reversed(Parallel(4)._gpus)) == [i % cards for i in range(4)]


def test_steps_are_recorded_into_one_pool_behind_the_stream_of_the_training(
    pretended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.engine.acceleration.cuda_graph import GraphRecorder

    pools: list[Any] = []
    outcome: list[str] = []

    @contextlib.contextmanager
    def capture(graph: Any, pool: Any) -> Iterator[None]:
        pools.append(pool)
        yield

    with pretended.pretend_cuda():
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: outcome.append("replay")))
        monkeypatch.setattr(torch.cuda, "graph", capture)
        recorder = GraphRecorder()
        waits = pretended.Stream.waits
        with recorder.use_side_stream():
            # For what the training's stream has to do before.
            assert pretended.Stream.waits - waits == 1
        assert pretended.Stream.waits - waits == 2
        replays = [recorder.record(lambda: outcome.append("record")) for _ in range(2)]
    replays[1]()
    assert pools == [(0, 7), (0, 7)]
    assert outcome == ["record", "record", "replay"]


def test_a_value_that_is_logged_while_a_step_is_recorded_ends_the_recording(
    pretended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.engine.logged_values import _read_number

    value = torch.tensor(2.0).as_subclass(pretended.OnCard)
    with pretended.pretend_cuda():
        assert float(_read_number("norm", value)) == 2
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="the model logs 'norm' in its forward pass"):
            _read_number("norm", value)


def test_memory_of_a_copied_batch_is_kept_until_the_training_is_done_with_it(
    pretended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlrun.data.batches import _prefetch

    kept: list[int] = []
    monkeypatch.setattr(pretended.OnCard, "record_stream", lambda x, stream: kept.append(len(x)), raising=False)
    card_batches = []
    for rows in (3, 2):
        x, y = (torch.zeros(rows).as_subclass(pretended.OnCard) for _ in range(2))
        # The lengths of sequences stay on the CPU.
        card_batches.append(((x, torch.zeros(rows)), y))
    with pretended.pretend_cuda():
        batches = _prefetch(iter(card_batches), torch.device("cuda", 0))
        assert [len(y) for _, y in batches] == [3, 2]
    assert kept == [3, 3, 2, 2]


def test_the_profiler_looks_at_the_gpu_too(pretended: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dlrun.experiment.callbacks import profiler

    monkeypatch.setattr(torch.profiler, "profile", lambda activities, **_: activities)
    activity = torch.profiler.ProfilerActivity
    assert profiler._trace(tmp_path) == [activity.CPU]
    with pretended.pretend_cuda():
        assert profiler._trace(tmp_path) == [activity.CPU, activity.CUDA]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 4, 7, 7)),
        (torch.nn.Conv1d(4, 6, 3, stride=2, bias=False), (5, 4, 9)),
        (torch.nn.Linear(4, 6), (5, 4)),
    ],
)
def test_a_stacked_layer_gives_on_a_gpu_what_it_gives_on_the_cpu(
    layer: torch.nn.Module, shape: tuple[int, ...], pretended: Any
) -> None:
    from dlrun.engine.stack.model import StackedModel

    models = [torch.nn.Sequential(copy.deepcopy(layer)) for _ in range(3)]
    for i, model in enumerate(models):
        for parameter in model.parameters():
            parameter.data.mul_(i + 1)
    x = torch.randn(3, *shape)
    results = []
    for kind in (torch.Tensor, pretended.OnCard):
        stacked = StackedModel(copy.deepcopy(models), [torch.Generator() for _ in models])
        outputs = stacked(x.as_subclass(kind))
        stacked.compute_gradient(outputs.square().flatten(1).sum(1))
        results.append([tensor.detach().as_subclass(torch.Tensor) for tensor in (outputs, stacked.gradient)])
    for on_cpu, on_card in zip(*results, strict=True):
        assert on_cpu.abs().max() > 0
        torch.testing.assert_close(on_card, on_cpu)


def test_ranks_on_a_gpu_are_those_on_the_cpu(pretended: Any) -> None:
    from dlrun.engine.stack.objective import _sum_ranks

    scores = torch.randint(-4, 5, (3, 40)).float()
    positives = torch.rand(3, 40) < 0.3
    on_card = _sum_ranks(scores.as_subclass(pretended.OnCard), positives)
    assert torch.equal(on_card.as_subclass(torch.Tensor), _sum_ranks(scores, positives))
