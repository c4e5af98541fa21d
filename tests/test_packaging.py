"""A wheel holds everything: installed elsewhere, it finds its configs from any directory."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    pytest.importorskip("hatchling", reason="building a wheel offline needs hatchling in this environment")
    target = tmp_path_factory.mktemp("wheel")
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        target,
    ]
    outcome = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = target.glob("dlrun-*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_configs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("dlrun/configs/") for name in names if name.startswith("dlrun/configs/")}
    assert shipped == {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert not [name for name in names if name.startswith(("tests/", "outputs/", "configs/"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "template"),
    [("dlrun/eject/templates", "train.py.j2"), ("dlrun/cli/new_project", "configs/data/spirals.yaml.j2")],
)
def test_wheel_holds_the_templates(wheel: Path, folder: str, template: str) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{folder}/")}
    assert names == {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.j2")}
    assert f"{folder}/{template}" in names


@pytest.mark.slow
def test_wheel_runs_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    words = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    outcome = subprocess.run(words, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    code = f"import sys; sys.path.insert(0, {str(place)!r}); import dlrun; from dlrun.cli.main import main; "
    code += "assert dlrun.__file__.startswith(sys.path[0]); sys.exit(main())"
    words = ["data=line", "model=linear", "trainer.epochs=1", "tracking.graph=false"]
    outcome = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert list((tmp_path / "outputs").glob("*/*/result.json"))


@pytest.fixture
def newest() -> ModuleType:
    """The script that tests with the newest versions."""
    spec = importlib.util.spec_from_file_location("newest", ROOT / "tests" / "newest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_nothing_is_newer_nothing_is_tested_and_that_is_said(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["newest.py", str(tmp_path / "newest")])
    monkeypatch.setattr(newest, "find_newer", dict)
    assert newest.main() == 0
    assert capsys.readouterr().out.startswith("nothing to test: the newest versions")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [0, 1])
def test_with_the_newest_versions_a_failing_test_fails_it(
    code: int,
    newest: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A stand-in for the environment's Python: it says the versions that it has, and how its tests ended."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo pooch 99.1 && exit\necho "$@"\nexit {code}\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["newest.py", str(tmp_path / "newest"), "-n", "2"])
    monkeypatch.setattr(newest, "find_newer", lambda: {"pooch": "99.1"})
    monkeypatch.setattr(newest, "overlay", lambda folder, packages: python)
    assert newest.main() == code
    out = capfd.readouterr().out
    assert re.search(r"pooch \d\S+ -> 99\.1", out)
    assert "-m pytest -n 2" in out


def test_an_environment_that_was_prepared_is_tested_once(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "newest"
    calls = []

    def make(folder: Path, packages: dict[str, str]) -> Path:
        calls.append(packages)
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo pooch 99.1 && exit\necho "$@"\n')
        python.chmod(0o755)
        return python

    monkeypatch.setattr(newest, "find_newer", lambda: {"pooch": "99.1"})
    monkeypatch.setattr(newest, "overlay", make)
    for words, count in ((["--prepare"], 1), (["-n", "2"], 1), (["-n", "2"], 2)):
        monkeypatch.setattr(sys, "argv", ["newest.py", str(folder), *words])
        assert newest.main() == 0
        assert len(calls) == count
        assert ("-m pytest -n 2" in capfd.readouterr().out) == (words != ["--prepare"])


def test_constraints_name_no_address_and_cover_the_dependencies() -> None:
    import tomllib

    lines = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not any(mark in line for line in lines for mark in ("://", "@", "/", "--"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # What the tests need besides their tools: extras of ours.
    own = re.fullmatch(r"dlrun\[(.+)\]", extras["dev"][0])
    assert own is not None
    needs = [*project["dependencies"], *extras["dev"][1:], *extras["bench"]]
    for extra in own[1].split(","):
        needs += extras[extra]
    for need in needs:
        name = need.split(">")[0].split("<")[0]
        assert name in pins, name


def test_tests_on_a_gpu_take_the_torch_of_the_machine_and_wheels_from_a_folder() -> None:
    words = ["make", "-n", "test-gpu", "WHEELS=wheels", "VENV=nowhere"]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m venv --system-site-packages nowhere-gpu" in lines
    assert "pip install --quiet --no-index --find-links wheels --editable '.[test-gpu]'" in lines
    assert "nowhere-gpu/bin/python -m pytest" in lines
    assert "-p xdist" in lines
    # Not at the end: a make below another one says which folder it leaves.
    assert "--dist worksteal -m gpu" in lines


def test_wheels_are_fetched_of_all_but_dlrun_and_torch() -> None:
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "tests" / "wheels.py")
    assert spec is not None
    assert spec.loader is not None
    wheels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wheels)
    names = ["dlrun", "torch", "torchvision", "triton", "nvidia-cublas", "cuda-bindings", "torchmetrics", "numpy"]
    install = []
    for name in [*names, "antlr4"]:
        file = f"https://example.org/{name}-1.0.tar.gz" if name == "antlr4" else f"file:///{name}-1.0-py3-none-any.whl"
        install.append({"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": file}})
    # What is published as source only is built where there is a network.
    assert wheels.read_needs(json.dumps({"install": install})) == (["torchmetrics==1.0", "numpy==1.0"], ["antlr4==1.0"])
