"""What is said to have failed is what failed: errors of one thing are not caught as those of another."""

import ast
import errno
import io
import os
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlrun.config import request
from dlrun.core import files
from dlrun.core.errors import DataError, RequestError
from dlrun.core.new_folder import create_folder
from dlrun.data.files import cifar, idx, numpy_files, picture

QUIET = ("tracking.graph=false", "figures=false")
WIDE = {"Exception", "BaseException"}

# A handler of OSError around a `yield` catches what the block of a `with` raises: these look at whose error it is.
LOOK_AT_WHOSE = {
    "core/files.py: convert_write_errors",
    "core/files.py: tolerate",
    # Raises it again, whosever it is.
    "engine/trainer.py: report_exceptions",
}
# In these a `yield` hands on a row of a file that is being read; nothing else runs inside.
READ_ON = {
    "inference/predict/reader.py",
    "inference/predict/read_columns.py",
    "inference/predict/read_table.py",
    "inference/predict/predictor.py",
    "runs/reports/plots/fonts.py",
}


def handlers(tree: ast.AST) -> Iterator[tuple[ast.AST, set[str], list[ast.stmt], int]]:
    """Where errors are caught: the node, the names of the types, the statements inside, the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else WIDE
                yield handler, names, node.body, handler.lineno
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("suppress"):
                    names = {n.id for argument in call.args for n in ast.walk(argument) if isinstance(n, ast.Name)}
                    yield node, names, node.body, node.lineno


def test_whoever_catches_everything_says_why(sources: list[Any]) -> None:
    """With a comment on the line, or on the first of the handler: what is called inside that may raise anything."""
    silent = []
    for source in sources:
        wide = [line for _, names, _, line in handlers(source.tree) if names & WIDE]
        commented = comments(source.text) if wide else set()
        silent += [f"{source.name}:{line}" for line in wide if not commented & {line, line + 1}]
    assert silent == []


def comments(text: str) -> set[int]:
    """The lines with a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


@pytest.mark.slow
def test_a_block_that_others_fill_is_not_blamed_for_what_they_do(sources: list[Any]) -> None:
    culprits = set()
    for source in sources:
        if "yield" not in source.text or source.name in READ_ON:
            continue
        for function in ast.walk(source.tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for _, names, body, _ in handlers(function):
                yields = [n for s in body for n in ast.walk(s) if isinstance(n, ast.Yield | ast.YieldFrom)]
                if yields and names & {"OSError", "ValueError", *WIDE}:
                    culprits.add(f"{source.name}: {function.name}")
    assert culprits <= LOOK_AT_WHOSE, culprits - LOOK_AT_WHOSE


def test_writing_is_blamed_for_its_own_folder_alone(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "run"
    for path in (run / "metrics.jsonl", run, tmp_path / "outputs", None):
        with (
            pytest.raises(RequestError, match=r"cannot write to .*run .No space left"),
            files.convert_write_errors(run, "go"),
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    with pytest.raises(FileNotFoundError), files.convert_write_errors(run, "go"):
        raise OSError(errno.ENOENT, "No such file", tmp_path / "table.csv")


def test_an_export_is_not_blamed_for_a_file_that_the_model_reads(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), create_folder(tmp_path / "export", "onnx"):
        raise OSError(errno.ENOENT, "No such file", "/nosuch/table.csv")
    assert not list(tmp_path.iterdir())


def refuse(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def exhaust(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize(("fail", "message"), [(refuse, "Permission denied"), (exhaust, "there is no memory left")])
def test_a_file_that_the_system_does_not_give_is_not_called_damaged(
    fail: Callable[..., Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import PIL.Image

    np.save(tmp_path / "x.npy", np.zeros(3))
    monkeypatch.setattr(Path, "read_bytes", fail)
    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(PIL.Image, "open", fail)
    reads: list[Callable[[], Any]] = [lambda: picture.check_picture(tmp_path / "a.png")]
    reads.append(lambda: cifar._read_dict(tmp_path / "data_batch_1"))
    if fail is refuse:
        reads += [
            lambda: idx.read_idx(tmp_path / "a-idx3-ubyte", 3),
            lambda: numpy_files.ArrayFolder(tmp_path).open("x"),
        ]
    for read in reads:
        with pytest.raises(DataError) as caught:
            read()
        assert f"cannot be read: {message}" in str(caught.value)
        assert not any(word in str(caught.value) for word in ("delete", "replace", "numpy.save"))


NET = """
import torch

class Net(torch.nn.Linear):
    def __init__(self, spec, note: "torch.NoSuchName" = None):
        super().__init__(spec.input_size, spec.output_size)

    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        if fails == "load":
            raise RuntimeError("no such version")
        if fails == "key":
            raise KeyError("version")

    def forward(self, x):
        if fails == "forward":
            open("/nosuch/table.txt")
        return super().forward(x)

fails = ""
"""


@pytest.mark.slow
def test_code_of_the_users_own_is_named_when_it_fails(
    dlrun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "culprit_net.py").write_text(NET)
    words = ("data=line", "model._target_=culprit_net.Net", "trainer.max_steps=1", *QUIET, "hydra.run.dir=run")
    outcome = dlrun(*words)
    assert outcome.code == 0, outcome.err
    net = sys.modules["culprit_net"]
    trust = "trusted_modules=[culprit_net]"
    for fails, line, words in (
        ("load", "line 13: RuntimeError: no such version", ("eval", "run")),
        ("key", "line 15: KeyError: 'version'", ("resume", "run", "trainer.max_steps=2")),
        ("forward", "line 19: FileNotFoundError", ("eval", "run")),
    ):
        monkeypatch.setattr(net, "fails", fails)
        failed = dlrun(*words, trust)
        assert failed.code in (1, 2)
        assert f"culprit_net.py, {line}" in failed.err, (words, failed.err)
        assert "cannot write" not in failed.err
        assert "older or newer" not in failed.err

    # Such a state is no tensor, and that is said too.
    monkeypatch.setattr(net, "fails", "")
    refused = dlrun("export", "run", "format=safetensors", trust)
    assert refused.code == 2
    assert "format=safetensors holds tensors alone, and the state of Net holds _extra_state" in refused.err


def test_a_reader_that_leaves_is_no_error_of_an_evaluation(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(words: list[str], **_options: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("dlrun.inference.evaluate.evaluate", leave)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    outcome = dlrun("eval", "run")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_fault_of_dlrun_is_not_blamed_on_the_command_line(
    dlrun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        return bool({}["fault"])

    monkeypatch.setattr(request, "_is_ended_by_steps", fail)
    fail.__code__ = fail.__code__.replace(co_filename=request.__file__)
    with pytest.raises(KeyError, match="fault"):
        dlrun("data=line", "model=linear")


def test_a_folder_that_takes_no_download_is_named(dlrun: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = dlrun("data=mnist", "paths.data=file/data")
    assert outcome.code == 2
    assert "data=mnist is not in file/data/MNIST/raw, and nothing can be written there (Not a directory)" in outcome.err
