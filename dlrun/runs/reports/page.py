"""HTML pages without external resources: the frame of every report.html, and its parts."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from dlrun.core.terminal import escape_line, escape_text

# Pictures that show images of the data.
_PHOTOS = ("samples", "mistakes")

# The policy lets the browser fetch and run nothing, whatever text an override contains.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #2a72; --shade: #0005;
  --train: #1f77b4; --val: #ff7f0e; --logged: #2ca02c; --lr: #888;
}}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.35rem; line-height: 1.3; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
/* A shade at the side where a table goes on: the table's own ground, which scrolls with it, covers it at the end. */
.wide, pre {{
  overflow-x: auto;
  background:
    linear-gradient(to right, Canvas 50%, transparent) left / 2rem 100% no-repeat local,
    linear-gradient(to left, Canvas 50%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / .8rem 100% no-repeat scroll;
}}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th.left, td.left {{ text-align: left; }}
tr.best td {{ background: var(--mark); font-weight: 600; }}
tr.baseline td {{ background: var(--soft); font-style: italic; }}
img {{ max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin: .5rem 0; }}
li, dd {{ overflow-wrap: anywhere; }}
summary {{ cursor: pointer; font-weight: 600; margin: 1rem 0 .5rem; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }}
pre {{ font-size: .8rem; }}
.curves {{ display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; }}
svg {{ font-size: 11px; fill: currentColor; max-width: 100%; }}
dt {{ opacity: .7; }} dd {{ margin: 0; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --shade: #fff6; --train: #5fb0ee; --val: #ff9f4a; --logged: #5cc85c; --lr: #aaa; }}
  /* White grounds of charts become the page's, and colors keep their hue; photos stay what they are. */
  img {{ filter: invert(.93) hue-rotate(180deg); }}
  img.photo {{ filter: brightness(.85); }}
}}
</style>
</head>
<body>
"""


def render_page(title: str, body: str) -> str:
    """Render a page: `title`, which is text, as its heading, above `body`, which is HTML."""
    heading = html.escape(title)
    # HTML escaping leaves control characters, among them those that reorder text.
    return escape_text(f"{_HEAD.format(title=heading)}<h1>{heading}</h1>\n{body}</body>\n</html>\n")


def render_table(names: Sequence[str], rows: Sequence[Sequence[str]], left: int, kinds: Sequence[str] = ()) -> str:
    """Render a table of cells that are HTML; the first `left` columns are aligned left.

    kinds: "best", "baseline" or "", by row.
    """
    sides = [' class="left"' if i < left else "" for i in range(len(names))]
    head = "".join(f"<th{side}>{html.escape(name)}</th>" for side, name in zip(sides, names, strict=True))
    lines = [f"<tr>{head}</tr>"]
    for i, row in enumerate(rows):
        kind = f' class="{kinds[i]}"' if i < len(kinds) and kinds[i] else ""
        cells = "".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides, row, strict=True))
        lines.append(f"<tr{kind}>{cells}</tr>")
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>\n"


def render_text_table(names: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Render a table of cells that are text; the first `left` columns are aligned left."""
    cells = [[html.escape(escape_line(cell)) for cell in row] for row in rows]
    return render_table(names, cells, left)


def embed_picture(path: Path) -> str:
    """Embed a PNG or GIF in the page; a chart has its lightness turned around where the page is dark."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = ' class="photo"' if path.stem in _PHOTOS else ""
    return f'<img{kind} alt="{html.escape(path.stem)}" src="data:image/{path.suffix[1:]};base64,{data}">\n'


def render_bullets(sentences: Sequence[str]) -> str:
    """Render sentences, which are text, as a list; "" if there are none."""
    if not sentences:
        return ""
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>\n"


def render_facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Render names and values, which are text, side by side."""
    items = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>\n" for name, value in pairs]
    return f"<dl>{''.join(items)}</dl>\n"


def render_details(summary: str, body: str) -> str:
    """Render a body, which is HTML, that is shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}</details>\n"
