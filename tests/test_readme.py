"""Every command in the README and on the pages runs, through bash, as a reader would type it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "dlrun" / "docs"
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
TEXT = "\n".join([README, *PAGES.values()])
LINK = r"\[[^]]*\]\(([^)#]+)\)"
QUICK = "trainer.epochs=1 data.limit_batches=2 tracking.graph=false figures=false"


def commands() -> list[str]:
    """Lines of the ```bash blocks, without comments; \\ joins lines."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def shorten(command: str) -> str:
    """The same command for fewer steps; what only looks, or loads a run, stays as it is."""
    if command == "dlrun resume runs/mine trainer.epochs=40":
        return f"{command} trainer.epochs=3"  # of a run that has ended after one
    verbs = "eval|resume|ls|show|watch|check|compare|predict|export|diff|clean|new|completion|--help|--cfg"
    only_looks = re.match(rf"dlrun ({verbs})\b", command)
    if only_looks or not command.startswith(("dlrun", "torchrun")):
        return command
    quick = QUICK.replace(" figures=false", "") if "confusion" in command else QUICK
    return f"{command} {quick}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, warm: Any) -> dict[str, str]:
    """An environment in which `dlrun` is this checkout's; it, `python` and `torchrun` start as warm processes."""
    bin_folder = tmp_path_factory.mktemp("bin")
    warm.write_command(bin_folder / "dlrun", "-m", "dlrun")
    warm.write_command(bin_folder / "python")
    warm.write_command(bin_folder / "torchrun", "-m", "torch.distributed.run")
    path = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHON_EXEC": warm.interpreter}
    if os.environ.get("DLRUN_DATA_DIR"):
        variables["DLRUN_DATA_DIR"] = str(Path(os.environ["DLRUN_DATA_DIR"]).resolve())
    return variables


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, formats: ModuleType) -> Path:
    """What the README's reader has: its own module and config folder (shown there), a table, pictures."""
    work = tmp_path_factory.mktemp("reader")
    for name, body in re.findall(r"```(?:python|yaml)\n# ([\w./]+)\n(.*?)```", TEXT, re.DOTALL):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(body)
    rows = [f"{i % 7},{i % 5},{(3 * (i % 7) - i % 5)}" for i in range(40)]
    (work / "scans").mkdir()
    np.save(work / "scans" / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 28, 28)).astype(np.uint8))
    np.save(work / "scans" / "y.npy", np.arange(40) % 3)
    (work / "houses.csv").write_text("rooms,age,price\n" + "\n".join(rows) + "\n")
    films = [f"{i % 7},{i % 5},{int(i % 7 > 3)},{int(i % 5 > 1)},{int(i % 3 == 0)}" for i in range(40)]
    (work / "films.csv").write_text("minutes,year,drama,comedy,crime\n" + "\n".join(films) + "\n")
    flats = [f"{i % 7},{i % 5},{(3 * (i % 7) - i % 5) * 1.5},{'abc'[i % 3]}" for i in range(60)]
    (work / "flats.csv").write_text("rooms,age,price,kind\n" + "\n".join(flats) + "\n")
    reviews = [f"{'lovely' if i % 2 else 'dull'} film {i % 9},{'pos' if i % 2 else 'neg'}" for i in range(60)]
    for name in ("reviews.csv", "more_reviews.csv"):
        (work / name).write_text("review,label\n" + "\n".join(reviews[: 40 if name[0] == "m" else 60]) + "\n")
    for i, review in enumerate(reviews):
        text, _, label = review.partition(",")
        (work / "reviews" / label).mkdir(parents=True, exist_ok=True)
        (work / "reviews" / label / f"{i}.txt").write_text(text)
    hours = [f"2024-01-{1 + i // 24:02} {i % 24:02}:00,{i % 24},{100 + i % 24}" for i in range(24 * 14)]
    (work / "power.csv").write_text("date,temperature,load\n" + "\n".join(hours) + "\n")
    by_class = [f"photos_by_class/{name}/{i}.png" for name in "ab" for i in range(4)]
    for path in ("photos/three.png", "photos/seven.jpg", *by_class):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("L", (40, 40), "white")
        ImageDraw.Draw(picture).text((12, 4), "7" if "seven" in path else "3", fill="black", font_size=28)
        picture.save(work / path)
    rows = "".join(f"{name}/{i}.png,{name}\n" for name in "ab" for i in range(4))
    (work / "photos_by_class" / "labels.csv").write_text(rows)
    pictures, labels = formats.read_digits(40)
    for number, name in enumerate(("train-000", "train-001", "test-000")):
        members = {
            str(i): {"png": pictures[i], "cls": b"%d" % labels[i], "json": b'{"label": "d%d"}' % labels[i]}
            for i in range(0 if number == 2 else number * 20, number * 20 + 20 if number < 2 else 40)
        }
        formats.write_shard(work / "shards" / f"{name}.tar", members)
    formats.write_digits_as_parquet(work / "fruit" / "train.parquet", rows=40)
    return work


