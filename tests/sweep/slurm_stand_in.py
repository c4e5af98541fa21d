"""Slurm's commands as far as submitit calls them, for machines without Slurm: jobs are processes of this machine.

`install(folder)` writes sbatch, srun, scancel, scontrol and sacct into folder/bin; the folder has the states of the
jobs. What Slurm does with a job that is lost, told to stop, or queued again, is done here as its manual has it.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "sacct")


def install(folder: Path) -> Path:
    """Write the commands; returns the folder of theirs that PATH is to name."""
    place = folder / "bin"
    place.mkdir(parents=True)
    for name in COMMANDS:
        path = place / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} {folder} {name} "$@"\n')
        path.chmod(0o755)
    return place


def write_state(file: Path, state: str) -> None:
    """Replace the state in one step: sacct reads it at any moment."""
    file.with_suffix(".new").write_text(state)
    file.with_suffix(".new").replace(file)


def sbatch(folder: Path, words: list[str]) -> None:
    """Start a keeper for each job of the array."""
    script = Path(words[-1])
    array = re.search(r"--array=0-(\d+)", script.read_text())
    number = 1000 + len(list(folder.glob("*.sbatch")))
    (folder / f"{number}.sbatch").write_text(script.read_text())
    for task in range(int(array[1]) + 1) if array else [None]:
        name = str(number) if task is None else f"{number}_{task}"
        write_state(folder / f"{name}.state", "PENDING")
        keeper = [sys.executable, "-SE", __file__, str(folder), "keep", name, str(number)]
        subprocess.Popen(
            keeper,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {number}")


def keep(folder: Path, words: list[str]) -> None:
    """Run a job, and again as often as it is queued again."""
    name, number = words
    state = folder / f"{name}.state"
    variables = {"SLURM_JOB_ID": name.replace("_", "0"), "SLURM_STAND_IN": name}
    if "_" in name:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": name.split("_")[1]}
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    while state.read_text() == "PENDING":
        write_state(state, "RUNNING")
        code = subprocess.run(["bash", str(folder / f"{number}.sbatch")], env={**os.environ, **variables}).returncode
        if (folder / f"{name}.requeue").exists():
            (folder / f"{name}.requeue").unlink()
            write_state(state, "PENDING")
        else:
            write_state(state, "FAILED" if code else "COMPLETED")


def srun(folder: Path, words: list[str]) -> None:
    """Become the job, with its output in a file."""
    name = os.environ["SLURM_STAND_IN"]
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start = words.index(sys.executable)
    os.execv(words[start], words[start:])


def scancel(folder: Path, words: list[str]) -> None:
    """Signal the process of a job, or cancel one that is queued."""
    name = words[-1]
    state = folder / f"{name}.state"
    wanted = [word.partition("=")[2] for word in words if word.startswith("--signal=")]
    if "--state=PENDING" in words:
        if state.read_text() == "PENDING":
            write_state(state, "CANCELLED")
    elif state.read_text() == "RUNNING":
        os.kill(int((folder / f"{name}.pid").read_text()), signal.Signals[f"SIG{(wanted or ['TERM'])[0]}"])


def scontrol(folder: Path, words: list[str]) -> None:
    """Have a job queued again when it has ended."""
    assert words[0] == "requeue"
    (folder / f"{words[1]}.requeue").touch()


def sacct(folder: Path, words: list[str]) -> None:
    """The states of all jobs."""
    print("JobID|State|NodeList")
    for path in sorted(folder.glob("*.state")):
        print(f"{path.stem}|{path.read_text()}|vm")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), sys.argv[3:])
