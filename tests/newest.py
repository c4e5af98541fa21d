"""The fast tests once more, with the newest versions that pyproject.toml allows: `make test-newest`.

Takes the environment that it runs in, which holds the pinned set of constraints.txt, and lays another over it that has
only those packages which differ, so that torch is not installed twice. Where none differs there is nothing to test.

python tests/newest.py FOLDER [ARGUMENTS OF PYTEST]      FOLDER: where the environment is made
python tests/newest.py FOLDER --prepare      only make it, beside other work; the next call takes it as it is
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PREPARED = "prepared.json"
EXTRAS = ("export", "metrics", "search")  # with what users install; the tools of the tests stay as they are pinned
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")


def requirements() -> list[str]:
    """What pyproject.toml asks for, with the extras that the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    results: list[str] = list(project["dependencies"])
    for extra in EXTRAS:
        results += project["optional-dependencies"][extra]
    return results


def find_newer() -> dict[str, str]:
    """Name and version of each package that pip would install now, those that the named ones need with them."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        words = [*PIP, "--dry-run", "--upgrade", "--upgrade-strategy", "eager", "--report", str(report)]
        subprocess.run([*words, *requirements()], check=True)
        installs = json.loads(report.read_text())["install"]
    named = {install["metadata"]["name"]: install["metadata"]["version"] for install in installs}
    return dict(sorted(named.items()))


def overlay(folder: Path, packages: dict[str, str]) -> Path:
    """Make an environment of these packages above the one that runs this; returns its Python."""
    venv.create(folder, clear=True)
    python = folder / "bin" / "python"
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    libraries = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    # addsitedir, and not a bare path, so that the .pth files there count too: dlrun itself is one
    below = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (libraries / "below.pth").write_text(below)
    exact = [f"{name}=={number}" for name, number in packages.items()]
    subprocess.run([*PIP, "--no-deps", "--target", str(libraries), *exact], check=True)
    return python


def prepare(folder: Path) -> None:
    """Make the environment, and note what is in it."""
    packages = find_newer()
    if packages:
        overlay(folder, packages)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREPARED).write_text(json.dumps(packages))


def take_prepared(folder: Path) -> dict[str, str] | None:
    """The packages of an environment that was prepared, once: later there may be newer ones."""
    file = folder / PREPARED
    if not file.exists():
        return None
    packages = json.loads(file.read_text())
    file.unlink()
    return dict(packages)


def main() -> int:
    """Say what differs, and test with it; returns pytest's exit code."""
    folder, *arguments = sys.argv[1:]
    if arguments == ["--prepare"]:
        prepare(Path(folder))
        return 0
    prepared = take_prepared(Path(folder))
    packages = find_newer() if prepared is None else prepared
    if not packages:
        print("nothing to test: the newest versions that pyproject.toml allows are those of tests/constraints.txt")
        return 0
    print("newer than in tests/constraints.txt:")
    for name, number in packages.items():
        print(f"  {name} {get_installed_version(name)} -> {number}")
    sys.stdout.flush()
    python = overlay(Path(folder), packages) if prepared is None else Path(folder) / "bin" / "python"
    code = "import sys; from importlib.metadata import version; print(*(f'{n} {version(n)}' for n in sys.argv[1:]))"
    tested = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    assert tested.stdout.split() == [word for item in packages.items() for word in item], tested.stdout
    environment = {**os.environ, "VIRTUAL_ENV": folder}
    return subprocess.run([str(python), "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode


def get_installed_version(name: str) -> str:
    try:
        return version(name)
    except ModuleNotFoundError:
        return "(none)"


if __name__ == "__main__":
    sys.exit(main())
