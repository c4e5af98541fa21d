"""Downloads: whole or not there, continued where they broke off, and nothing outside their folder."""

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dlrun.core.errors import DataError
from dlrun.data.files import download
from dlrun.data.files.download import fetch_course_table, fetch_images, unpack

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT as /t.csv; `breaks_after` bytes it hangs up; `ranges` says whether it can begin in the middle."""

    breaks_after: ClassVar[int | None] = None
    ranges: ClassVar[bool] = True
    range_headers: ClassVar[list[str | None]] = []

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Server.range_headers.append(wanted)
        if self.path != "/t.csv":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : start + self.breaks_after if self.breaks_after else None])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server on this machine that holds one file."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(Server, "range_headers", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/t.csv"
        http.shutdown()


def fetch(url: str, path: Path, sha256: str = SHA256) -> None:
    download.fetch(url, f"sha256:{sha256}", path, schemes=("http",))


def test_fetch_brings_the_file(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server, tmp_path / "new" / "t.csv")
    assert (tmp_path / "new" / "t.csv").read_bytes() == CONTENT
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.csv"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("url", ["http://example.invalid/t.csv", "file:///etc/passwd", "ftp://example.invalid/t"])
def test_only_https_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not https"):
        download.fetch(url, f"sha256:{SHA256}", tmp_path / "new" / "t.csv")
    assert not (tmp_path / "new").exists()
    assert download.COURSE_URL.startswith("https://")
    assert all(address.startswith("https://") for address, _ in download._PUBLISHED.values())


@pytest.mark.parametrize(("name", "sha256", "error"), [("t.csv", "0" * 64, ValueError), ("no.csv", SHA256, OSError)])
def test_a_failed_fetch_brings_nothing(
    server: str, tmp_path: Path, name: str, sha256: str, error: type[Exception]
) -> None:
    path = tmp_path / "new" / "t.csv"
    with pytest.raises(error):
        fetch(server.replace("t.csv", name), path, sha256)
    assert not path.exists()
    fetch(server, path)
    assert [file.name for file in path.parent.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke_off(
    ranges: bool, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    monkeypatch.setattr(Server, "breaks_after", 300_000)
    monkeypatch.setattr(Server, "ranges", ranges)
    for _ in range(2):
        with pytest.raises(OSError, match="IncompleteRead"):
            fetch(server, path)
        assert not path.exists()
    monkeypatch.setattr(Server, "breaks_after", None)
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    first_bytes = 4 * 2**16  # whole chunks of what came
    assert Server.range_headers == [
        None,
        f"bytes={first_bytes}-",
        f"bytes={2 * first_bytes if ranges else first_bytes}-",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(("part", "good"), [(CONTENT, True), (CONTENT[:-1] + b"x", False), (b"old" * 9, False)])
def test_what_lies_there_is_only_used_when_the_whole_is_right(
    part: bytes, good: bool, server: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    (tmp_path / "t.csv.part").write_bytes(part)
    if not good:
        with pytest.raises(ValueError, match="hash"):
            fetch(server, path)
        assert list(tmp_path.iterdir()) == []  # the next try begins anew
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    fetch(server.replace("t.csv", "no.csv"), path)  # it is there: nobody is asked


def test_two_at_once_do_not_share_a_half(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv.part").write_bytes(b"what another process is writing")
    monkeypatch.setattr("dlrun.core.lock.try_lock", lambda _: False)
    fetch(server, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == CONTENT
    assert (tmp_path / "t.csv.part").read_bytes() == b"what another process is writing"


def test_course_table_prefers_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlrun.data.files.download.fetch", lambda *_: pytest.fail("asked the network"))
    (tmp_path / "t.csv").touch()
    assert fetch_course_table("t", str(tmp_path), "t", SHA256) == tmp_path / "t.csv"
    (tmp_path / "t.csv.gz").touch()
    assert fetch_course_table("t", str(tmp_path), "t", SHA256) == tmp_path / "t.csv.gz"


@pytest.mark.parametrize("error", [OSError("no\nroute"), ValueError("checksum")])
def test_course_table_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("dlrun.data.files.download.fetch", fail)
    with pytest.raises(DataError) as caught:
        fetch_course_table("names", str(tmp_path), "t", SHA256)
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


def publish(monkeypatch: pytest.MonkeyPatch, archives: dict[str, bytes]) -> None:
    """`fetch` finds these archives; the set X consists of them."""

    def fake(url: str, checksum: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archives[url.rpartition("/")[2]])

    monkeypatch.setattr(download, "fetch", fake)
    monkeypatch.setitem(download._PUBLISHED, "X", ("https://example.invalid/", dict.fromkeys(archives, "0")))


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """A .tar.gz of files (bytes) and links (text: where to)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    "archives",
    [{"a.gz": gzip.compress(b"A"), "b.gz": gzip.compress(b"B")}, {"x.tar.gz": tar(("set/a", b"A"), ("set/b", b"B"))}],
)
def test_the_files_of_an_image_set_are_unpacked(
    archives: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, archives)
    fetch_images("x", "X", tmp_path / "set", ["a", "b"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()} == {"a": b"A", "b": b"B"}


HOSTILE = {
    "a path upwards": tar(("set/../../evil", b"x"), ("set/a", b"A")),
    "an absolute path": tar(("/tmp/files-evil", b"x"), ("set/a", b"A")),
    "a link in place of a file": tar(("set/a", b"A"), ("set/b", "/etc/passwd")),
    "a hidden way out": tar(("set", ".."), ("set/a", b"A"), ("set/../evil", b"x")),
    "another folder": tar(("set/a", b"A"), ("other/b", b"B")),
    "half of it": tar(("set/a", b"A" * 9999), ("set/b", b"B"))[:60],
    "no archive": b"no archive",
    "nothing": b"",
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE)
def test_nothing_leaves_the_folder_of_an_archive(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, {"x.tar.gz": archive})
    with pytest.raises(DataError, match=r"data=x is not in .*set and could not be downloaded \(.* put a, b there"):
        fetch_images("x", "X", tmp_path / "set", ["a", "b"])
    assert {file.name for file in tmp_path.rglob("*")} <= {"set", "a", "x.tar.gz"}
    assert not Path("/tmp/files-evil").exists()


def test_a_damaged_gzip_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intact = gzip.compress(bytes(range(256)) * 999)
    for archive in (intact[:-30], intact[:40] + b"?" + intact[41:], b"no gzip"):
        publish(monkeypatch, {"a.gz": archive})
        with pytest.raises(DataError, match="put a there"):
            fetch_images("x", "X", tmp_path / "set", ["a"])
        assert [file.name for file in (tmp_path / "set").iterdir()] == ["a.gz"]


def test_names_that_are_not_asked_for_are_left_in_the_archive(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.tar.gz").write_bytes(tar(("set/a", b"A"), ("set/c", b"C"), ("d", b"D")))
    unpack(tmp_path / "set" / "x.tar.gz", ["a"])
    assert {file.name for file in tmp_path.rglob("*")} == {"set", "x.tar.gz", "a"}
