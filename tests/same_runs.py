"""Hold two checkouts of dlrun against each other: the same command lines, and everything that they leave behind.

    python tests/same_runs.py OLD NEW [CASE ...]

OLD and NEW are checkouts; CASE names some of the cases below, all of them by default. Each case is a few command lines
that are run one after another in a folder of their own, by each checkout, on this machine, with one thread. Compared
are exit codes, what is printed, the names of all files, and what is in them: weights and every other tensor of a
checkpoint, metrics, TensorBoard's scalars, pictures, tables, reports. What differs from one run of the same code to
the next (times, dates, ids, sizes of files) is masked. The exit code is 1 where something differs.

A change that is to leave behaviour alone is held against the commit before it: git worktree add ../old HEAD~1.
"""

import argparse
import csv
import difflib
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMON = ("device=cpu", "device.num_threads=1")
SMALL = (*COMMON, "data=blobs", "model=mlp", "model.hidden_sizes=[6]", "trainer.epochs=3", "hydra.run.dir=run")
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node=2")

# Lessons are cut to three epochs, but for those that do not train in epochs or need the few that they have.
UNCUT_LESSONS = ("coarse_to_fine", "exhaustive_search", "exhaustive_surface", "save_two_ways")
WITHOUT_DOWNLOAD = ("mnist", "names", "diabetes")

COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "help": (("--help",), ("--version",), ("--cfg", "job"), ("--cfg", "job", "lesson=resnet_mnist")),
    "help_of_commands": tuple((name, "--help") for name in ("eval", "predict", "export", "resume", "check", "compare")),
    "lists": (("ls",), ("ls", "lesson"), ("ls", "model"), ("ls", "data"), ("ls", "optimizer"), ("ls", "nosuch")),
    "mistakes": (
        ("model=resnett",),
        ("optimizer.lrr=0.1",),
        ("optimizer.lr=-1",),
        ("data=csv",),
        ("trainer.epochs=many",),
        ("resume", "nowhere"),
        ("eval", "nowhere"),
        ("nonsense",),
    ),
    "everything_on": (
        (
            *SMALL,
            "data.val_fraction=0.25",
            "tracking.weight_histograms=true",
            "tracking.evolution_every_epochs=1",
            "trainer.ema_decay=0.9",
            "trainer.profile=true",
        ),
    ),
    "life_of_a_run": (
        ("check", *SMALL[:-1]),
        (*SMALL, "data.val_fraction=0.25", "scheduler=cosine", "trainer.max_steps=5"),
        ("resume", "run", "trainer.max_steps=null"),
        ("resume", "run", "trainer.epochs=5"),
        ("eval", "run"),
        ("predict", "run", "0.5,0.5"),
        ("export", "run", "format=onnx"),
        ("export", "run", "format=safetensors"),
        ("export", "run", "format=python"),
        (*SMALL[:-1], "optimizer=sgd", "hydra.run.dir=other"),
        ("diff", "run", "other"),
        ("compare", "run", "other"),
        ("ls", "runs", "."),
        ("transfer", "run", "model=mlp", "data=blobs", "model.hidden_sizes=[8]"),
        ("clean", ".", "--dry-run"),
    ),
    "full_model": (
        (*SMALL, "checkpoint.format=full"),
        ("eval", "run"),
        ("eval", "run", "trust=true"),
    ),
    "names": (
        (*COMMON, "data=names", "model=gru", "trainer.max_steps=20", "data.batch_size=64", "hydra.run.dir=run"),
        ("eval", "run"),
        ("predict", "run", "Maclean", "Nakamura"),
    ),
    "table": (
        (*COMMON, "data=csv", "data.path=rows.csv", "data.target=color", "model=mlp", "trainer.epochs=3", SMALL[-1]),
        ("eval", "run"),
        ("predict", "run", "rows.csv"),
    ),
    "arrays": (
        (*COMMON, "data=arrays", "data.path=arrays", "model=mlp", "trainer.epochs=3", SMALL[-1]),
        ("eval", "run"),
    ),
    "folders": (
        (
            *COMMON,
            "data=image_folder",
            "data.path=photos",
            "data.image_size=8",
            "model=cnn",
            "trainer.epochs=2",
            "hydra.run.dir=run",
        ),
        ("eval", "run"),
        ("predict", "run", "photos/train/red/0.png"),
    ),
    "sweep": (
        ("-m", *SMALL[:-1], "optimizer=sgd,adam", "seed=0,1", "sweep.dir=sweep"),
        ("-m", *SMALL[:-1], "optimizer=sgd,adam", "seed=0,1,2", "sweep.dir=sweep"),
        ("resume", "sweep"),
        ("ls", "runs", "sweep"),
    ),
    "sweep_of_two_processes": (("-m", *SMALL[:-1], "optimizer.lr=0.1,0.2,0.3", "sweep.jobs=2", "sweep.dir=sweep"),),
    "several_processes": (
        (*TORCHRUN, *SMALL, "trainer.max_steps=4"),
        (*TORCHRUN, "resume", "run", "trainer.max_steps=null"),
    ),
}  # fmt: skip

