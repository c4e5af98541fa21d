"""TensorBoard's pages and the reports, in a real browser: what a user sees of a sweep, without error or network.

DLRUN_SCREENSHOTS=dlrun/docs/images writes the pictures that README and pages show.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytestmark = pytest.mark.browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# The README's pictures show more epochs than a page needs to be looked at.
EPOCHS = 8 if os.environ.get("DLRUN_SCREENSHOTS") else 3
SWEEP = (
    "data=digits", "model=cnn", "optimizer=sgd,momentum,adam", "optimizer.lr=0.003,0.03", f"trainer.epochs={EPOCHS}",
    "trainer.log_every_steps=4", "sweep.dir=sweep",
)  # fmt: skip
RUNS = 6
WAIT = 60_000  # milliseconds for a page on a busy machine


@dataclass
class Watched:
    """A page, and all that it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, address: str, wait_for: str = "body") -> Any:
        """The first element that fits the selector, once it is there; TensorBoard's are inside shadow roots."""
        self.page.goto(address)
        self.page.locator(wait_for).first.wait_for(timeout=WAIT)
        return self.page.locator(wait_for)

    def wait_until(self, expression: str) -> None:
        """Wait for JavaScript to be true."""
        self.page.wait_for_function(expression, timeout=WAIT)

    def hosts(self) -> set[str]:
        """Whom the page asked for something that it did not hold itself."""
        split = (urlsplit(address) for address in self.requests)
        return {f"{part.scheme}://{part.hostname or ''}" for part in split if part.scheme not in ("data", "blob")}

    def shoot(self, name: str, height: int | None = None, after: int = 0) -> None:
        """Keep a picture of the page for the README, when asked to: at most 256 colors, as it is text and lines.

        after: milliseconds until all is drawn, of what does not say when it is.
        """
        target = os.environ.get("DLRUN_SCREENSHOTS")
        if not target:
            return
        self.page.wait_for_timeout(after)
        from PIL import Image

        size = self.page.viewport_size
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height} if height else None
        shown = self.page.screenshot(full_page=height is not None, **({"clip": clip} if clip else {}))
        image = Image.open(io.BytesIO(shown)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(Path(target) / f"{name}.png", optimize=True)
        assert (Path(target) / f"{name}.png").stat().st_size < 300_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; skipped with the reason where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    if find_spec("playwright") is None:
        pytest.skip("no playwright here: pip install playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[[int, int], Watched]]:
    """`watched(width, height)` opens an empty page; in the end none has complained or crashed."""
    opened: list[Watched] = []

    def make(width: int = 1280, height: int = 800) -> Watched:
        window = Watched(browser.new_page(viewport={"width": width, "height": height}))
        window.page.on("request", lambda request: window.requests.append(request.url))
        window.page.on("console", lambda event: window.errors.append(event.text) if event.type == "error" else None)
        window.page.on("pageerror", lambda error: window.errors.append(str(error)))
        window.page.on("requestfailed", lambda request: window.errors.append(f"not loaded: {request.url}"))
        opened.append(window)
        return window

    yield make
    for one in opened:
        one.page.close()
        assert one.errors == []


@pytest.fixture(scope="module")
def sweep(browser: Any, warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small sweep over optimizers and learning rates, with pictures and graphs."""
    folder = tmp_path_factory.mktemp("browser")
    process = warm.start("-m", "dlrun", "-m", *SWEEP, "figures=true", "tracking.graph=true", cwd=folder)
    assert process.wait(600) == 0, process.err
    return folder / "sweep"


@pytest.fixture(scope="module")
def tensorboard(sweep: Path) -> Iterator[str]:
    """The address of TensorBoard's own server, on the loopback."""
    words = ("--logdir", sweep.name, "--host", "127.0.0.1", "--port", "0")
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words], cwd=sweep.parent, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        yield next(match[0] for line in server.stderr if (match := re.search(r"http://127\.0\.0\.1:\d+/", line)))
    finally:
        server.terminate()
        server.communicate(timeout=30)


def lines_drawn(selector: str, least: int) -> str:
    """JavaScript: whether so many curves are drawn inside elements of that name."""
    return f"""() => {{
        let drawn = 0;
        const walk = (node, inside) => {{
            for (const child of node.children || []) {{
                const within = inside || child.matches("{selector}");
                if (within && child.matches("path.line") && (child.getAttribute("d") || "").length > 40) drawn += 1;
                walk(child, within);
                if (child.shadowRoot) walk(child.shadowRoot, within);
            }}
        }};
        walk(document.body, false);
        return drawn >= {least};
    }}"""


def test_scalars_of_several_runs_side_by_side(tensorboard: str, open_page: Callable[..., Watched]) -> None:
    shown = open_page()
    shown.open(f"{tensorboard}#scalars&tagFilter={quote('^val/')}", "tf-scalar-card")
    shown.wait_until(lines_drawn("tf-scalar-card", 4 * RUNS))  # loss, accuracy, macro_f1, top5_accuracy
    assert shown.hosts() == {"http://127.0.0.1"}
    shown = open_page(1280, 1060)
    tags = quote("^(train|val)/(loss|accuracy)$")
    shown.open(f"{tensorboard}?tagFilter={tags}&smoothing=0#timeseries", "line-chart canvas")
    assert shown.page.locator("scalar-card").count() == 4
    assert shown.page.locator("tb-data-table-content-cell.table-column-run").count() >= RUNS
    shown.page.get_by_role("button", name="Settings").click()
    # Curves are drawn on a canvas.
    shown.shoot("tensorboard", after=2000)


def test_hyperparameters_with_the_metrics_they_came_to(tensorboard: str, open_page: Callable[..., Watched]) -> None:
    shown = open_page(1280, 500)
    cells = shown.open(f"{tensorboard}#hparams", "tf-hparams-table-view div.table-cell")
    boxes = shown.page.locator("paper-checkbox.hparam-checkbox, paper-checkbox.metric-checkbox")
    for box in boxes.all():
        wanted = box.inner_text().strip() in ("optimizer", "optimizer.lr", "hparam/val/loss", "hparam/test/accuracy")
        if (box.get_attribute("checked") is not None) != wanted:
            box.click()
    shown.page.locator("tf-hparams-table-view", has_text="hparam/test/accuracy").wait_for(timeout=WAIT)
    output = " ".join(cells.all_inner_texts())
    assert all(name in output for name in ("sgd", "momentum", "adam", "0.0030000", "0.030000"))
    boxes.first.scroll_into_view_if_needed()
    shown.shoot("hparams")


def test_precision_over_recall(tensorboard: str, open_page: Callable[..., Watched]) -> None:
    shown = open_page(1280, 700)
    shown.open(f"{tensorboard}#pr_curves", "tf-pr-curve-card")
    shown.wait_until(lines_drawn("tf-pr-curve-card", 4 * RUNS))
    shown = open_page(1280, 700)  # in the same page the curves of before would count
    shown.open(f"{tensorboard}#pr_curves&tagFilter=8", "tf-pr-curve-card")
    shown.wait_until(lines_drawn("tf-pr-curve-card", RUNS))
    # They fade in.
    shown.shoot("pr_curves", after=1000)


def test_pictures_graph_and_text(tensorboard: str, open_page: Callable[..., Watched]) -> None:
    shown = open_page()
    pictures = shown.open(f"{tensorboard}#images&tagFilter=confusion", "tf-image-loader img")
    pictures.nth(RUNS - 1).wait_for(timeout=WAIT)
    loaded = "async all => { await Promise.all(all.map(one => one.decode())); return all.map(one => one.naturalWidth) }"
    assert min(pictures.evaluate_all(loaded)) > 300
    labels = shown.open(f"{tensorboard}#graphs", "tf-graph-scene text.nodelabel")
    assert "CNN" in " ".join(labels.all_text_contents())
    text = shown.open(f"{tensorboard}#text", "tf-text-loader")
    shown.page.locator("tf-text-loader", has_text="batch_size: 64").first.wait_for(timeout=WAIT)
    assert text.count() == 2 * RUNS  # the config and the classes of each


def check_page(shown: Watched) -> None:
    """Every picture is there, nothing was fetched, and nothing is wider than the page."""
    sizes = shown.page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert len(sizes) >= 3
    assert min(sizes) > 100
    assert shown.hosts() == {"file://"}
    assert shown.page.locator("script").count() == 0
    assert shown.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_report_of_a_sweep_and_of_its_runs(sweep: Path, open_page: Callable[..., Watched]) -> None:
    shown = open_page(1000, 800)
    heading = shown.open(f"file://{quote(str(sweep / 'report.html'))}", "h1")
    assert "best: optimizer=" in heading.inner_text()
    check_page(shown)
    shown.shoot("report_sweep", 1250)
    shown.page.get_by_text(f"All {RUNS} runs", exact=True).click()
    links = shown.page.locator("details a")
    assert links.count() == RUNS
    best = shown.page.locator("details a").first
    best.click()
    shown.page.locator("h1", has_text="cnn on digits: test/accuracy").wait_for(timeout=WAIT)
    check_page(shown)
    assert shown.page.locator("svg").count() == 4
    assert not shown.page.locator("pre").is_visible()
    shown.page.get_by_text("All settings").click()
    assert "batch_size: 64" in shown.page.locator("pre").inner_text()
    shown.page.get_by_text("All settings").click()
    shown.shoot("report_run", 1250)


def test_the_report_in_the_dark_and_on_a_phone(sweep: Path, open_page: Callable[..., Watched]) -> None:
    shown = open_page(380, 700)
    shown.page.emulate_media(color_scheme="dark")
    for name in ("report.html", *(str(path.relative_to(sweep)) for path in sorted(sweep.glob("*/report.html"))[:1])):
        shown.open(f"file://{quote(str(sweep / name))}", "h1")
        check_page(shown)
        color = "getComputedStyle(document.querySelector('h1')).color"
        assert shown.page.evaluate(color) == "rgb(255, 255, 255)"
