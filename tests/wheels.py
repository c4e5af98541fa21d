"""`make wheels WHEELS=folder`: what the tests on a GPU need beside torch, as wheels, for a machine without a network.

python tests/wheels.py FOLDER [--platform manylinux_2_28_x86_64 --python-version 3.12 ...]

Further words are pip's: what another machine is. The versions are those that pip chooses for this one.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

# What such a machine has: torch for its GPU, with all that came with it.
PRESENT = re.compile(r"(torch|torchvision|triton)$|nvidia-|cuda-", re.IGNORECASE)


def list_needs() -> tuple[list[str], list[str]]:
    """Name and version of each package that `dlrun[test-gpu]` needs: those with a wheel, and those of source alone."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(HERE / "constraints.txt")]
        subprocess.run([*command, f"{HERE.parent}[test-gpu]"], check=True)
        return read_needs(report.read_text())


def read_needs(report: str) -> tuple[list[str], list[str]]:
    """`name==version` of what a report of pip installs, without dlrun and what the machine has: wheels, sources."""
    wheels = []
    sources = []
    for item in json.loads(report)["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name == "dlrun" or PRESENT.match(name):
            continue
        needs = wheels if item["download_info"]["url"].endswith(".whl") else sources
        needs.append(f"{name}=={version}")
    return wheels, sources


def main(folder: str, *words: str) -> None:
    """Fill the folder."""
    wheels, sources = list_needs()
    pip = [sys.executable, "-m", "pip"]
    download = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, *words]
    subprocess.run([*download, *wheels], check=True)
    # Built here: on a machine without a network pip would not find what builds them.
    if sources:
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, *sources], check=True)
    print(f"{len(wheels) + len(sources)} wheels in {folder}; there: make test-gpu WHEELS={folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
