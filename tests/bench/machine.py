"""What stands beside every measured number."""

import contextlib
import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PEERS = ("lightning", "keras", "pytorch-ignite", "accelerate", "torchvision", "pillow", "timm")


def describe() -> str:
    """Processor, cores, threads, memory, versions and date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0] if named else cpu
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    for name in PEERS:
        with contextlib.suppress(PackageNotFoundError):
            versions += f", {name} {version(name)}"
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{cpu}, {cores} cores, {threads} threads{_memory()}; {versions}; {datetime.date.today()}"


def _memory() -> str:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GB"
    return ""


def row(name: str, values: Sequence[float], digits: int = 0) -> str:
    """Median, lowest and highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"  {name:<30} median {middle:,.{digits}f}   {low:,.{digits}f} to {high:,.{digits}f}"