FIRST = {  # what a command needs: the words that name it, those that make it, and what makes it
    "runs/mine": ("hydra.run.dir", f"dlrun data=digits model=resnet hydra.run.dir=runs/mine {QUICK}"),
    "runs/one": (
        "hydra.run.dir",
        f"dlrun data=blobs model=mlp hydra.run.dir=runs/one {QUICK} && "
        f"dlrun data=blobs model=mlp optimizer.lr=0.1 hydra.run.dir=runs/two {QUICK}",
    ),
    "runs runs": ("hydra.run.dir", f"dlrun data=blobs model=mlp hydra.run.dir=runs/one {QUICK}"),
    "runs/sweep": (
        "sweep.dir",
        f"dlrun -m data=blobs model=mlp optimizer=sgd,adam 'seed=range(2)' sweep.dir=runs/sweep {QUICK}",
    ),
    "runs/reviews": (
        "hydra.run.dir",
        "dlrun data=text data.path=reviews.csv data.text=review data.target=label model=gru "
        f"hydra.run.dir=runs/reviews {QUICK}",
    ),
    "runs/power": (
        "hydra.run.dir",
        "dlrun data=series data.path=power.csv data.target=load data.horizon=24 model=linear "
        f"hydra.run.dir=runs/power {QUICK}",
    ),
    "runs/head": (
        "hydra.run.dir",
        f"dlrun data=digits model=resnet model.freeze=features hydra.run.dir=runs/head {QUICK}",
    ),
    "weights.safetensors": (
        "save_file",
        'python -c "import torch; from safetensors.torch import save_file; '
        "save_file({'encoder.1.bias': torch.zeros(128), 'head.bias': torch.zeros(5)}, 'weights.safetensors')\"",
    ),
    "resnet18.pth": (
        "torch.save",
        'python -c "import torch, torchvision; '
        "torch.save(torchvision.models.resnet18().state_dict(), 'resnet18.pth')\"",
    ),
}


def skip_reason(command: str) -> str | None:
    """Why a command cannot run here."""
    if "device=cuda" in command:
        import torch

        return None if torch.cuda.is_available() else "no CUDA device here"
    if "model=timm" in command and importlib.util.find_spec("timm") is None:
        return "timm is not installed: dlrun[timm]"
    for option, library in (("webdataset", "webdataset"), ("huggingface", "datasets")):
        if f"data={option}" in command and importlib.util.find_spec(library) is None:
            return f"{library} is not installed: dlrun[{option}]"
    if re.search(r"mnist|data=names|data=diabetes", command) and not os.environ.get("DLRUN_DATA_DIR"):
        return "DLRUN_DATA_DIR is not set: no real data here"
    if re.search(r"sweep.engine=(ray|slurm)", command):
        return "it needs a cluster; tests/sweep/test_ray_engine.py and test_slurm_engine.py start one"
    if command.startswith("dlrun check resume"):
        return "it kills interpreters that it starts; tests/cli/test_command_help.py runs it with warm ones"
    if command.startswith(("make", "git", "cd", "pip", "export", "tensorboard")):
        return "sets things up; make run, make test and tensorboard are tested by hand and by .ci/run"
    return None


