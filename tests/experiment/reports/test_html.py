"""report.html of one run: what it shows, that it needs nothing else, and when there is none."""

import base64
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dlrun.runs.reports import page

QUICK = ("tracking.graph=false", "trainer.epochs=3", "hydra.run.dir=run")


class Page(HTMLParser):
    """The tags, addresses, table cells and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text_parts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.text_parts.append(data.strip())


def test_the_page_of_a_run(dlrun: Callable, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    words = ("data=digits", "model=mlp", "scheduler=cosine", 'expect=["train/loss < 9"]')
    outcome = dlrun(*words, *QUICK, "tracking.activations=true", f"paths.data='{evil}'")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "run" / "report.html").read_text()
    page, result = Page(text), outcome.result
    page_text = " ".join(page.text_parts)
    assert page.text_parts[page.text_parts.index("accuracy") + 3] == f"{result['metrics']['test/accuracy']:.4f}"
    assert (
        f"mlp on digits: test/accuracy {result['metrics']['test/accuracy']:.4f} (majority: 0.1003)" in page.text_parts
    )
    for words_of_it in ("completed after 3 epochs", "train/loss < 9", "optimizer adam: lr 0.001", "scheduler cosine"):
        assert words_of_it in page_text
    assert "sha256 " + result["weights_sha256"] in page.text_parts
    assert "torch " in page_text
    pictures = [base64.b64decode(address.partition(",")[2]) for address in page.addresses]
    figures = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert sorted(pictures) == sorted(path.read_bytes() for path in figures)
    assert pictures[-1] == (tmp_path / "run" / "figures" / "activations.png").read_bytes()
    assert len(pictures) > 2
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert evil in page_text


@pytest.mark.slow
def test_curves_are_the_rows_of_metrics_jsonl(dlrun: Callable, tmp_path: Path) -> None:
    outcome = dlrun("data=digits", "model=mlp", *QUICK)
    text = (tmp_path / "run" / "report.html").read_text()
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text)]
    named = {(drawing.find("text").text or ""): drawing for drawing in drawings}  # type: ignore[union-attr]
    assert list(named) == ["loss", "accuracy", "macro_f1", "top5_accuracy"]
    _, train, val = (path.attrib["d"] for path in named["loss"].findall("path"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [[row[key] for row in rows] for key in ("train/loss", "val/loss")]
    low, high = min(map(min, values)), max(map(max, values))
    for drawn, line in zip((train, val), values, strict=True):
        points = [tuple(map(float, point.split())) for point in re.split("[ML]", drawn)[1:]]
        assert [x for x, _ in points] == [0, 140, 280]
        assert [y for _, y in points] == pytest.approx([120 * (high - v) / (high - low) for v in line], abs=0.06)
    assert outcome.code == 0


@pytest.mark.slow
def test_charts_turn_dark_with_the_page_and_photos_do_not(tmp_path: Path) -> None:
    for name in ("loss", "samples"):
        (tmp_path / f"{name}.png").write_bytes(b"")
    kinds = {name: 'class="photo"' in page.embed_picture(tmp_path / f"{name}.png") for name in ("loss", "samples")}
    assert kinds == {"loss": False, "samples": True}
    # Every color of a curve is defined for both grounds.
    style = page.render_page("", "").partition("@media (prefers-color-scheme: dark)")
    for split in ("train", "val", "logged", "lr"):
        assert all(f"--{split}: #" in part for part in (style[0], style[2]))


@pytest.mark.slow
def test_there_is_none_without_figures_or_before_the_end(dlrun: Callable, tmp_path: Path) -> None:
    page = tmp_path / "run" / "report.html"
    assert dlrun("data=blobs", *QUICK, "figures=false").code == 0
    assert not page.exists()
    assert dlrun("resume", "run", "trainer.epochs=4", "figures=true").code == 0
    assert "completed after 4 epochs" in page.read_text()
    assert dlrun("resume", "run", "trainer.epochs=5", "figures=false").code == 0
    assert not page.exists()  # that of another end of the run
    (tmp_path / "net.py").write_text(
        "import pathlib, signal, torch\n\nclass Net(torch.nn.Linear):\n    calls = 0\n"
        "    def __init__(self, spec):\n        super().__init__(spec.input_size, spec.output_size)\n"
        "    def forward(self, x):\n        Net.calls += 1\n"
        "        if Net.calls == 12 and not pathlib.Path('sent').exists():\n"
        "            pathlib.Path('sent').touch()\n            signal.raise_signal(signal.SIGINT)\n"
        "        return super().forward(x)\n"
    )
    assert dlrun("data=blobs", "model._target_=net.Net", *QUICK[:2], "hydra.run.dir=stopped").code == 130
    assert not (tmp_path / "stopped" / "report.html").exists()