JOB = r"\d+/\d+ +"
PHASE = r"(?m)^ *(data|forward|backward|optimizer|evaluation|log|figures|checkpoint|other) +\d[\d.]* +[\d.]+ % .*$"
MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d[T _/]\d\d[:-]\d\d([:-]\d\d)?(\.\d+)?(\+00:00)?"), "DATE"),
    (re.compile(r"\d[\d,.]*( ?(samples|steps|rows|files)/s)"), r"N\1"),
    (re.compile(r"\b\d+:\d\d(:\d\d)?( left)?"), r"TIME"),
    (re.compile(r"\b\d[\d.]*(e-\d+)? (s|ms|µs|min|seconds)\b"), "TIME"),
    (re.compile(r"\b(train seconds|samples per second)( +[-\d.,e]+)+"), r"\1 MEASURED"),
    (re.compile(r"\b\d[\d.]* (bytes|kB|MB|GB)\b"), "SIZE"),
    (re.compile(PHASE), r"\1 MEASURED"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"events\.out\.tfevents\.[\w.-]+"), "EVENTS"),
    (re.compile(r"^(\s*- path: ).*/configs$", re.MULTILINE), r"\1CONFIGS"),
    (re.compile(r"^(\s*total +)[\d.]+( +)[\d,]+ *$", re.MULTILINE), r"\1MEASURED"),
)  # fmt: skip
MEASURED_KEYS = {
    "train_seconds",
    "compile_seconds",
    "samples_per_second",
    "seconds",
    "time",
    "started",
    "run_id",
    "command",
    "working_directory",
    "git_commit",
    "git_dirty",
    "code_hash",  # of source files: it changes with every move, and is said to users where it does
    "sources",
}
NOTHING_BUT_TIMES = {"profile"}


def cases(data: Path | None) -> dict[str, tuple[tuple[str, ...], ...]]:
    """All cases by name; lessons whose data are not here are left out."""
    by_name = dict(COMMANDS)
    if data is None:
        del by_name["names"]

    for path in sorted((ROOT / "configs" / "lesson").glob("*.yaml")):
        name = path.stem
        text = path.read_text()
        if "cifar" in text or (data is None and any(word in text for word in WITHOUT_DOWNLOAD)):
            continue
        cut = () if name in UNCUT_LESSONS else ("trainer.epochs=3",)
        short = ("data.limit_batches=5",) if "mnist" in text else ()
        by_name[f"lesson_{name}"] = ((f"lesson={name}", *COMMON, *cut, *short, "paths.outputs=outputs"),)
    return by_name


def write_data(folder: Path) -> None:
    """A table, arrays and pictures, the same for both checkouts."""
    import numpy
    from PIL import Image

    draw = numpy.random.default_rng(0)
    table = ["width,height,color"]
    for width, height in draw.random((60, 2)):
        color = "red" if width > 0.5 else "blue"
        table.append(f"{width:.4f},{height:.4f},{color}")
    (folder / "rows.csv").write_text("\n".join(table) + "\n")

    arrays = folder / "arrays"
    arrays.mkdir()
    inputs = draw.random((60, 3)).astype("float32")
    numpy.save(arrays / "x.npy", inputs)
    numpy.save(arrays / "y.npy", (inputs.sum(1) > 1.5).astype("int64"))

    for part, rows in (("train", 12), ("test", 4)):
        for number, color in enumerate(("red", "green")):
            place = folder / "photos" / part / color
            place.mkdir(parents=True)
            for row in range(rows):
                pixels = draw.integers(0, 80, (8, 8, 3)).astype("uint8")
                pixels[:, :, number] += 120
                Image.fromarray(pixels).save(place / f"{row}.png")


