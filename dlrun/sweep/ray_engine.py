"""The engine that runs jobs on Ray: on a cluster that runs, or on one that it starts and ends on this machine."""

import importlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun.core import user_code
from dlrun.core.errors import RequestError
from dlrun.core.terminal import escape_line
from dlrun.engine.device import count_cores
from dlrun.sweep.attempts import Attempt
from dlrun.sweep.engines import Watcher
from dlrun.sweep.jobs import has_own_code
from dlrun.sweep.remote import Remote, run_remote_job

# The longest that a Ctrl-C waits before the jobs receive it.
_POLL_SECONDS = 0.2
# A cluster that does not answer for so long is taken for dead.
_CONNECT_SECONDS = 5.0
# Only a few bytes go over the object store: files are in the shared folder.
_OBJECT_STORE_BYTES = 80 * 1024**2


class Ray(Remote):
    """Runs each job as a task of Ray: nothing of a job stays behind in a cluster that was joined."""

    def __init__(self, folder: Path, settings: dict[str, Any], at_once: int | None) -> None:
        """settings: sweep.ray. RequestError where ray is missing or the cluster cannot be joined."""
        super().__init__(folder, settings["cpus"], at_once)
        # Read by Ray on import.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise RequestError("sweep.engine=ray needs ray; type pip install 'dlrun[ray]'") from error

        self.ray = ray
        address = settings["address"]
        words: dict[str, Any] = {"address": address}
        if address is None:
            words = {
                "address": "local",
                "num_cpus": count_cores(),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        else:
            refuse_silent_cluster(address)
        try:
            ray.init(**words, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
        except Exception as error:
            # Ray raises ConnectionError, RuntimeError, its own errors, and more.
            reason = user_code.get_first_line(error)
            raise RequestError(
                f"sweep.ray.address={address} cannot be joined ({reason}); is `ray start` done?"
            ) from error

        gpus = settings["gpus"]
        if gpus is None:
            gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        self.demand = {"CPU": settings["cpus"], "GPU": gpus}
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._refuse_too_much()
        # Of machines that do not see the sweep's folder.
        self.blind_nodes: set[str] = set()

    def _refuse_too_much(self) -> None:
        """RequestError if no machine has what one job asks for: Ray would wait for ever."""
        if self._count_slots():
            return
        self.close()
        most = max(int(node.get("CPU", 0)) for node in self.nodes)
        raise RequestError(
            f"no machine of the Ray cluster has sweep.ray.cpus={self.demand['CPU']} and "
            f"sweep.ray.gpus={self.demand['GPU']} at once; type sweep.ray.cpus=<at most {most}> sweep.ray.gpus=0"
        )

    def _count_slots(self) -> int:
        """How many jobs the machines take at a time."""
        count = 0
        for node in self.nodes:
            count += min(int(node.get(name, 0) // amount) for name, amount in self.demand.items() if amount)
        return count

    def count_at_once(self, jobs: int) -> int:
        """At most as many as the machines take."""
        return min(super().count_at_once(jobs), self._count_slots())

    def describe(self) -> str:
        """The size of the cluster."""
        count = len(self.nodes)
        machines = f"{count} machine{'s' * (count > 1)}"
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"on Ray, {machines} for {self._count_slots()} at a time, {threads} each"

    def submit(self, attempts: Sequence[Attempt], watcher: Watcher) -> None:
        """Start a task for each attempt, on any machine that is known to see the folder."""
        for attempt in attempts:
            words: dict[str, Any] = {"max_retries": 0, "num_cpus": self.demand["CPU"], "num_gpus": self.demand["GPU"]}
            # A worker is used for further jobs, but for those that might leave something in it.
            if self.demand["GPU"] or has_own_code(attempt.job):
                words["max_calls"] = 1
            if self.blind_nodes:
                words["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self.blind_nodes))})"}
            attempt.handle = self.ray.remote(**words)(_run_task).remote(attempt.remote)

    def collect_ended(self, attempts: Sequence[Attempt], watcher: Watcher) -> list[tuple[Attempt, str]]:
        """Wait for a task to end, at most a moment."""
        by_handle = {attempt.handle: attempt for attempt in attempts}
        self.ray.wait(list(by_handle), num_returns=1, timeout=_POLL_SECONDS)
        ready, _ = self.ray.wait(list(by_handle), num_returns=len(by_handle), timeout=0)
        ended = []
        for handle in ready:
            reason = ""
            try:
                answer, node = self.ray.get(handle)
                if isinstance(answer, str):
                    self._leave_out(node, answer, watcher)
                elif answer:
                    reason = "it was interrupted"
            except self.ray.exceptions.RayError as error:
                # Of a killed worker or machine, of memory that ran out, of a task that was cancelled.
                reason = f"its worker was lost ({type(error).__name__})"
            ended.append((by_handle[handle], reason))
        return ended

    def _leave_out(self, node: str, reason: str, watcher: Watcher) -> None:
        """Give no further jobs to a machine; RequestError where no other is left."""
        if node in self.blind_nodes:
            return
        self.blind_nodes.add(node)
        alive = {known["NodeID"] for known in self.ray.nodes() if known["Alive"]}
        if alive <= self.blind_nodes:
            raise RequestError(f"{reason}; type sweep.dir=<a folder that all machines of the Ray cluster share>")
        watcher.note(f"{reason}, so no job runs there: its folder must be shared by all machines of the Ray cluster")

    def stop(self, attempt: Attempt) -> None:
        """Cancel a task: one that runs gets it as Ctrl-C, and saves."""
        self.ray.cancel(attempt.handle)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self.ray.shutdown()


def refuse_silent_cluster(address: str) -> None:
    """RequestError if nobody answers at host:port, or where `auto` leads: Ray itself would try for minutes."""
    place = os.environ.get("RAY_ADDRESS", "") or _read_newest_address() if address == "auto" else address
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        # Nothing to ask: Ray says what it thinks of it.
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RequestError(
            f"sweep.ray.address={address} cannot be joined: no Ray answers at {escape_line(place)}; type ray start "
            "--head there, or sweep.ray.address=null for a Ray of this machine alone"
        ) from error


def _read_newest_address() -> str:
    """The address of the cluster that was last started on this machine, which may have died; "" for none."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        return file.read_text()[:200].strip()
    except (OSError, ValueError):
        return ""


def _run_task(remote: Any) -> tuple[int | str, str]:
    """Run a job; returns its answer and the machine's id in the cluster."""
    ray: Any = importlib.import_module("ray")
    return run_remote_job(remote), ray.get_runtime_context().get_node_id()
