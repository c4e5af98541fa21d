"""`make wheels WHEELS=folder`: what the tests on a GPU need beside torch, as wheels, for a machine without a network.

python tests/wheels.py FOLDER [--platform manylinux_2_28_x86_64 --python-version 3.12 ...]     further words are pip's
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


def list_needs(words: list[str]) -> list[str]:
    """Name and version of each package that `dlrun[test-gpu]` needs, as pip would install them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(HERE / "constraints.txt"), *words]
        subprocess.run([*command, f"{HERE.parent}[test-gpu]"], check=True)
        return read_needs(report.read_text())


def read_needs(report: str) -> list[str]:
    """`name==version` of what a report of pip installs, without dlrun and what the machine has."""
    needs = []
    for item in json.loads(report)["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if name != "dlrun" and not PRESENT.match(name):
            needs.append(f"{name}=={version}")
    return needs


def main(folder: str, *words: str) -> None:
    """Fill the folder."""
    needs = list_needs(list(words))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *words]
    if words:
        command.append("--only-binary=:all:")
    subprocess.run([*command, *needs], check=True)
    print(f"{len(needs)} wheels in {folder}; there: make test-gpu WHEELS={folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
