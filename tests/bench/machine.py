"""What stands beside every measured number."""

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch


def described() -> str:
    """Processor, cores, threads, versions and date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0] if named else cpu
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {datetime.date.today()}"
    )


def row(name: str, values: Sequence[float], digits: int = 0) -> str:
    """Median, lowest and highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"  {name:<30} median {middle:,.{digits}f}   {low:,.{digits}f} to {high:,.{digits}f}"
