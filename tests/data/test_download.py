import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlrun.data.download import course_table, fetch, fetch_with_torchvision
from dlrun.errors import DataError

CONTENT = b"1,2,3\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine that holds one file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    (served / "t.csv").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/t.csv"
        http.shutdown()


def test_fetch_brings_the_file(server, tmp_path, capsys):
    fetch(server, SHA256, tmp_path / "new" / "t.csv")
    assert (tmp_path / "new" / "t.csv").read_bytes() == CONTENT
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "sha256", "error"), [("t.csv", "0" * 64, ValueError), ("no.csv", SHA256, OSError)])
def test_failed_fetch_leaves_nothing(server, tmp_path, name, sha256, error):
    folder = tmp_path / "new"
    with pytest.raises(error):
        fetch(server.replace("t.csv", name), sha256, folder / "t.csv")
    assert list(folder.iterdir()) == []


def test_interrupted_fetch_leaves_nothing(tmp_path, monkeypatch):
    def half(self, url, output_file, pooch):
        Path(output_file).write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", half)
    with pytest.raises(KeyboardInterrupt):
        fetch("https://example.invalid/t.csv", SHA256, tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_course_table_prefers_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("dlrun.data.download.fetch", lambda *_: pytest.fail("asked the network"))
    (tmp_path / "t.csv").touch()
    assert course_table("t", str(tmp_path), "t", SHA256) == tmp_path / "t.csv"
    (tmp_path / "t.csv.gz").touch()
    assert course_table("t", str(tmp_path), "t", SHA256) == tmp_path / "t.csv.gz"


@pytest.mark.parametrize("error", [OSError("no\nroute"), ValueError("checksum"), PermissionError(13, "denied")])
def test_course_table_without_network(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("dlrun.data.download.fetch", fail)
    with pytest.raises(DataError) as caught:
        course_table("names", str(tmp_path), "t", SHA256)
    message = str(caught.value)
    assert type(error).__name__ in message
    assert "\n" not in message
    for words in (
        f"data=names is not in {tmp_path}",
        "put t.csv.gz there",
        "digits, line, regression",
        "paths.data=",
    ):
        assert words in message


class TestTorchvision:
    """The download through torchvision, with a data set class that stands for its own."""

    def run(self, monkeypatch, root, download):
        from torchvision import datasets

        monkeypatch.setattr(datasets, "MNIST", download)
        fetch_with_torchvision("mnist", "MNIST", root, "MNIST/raw", ["a", "b"])

    def test_moves_whole_files(self, tmp_path, monkeypatch):
        def download(root, download):
            folder = Path(root) / "MNIST" / "raw"
            folder.mkdir(parents=True)
            (folder / "a").write_text("A")
            (folder / "b").write_text("B")

        root = tmp_path / "new"
        self.run(monkeypatch, root, download)
        assert (root / "MNIST" / "raw" / "a").read_text() == "A"
        assert sorted(p.name for p in root.iterdir()) == ["MNIST"]

    def test_half_a_download_leaves_nothing(self, tmp_path, monkeypatch):
        def download(root, download):
            folder = Path(root) / "MNIST" / "raw"
            folder.mkdir(parents=True)
            (folder / "a").write_text("half")
            raise RuntimeError("Error downloading a")

        with pytest.raises(DataError, match=r"data=mnist .*Error downloading a.* put a, b there"):
            self.run(monkeypatch, tmp_path, download)
        assert list(tmp_path.iterdir()) == []