class Checkout:
    """One version of dlrun, whose command lines run in processes forked from one that has it imported."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root = root
        scratch.mkdir()
        spec = importlib.util.spec_from_file_location(f"warm_of_{scratch.name}", root / "tests" / "warm.py")
        assert spec is not None
        assert spec.loader is not None
        warm = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(warm)

        self.environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(root)
        self.server = warm.Server(scratch)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before

    def run(self, words: Sequence[str], folder: Path) -> tuple[int, str]:
        """The exit code of a command line, and what it prints on both streams."""
        words = (*words[:3], "-m", "dlrun", *words[3:]) if words[0] == "torchrun" else ("dlrun", *words)
        module = "torch.distributed.run" if words[0] == "torchrun" else words[0]
        process = self.server.start("-m", module, *words[1:], cwd=folder, env=self.environment)
        try:
            code = process.wait(600)
        finally:
            process.kill()
        errors = process.err
        if module == "torch.distributed.run":
            # It prints a page of its own, with times and addresses.
            errors = "".join(line for line in errors.splitlines(keepends=True) if line.startswith("dlrun: "))
        return code, process.out + errors

    def close(self) -> None:
        """End the process that waits."""
        self.server.close()


def mask_text(text: str, root: Path) -> str:
    """The text without what differs from one run of the same code to the next."""
    text = text.replace(str(root), "ROOT")
    for pattern, mask in MASKS:
        text = pattern.sub(mask, text)
    lines = []
    in_table = False
    for line in text.splitlines():
        # The last column of a sweep's table is the seconds of training.
        if re.search(r"[ |](s|seconds|train_seconds)[ |]*$", line):
            in_table = True
        elif in_table and re.search(r"\d$|\d \|$", line):
            line = re.sub(r"[\d.]+( \|)?$", "SECONDS", line)
        elif not line.strip():
            in_table = False
        # How wide a column is depends on the times in it.
        lines.append(re.sub(r" +|─+", " ", line).strip())

    # Jobs of several processes end in any order.
    first = next((number for number, line in enumerate(lines) if re.match(JOB, line)), 0)
    jobs = sorted(re.sub(JOB, "JOB ", line) for line in lines if re.match(JOB, line))
    lines = [line for line in lines if not re.match(JOB, line)]
    return "\n".join([*lines[:first], *jobs, *lines[first:]])


def mask_page(text: str, root: Path) -> str:
    """A page of HTML; of its tables, without the columns of seconds."""
    page, *tables = text.split("<table")
    parts = [page]
    for table in tables:
        headings = re.findall(r"<th[^>]*>(.*?)</th>", table)
        for row in re.findall(r"<tr[^>]*><td.*?</tr>", table):
            cells = re.findall(r"<td.*?</td>", row)
            for number, heading in enumerate(headings[: len(cells)]):
                if heading == "train s":
                    cells[number] = "<td>SECONDS</td>"
            table = table.replace(row, "".join(cells))
        parts.append(table)
    return mask_text("<table".join(parts), root)


def mask_rows(text: str, root: Path) -> str:
    """A CSV file without the columns of what was measured by a clock."""
    rows = []
    for row in csv.DictReader(text.splitlines()):
        rows.append(mask_text(json.dumps(leave_out_measured(row)), root))
    return "\n".join(rows)


def leave_out_measured(value: Any) -> Any:
    """A JSON value or a checkpoint's content without what was measured by a clock."""
    if isinstance(value, dict):
        return {key: leave_out_measured(item) for key, item in value.items() if key not in MEASURED_KEYS}
    if isinstance(value, list | tuple):
        return [leave_out_measured(item) for item in value]
    if type(value).__module__.partition(".")[0] == "torch":
        import torch

        return f"{value.dtype} {tuple(value.shape)} {value.tolist()}" if isinstance(value, torch.Tensor) else str(value)
    return value


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars of a folder, without those of times; the tags of what is no scalar, without values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    content: dict[str, list[tuple[int, float]]] = {}
    for kind, tags in events.Tags().items():
        if isinstance(tags, list) and kind != "scalars":
            content.update({f"{kind} {tag}": [] for tag in tags})
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("time/"):
            content[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return content


def content_of(path: Path, root: Path) -> Any:
    """What is to be the same of a file."""
    if path.suffix in (".json", ".jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        values = [mask_text(json.dumps(leave_out_measured(json.loads(line)), indent=1), root) for line in lines]
        # The ledger of a sweep with several processes is written as its jobs end.
        return sorted(values) if path.name == "sweep.jsonl" else values
    if path.suffix == ".pt":
        import torch

        try:
            return repr(leave_out_measured(torch.load(path, map_location="cpu", weights_only=True)))
        except Exception:
            return "a pickled model"
    if path.suffix == ".safetensors":
        import safetensors.torch

        with safetensors.safe_open(path, "pt") as file:
            # The library writes its keys in no order.
            metadata = {key: mask_text(value, root) for key, value in sorted(file.metadata().items())}
        return repr([metadata, leave_out_measured(safetensors.torch.load_file(path))])
    if path.suffix in (".png", ".npy", ".onnx"):
        return path.read_bytes()

    mask = {".html": mask_page, ".csv": mask_rows}.get(path.suffix, mask_text)
    try:
        return mask(path.read_text(), root)
    except UnicodeDecodeError:
        return path.read_bytes()


def tree(folder: Path) -> dict[str, Any]:
    """What is to be the same of all files below a folder, by their masked paths."""
    contents: dict[str, Any] = {}
    event_folders = set()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.parent.name in NOTHING_BUT_TIMES:
            continue
        if path.name.startswith("events.out.tfevents"):
            event_folders.add(path.parent)
            continue
        contents[mask_text(str(path.relative_to(folder)), folder)] = content_of(path, folder)
    for place in sorted(event_folders):
        contents[mask_text(str(place.relative_to(folder) / "EVENTS"), folder)] = scalars(place)
    return contents


def difference(old: Any, new: Any) -> list[str]:
    """Up to ten lines that show how two contents differ."""
    if isinstance(old, bytes) or isinstance(new, bytes):
        return ["the bytes differ"]
    before, after = (
        content.splitlines() if isinstance(content, str) else json.dumps(content, indent=0).splitlines()
        for content in (old, new)
    )
    lines = difflib.unified_diff(before, after, "old", "new", n=0, lineterm="")
    return [line[:300] for line in lines][2:12]


def compare(old: Path, new: Path) -> Iterator[str]:
    """The differences of two folders, a paragraph each."""
    old_files, new_files = tree(old), tree(new)
    for name in sorted(old_files.keys() | new_files.keys()):
        if name not in new_files:
            yield f"{name}: only the old one writes it"
        elif name not in old_files:
            yield f"{name}: only the new one writes it"
        elif old_files[name] != new_files[name]:
            yield "\n    ".join([f"{name}:", *difference(old_files[name], new_files[name])])


def run_case(checkout: Checkout, commands: tuple[tuple[str, ...], ...], folder: Path) -> str:
    """Run the command lines of a case; a transcript of what they print and their exit codes."""
    folder.mkdir(parents=True)
    write_data(folder)
    transcript = []
    for words in commands:
        code, output = checkout.run(words, folder)
        transcript.append(f"$ {' '.join(words)}\n{mask_text(output, checkout.root)}\nexit code {code}")
    return mask_text("\n".join(transcript), folder)


def main(arguments: Sequence[str]) -> int:
    """Compare two checkouts; returns 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("case", nargs="*")
    options = parser.parse_args(arguments)

    data = os.environ.get("DLRUN_DATA_DIR")
    by_name = cases(Path(data) if data else None)
    unknown = [name for name in options.case if name not in by_name]
    if unknown:
        parser.error(f"no case {unknown[0]}; there are {', '.join(by_name)}")

    scratch = Path(tempfile.mkdtemp(prefix="same_runs_"))
    checkouts = {
        name: Checkout(getattr(options, name).resolve(), scratch / f"{name}_process") for name in ("old", "new")
    }
    different = 0
    for name in options.case or by_name:
        # Both work in a folder of the same name, so that paths in what they write are the same.
        transcripts = {}
        for version, checkout in checkouts.items():
            work = scratch / "work" / name
            transcripts[version] = run_case(checkout, by_name[name], work)
            work.rename(scratch / f"{version}_{name}")
        report = list(compare(scratch / f"old_{name}", scratch / f"new_{name}"))
        if transcripts["old"] != transcripts["new"]:
            report.insert(0, "\n    ".join(["output:", *difference(transcripts["old"], transcripts["new"])]))
        print(f"{'DIFFERENT' if report else 'same     '} {name}", *report, sep="\n  ", flush=True)
        different += bool(report)
        for version in checkouts:
            shutil.rmtree(scratch / f"{version}_{name}")

    for checkout in checkouts.values():
        checkout.close()
    shutil.rmtree(scratch)
    print(f"{len(options.case or by_name)} cases, {different} of them different")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