def test_the_readme_has_commands() -> None:
    assert len([c for c in commands() if c.startswith("dlrun")]) >= 15


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what several commands need is made once: for each a folder."""
    return tmp_path_factory.mktemp("shelf")


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_command(command: str, tmp_path: Path, environment: dict[str, str], reader: Path, shelf: Path) -> None:
    if reason := skip_reason(command):
        pytest.skip(reason)
    work = shutil.copytree(reader, tmp_path / "work")
    for needed, (made_by, first) in FIRST.items():
        if needed in command and made_by not in command:
            stored_copy = shelf / needed.replace("/", "_")
            if not stored_copy.exists():
                # With the reader's tables, from which some of it is made.
                shutil.copytree(reader, stored_copy)
                subprocess.run(["bash", "-c", first], cwd=stored_copy, env=environment, check=True, capture_output=True)
            shutil.copytree(stored_copy, work, dirs_exist_ok=True)
    outcome = subprocess.run(
        ["bash", "-c", shorten(command)], cwd=work, env=environment, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.slow
def test_python_in_the_readme_runs(python: Callable[..., Any]) -> None:
    scripts = re.findall(r"```python\n(import dlrun\n.*?)```", TEXT, re.DOTALL)
    # What is no script but a part of a user's module has tests of its own.
    scripts = [script for script in scripts if "class " not in script]
    assert scripts
    for script in scripts:
        short = script.replace('"data=digits")', '"data=digits", "trainer.epochs=2")')
        assert short != script
        outcome = python("-c", short)
        assert outcome.code == 0, outcome.err


def test_the_tree_in_the_readme_is_the_tree() -> None:
    shown = re.search(r"```text\ndlrun/\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    named = {line.split()[0].rstrip("/") for line in shown.group(1).splitlines() if line.startswith("  ")}
    # Bytecode of folders that have moved may lie in a checkout.
    there = {path.parent.name for kind in ("py", "md") for path in (ROOT / "dlrun").glob(f"*/*.{kind}")}
    assert named == there


def test_the_readme_is_a_first_impression() -> None:
    assert len(README.splitlines()) <= 200


def test_the_page_of_keys_is_what_the_schema_says() -> None:
    from dlrun.config.compose import compose_config
    from dlrun.config.explain import iter_keys
    from dlrun.config.reference import MEANINGS, list_keys, render_page

    assert PAGES["configuration"] == render_page(), "python -m dlrun.config.reference > dlrun/docs/configuration.md"
    keys = [key for key, _ in list_keys()]
    assert len(keys) > 50
    assert MEANINGS.keys() == set(keys)
    assert set(keys) <= set(iter_keys(compose_config([])))


@pytest.mark.slow
def test_the_graph_of_rooms_is_drawn_from_the_imports() -> None:
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "tests" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    rooms = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rooms)
    assert PAGES["architecture"] == rooms.write(PAGES["architecture"]), "python tests/draw_rooms.py"
    assert "experiment --> runs" in rooms.draw()


def test_links_and_pictures_lead_somewhere() -> None:
    count = 0
    for folder, text in [(ROOT, README), *((DOCS, page) for page in PAGES.values())]:
        for target in re.findall(LINK, text):
            if not target.startswith("http"):
                assert (folder / target).exists(), target
                count += 1
    assert count > 50


def test_every_page_is_in_the_table_and_a_topic() -> None:
    from dlrun.cli.pages import TOPICS

    assert sorted(TOPICS) == sorted(PAGES)
    for topic in TOPICS:
        assert f"(dlrun/docs/{topic}.md)" in README


def test_the_course_page_shows_every_lesson() -> None:
    shown = re.findall(r"^\| `(\w+)`: ", PAGES["course"], re.MULTILINE)
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "configs" / "lesson").glob("*.yaml"))
    assert shutil.which("bash")
