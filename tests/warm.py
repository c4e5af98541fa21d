"""Processes of Python that have torch and dlrun imported: forked from one that waits, they start in 0.1 s instead of 3.

A forked process has a working directory, an environment, standard streams, signals and an exit status of its own, and
runs `-m module`, `-c code` or a script as a new interpreter would. What it shares with no new interpreter: modules are
imported already, so a variable that one reads at its import (OMP_NUM_THREADS, TORCHDYNAMO_DISABLE) comes too late; and
it knows what `remember_files` has read. The servers that it starts for processes of its own are forked too.
Tests of start-up, of what is imported, and of how dlrun is launched need `subprocess` and `sys.executable`.

The waiting process is this file, run as `python tests/warm.py SOCKET`. Its start takes 5 s, so all workers of a test
run share one: its stdin is a named pipe that each of them holds open, and it ends when the last has closed it.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMPORTS = (
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torch.distributed.launcher.api",
    "torchvision",
    "scipy.stats",
    "sklearn.datasets",
    "sklearn.metrics",
    "matplotlib.pyplot",
    "tensorboard.summary.writer.event_file_writer",
    "dlrun.cli.main",
    "dlrun.experiment.run",
    "dlrun.inference.evaluate",
    "dlrun.config.request",
    "dlrun.sweep.runner",
)

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FOR_GOOD = contextlib.ExitStack()
CLIENT = """#!{python} -SE
import sys
sys.path.insert(0, {folder!r})
import warm
warm.stand_in({address!r}, [*{words!r}, *sys.argv[1:]])
"""


class Server:
    """The waiting process, seen from the tests; it is started in a folder where there is none."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "warm.socket")
        pipe = folder / "warm.pipe"
        with (folder / "warm.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not pipe.exists():
                os.mkfifo(pipe)
            try:
                self._pipe = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it: there is none yet, or it has ended with another worker
                self._pipe = self._start(folder, pipe)
            self.interpreter = str(folder / "python")  # stands for `python`, and starts a warm process
            if not Path(self.interpreter).exists():
                self.write_command(Path(self.interpreter))

    def _start(self, folder: Path, pipe: Path) -> int:
        """Start it; returns the pipe's end that keeps it alive."""
        Path(self.address).unlink(missing_ok=True)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        with (folder / "warm.log").open("w") as log:
            words = [sys.executable, __file__, self.address]
            process = subprocess.Popen(words, stdin=reader, stdout=subprocess.PIPE, stderr=log)
        os.close(reader)
        assert process.stdout is not None
        with process.stdout as stdout:
            stdout.readline()
        process.returncode = 0  # it may serve other workers for longer than this one lives, so nobody waits for it
        return writer

    def close(self) -> None:
        """Let go of it; what was forked lives on."""
        os.close(self._pipe)

    def start(
        self,
        *words: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        start_new_session: bool = False,
    ) -> "Process":
        """Start `python *words`; what it prints is kept."""
        return Process(self.address, words, cwd, os.environ if env is None else env, stdin, start_new_session)

    def start_torchrun(self, *words: str, cwd: Path, start_new_session: bool = False) -> "Process":
        """Start `torchrun *words`, which starts its processes warm too."""
        env = {**os.environ, "PYTHON_EXEC": self.interpreter}
        return self.start("-m", "torch.distributed.run", *words, cwd=cwd, env=env, start_new_session=start_new_session)

    def write_command(self, path: Path, *words: str) -> None:
        """Write an executable file that runs `python *words` and what it is called with, for the lines of a shell."""
        content = CLIENT.format(
            python=sys.executable,
            folder=str(Path(__file__).parent),
            address=self.address,
            words=words,
        )
        path.write_text(content)
        path.chmod(0o755)


class Process:
    """A forked process: as much of subprocess.Popen as tests need."""

    def __init__(
        self,
        address: str,
        words: tuple[str, ...],
        cwd: Path,
        env: Mapping[str, str],
        stdin: int | None,
        start_new_session: bool,
    ) -> None:
        self.returncode: int | None = None
        self._out = _nameless_file()
        self._err = _nameless_file()
        with open(os.devnull) as nothing:  # noqa: PTH123
            streams = [nothing.fileno() if stdin is None else stdin, self._out, self._err]
            self._connection = request(address, list(words), str(cwd), dict(env), streams, start_new_session)
        for close in (functools.partial(os.close, self._out), functools.partial(os.close, self._err)):
            weakref.finalize(self, close)
        weakref.finalize(self, self._connection.close)
        self.pid = int(read_line(self._connection))

    def poll(self) -> int | None:
        """The exit status when it has ended, negative for a signal; else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended."""
        if self.returncode is None:
            ready, _, _ = select.select([self._connection], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(read_line(self._connection))
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        if self.poll() is None:
            # It may have ended just now, and its exit status be on its way.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has written to stdout so far."""
        return _content(self._out)

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return _content(self._err)


def _nameless_file() -> int:
    """The number of an open file that is gone when it is closed."""
    number, name = tempfile.mkstemp()
    os.unlink(name)  # noqa: PTH108
    return number


def _content(number: int) -> str:
    return os.pread(number, os.fstat(number).st_size, 0).decode()


def request(
    address: str, words: list[str], cwd: str, env: dict[str, str], streams: list[int], start_new_session: bool = False
) -> socket.socket:
    """Ask the waiting process for another; the connection says its id, and later its exit status, a line each."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    content = json.dumps({"words": words, "cwd": cwd, "env": env, "start_new_session": start_new_session}).encode()
    socket.send_fds(connection, [len(content).to_bytes(8, "big")], streams)
    connection.sendall(content)
    return connection


def read_line(connection: socket.socket) -> str:
    """A line of an answer, byte by byte, so that nothing behind it is taken."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            raise EOFError("the warm process has ended: see warm.log")
        line += byte
    return line.decode()


def stand_in(address: str, words: list[str]) -> None:
    """Be a command of a shell: ask for a process, hand on signals, end as it ends."""
    connection = request(address, words, os.getcwd(), dict(os.environ), [0, 1, 2])  # noqa: PTH109
    pid = int(read_line(connection))
    for number in STOPPING:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = int(read_line(connection))
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(address: str) -> dict[str, Any]:
    """Fork for each request; in the process that is to run it, this returns the request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that watch
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # sent to the group, they are for what was forked
        while True:
            ready, _, _ = select.select([listener, 0], [], [])
            if 0 in ready:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return watch(connection)


def watch(connection: socket.socket) -> dict[str, Any]:
    """Fork, and say the id and the exit status of the forked process; in that process this returns the request."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(1 << 16)
    message: dict[str, Any] = json.loads(content)
    pid = os.fork()
    if pid == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return message
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    with contextlib.suppress(OSError):  # nobody may be there to be told
        connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def enter(message: dict[str, Any]) -> list[str]:
    """Take on the place and the environment of a request; returns the words behind `python`."""
    if message["start_new_session"]:
        os.setsid()
    os.chdir(message["cwd"])
    os.environ.clear()
    os.environ.update(message["env"])
    time.tzset()
    sys.path[:0] = [entry for entry in message["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    words: list[str] = message["words"]
    return words


def warm_up(folder: Path) -> None:
    """Import what most commands need, and nothing that starts a thread or draws a random number."""
    from multiprocessing import util

    # As most commands are read; Hydra's grammar learns with each word.
    words = ("data=digits", "model=mlp", "trainer.epochs=1", "model.hidden_sizes=[4]", "hydra.run.dir=run")

    del sys.path[0]  # the folder of this file, which no other process has
    for name in IMPORTS:
        importlib.import_module(name)
    util.spawnv_passfds = fork_interpreter  # type: ignore[assignment]
    remember_files(folder)
    sys.modules["dlrun.config.compose"].compose_config(list(words))
    gc.collect()
    gc.freeze()


def remember_files(folder: Path) -> None:
    """Read dlrun's own config files, and scikit-learn's digits, once for all processes; folder: shared with others."""
    spec = importlib.util.spec_from_file_location("composed", Path(__file__).with_name("composed.py"))
    assert spec is not None
    assert spec.loader is not None
    composed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(composed)
    FOR_GOOD.enter_context(composed.use_memory(folder / "composed"))
    remember_digits()
    sys.modules["sklearn.datasets"].load_digits(return_X_y=True)


def remember_digits() -> None:
    """Read scikit-learn's digits once: every reading takes as long as the training of a small net on them."""
    datasets = sys.modules.get("sklearn.datasets")
    if datasets is None or hasattr(datasets.load_digits, "by_scikit_learn"):
        return
    load = datasets.load_digits
    arrays = functools.cache(functools.partial(load, return_X_y=True))

    def load_digits(*, return_X_y: bool = False, **words: Any) -> Any:
        if return_X_y and not words:
            return tuple(array.copy() for array in arrays())
        return load(return_X_y=return_X_y, **words)

    load_digits.by_scikit_learn = load  # type: ignore[attr-defined]
    datasets.load_digits = load_digits


def fork_interpreter(_: str, words: list[str], handles: list[int]) -> int:
    """Start `python -c code` with some open files, as multiprocessing starts its servers; returns the process's id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        first = 3
        for handle in sorted(map(int, handles)):
            os.closerange(first, handle)
            first = handle + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        # What is handled in Python begins anew, and what is blocked or ignored stays so.
        signal.set_wakeup_fd(-1)
        for number in (*STOPPING, signal.SIGUSR1, signal.SIGCHLD):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        # The process that forks holds these.
        for server in ("forkserver", "resource_tracker"):
            instance = getattr(sys.modules[f"multiprocessing.{server}"], f"_{server}")
            instance.__init__()
        exec(words[-1], {"__name__": "__main__"})
        code = 0
    except SystemExit:
        code = 0
    except BaseException as error:
        traceback.print_exception(error)
    finally:
        os._exit(code)


def run(words: list[str]) -> None:
    """What `python *words` does: `-m module`, `-c code` or a script."""
    option, *rest = words
    if option == "-u":  # as torchrun starts its processes
        run(rest)
    elif option == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(option).parent))
        runpy.run_path(option, run_name="__main__")


def exit_code(words: list[str]) -> int:
    """Run it; its exit code, with a traceback where an interpreter prints one."""
    try:
        run(words)
    except SystemExit as error:
        if isinstance(error.code, int | None):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        traceback.print_exception(error)
        if isinstance(error, KeyboardInterrupt):
            return -signal.SIGINT
        return 1
    return 0


def leave(code: int) -> None:
    """End as an interpreter does, but for taking apart what is in memory, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    warm_up(Path(sys.argv[1]).parent)
    request_words = enter(serve(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    leave(exit_code(request_words))
