"""report.html: whole by itself, and safe whatever an override holds."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dlrun.sweep.comparison.html import render_report
from dlrun.sweep.comparison.ranking import compare


class Page(HTMLParser):
    """The tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_the_answer_and_needs_nothing_else(runs: Any, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"\x89PNG bytes")
    records = [runs("optimizer=sgd", value=0.2), runs("optimizer=adam", value=0.3)]
    records.append(runs("optimizer=lion", value=None, status="failed", metrics={}, error="out of memory"))
    comparison = compare(records, [("optimizer=x", "killed by signal 9")])
    page = Page(render_report(comparison, [picture], [("command", "dlrun -m")], tmp_path))
    assert "best: optimizer=sgd, val/loss 0.2000 (n = 1)" in page.text
    for words in ("add 'seed=range(5)'", "baseline", "optimizer=x: killed by signal 9", "failed: out of memory"):
        assert words in page.text
    pictures = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    assert [base64.b64decode(address.partition(",")[2]) for address in pictures] == [b"\x89PNG bytes"]
    assert sorted(set(page.addresses) - set(pictures)) == ["sweep/1_run/", "sweep/2_run/", "sweep/3_run/"]
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_an_override_is_text_and_nothing_else(runs: Any, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    records = [runs("model.name=a"), runs("model.name=b", value=0.1), runs("model.name=c", value=None, error=evil)]
    records[1].config["model"]["name"] = evil
    object.__setattr__(records[1], "folder", tmp_path / evil.replace("/", "_"))
    page = Page(render_report(compare(records, [(evil, evil)]), [], [(evil, evil)], tmp_path))
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert page.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "href"}


def test_several_tables_are_named(runs: Any) -> None:
    records = [runs(seed=0), runs(seed=1), runs(metric="val/accuracy")]
    text = Page(render_report(compare(records), [], [])).text
    assert "val/loss on digits" in text
    assert "val/accuracy on digits" in text
    assert "2 tables: " in text
