"""The rooms of the package as a Mermaid graph: `python tests/draw_rooms.py` writes it into the architecture page.

An arrow is an import, function-local and typing-only ones included; arrows that follow from others are left out.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "dlrun" / "docs" / "architecture.md"


def read_imports() -> dict[str, set[str]]:
    """By room, the rooms that it imports."""
    rooms: dict[str, set[str]] = {}
    for path in sorted((ROOT / "dlrun").glob("*/**/*.py")):
        room = path.relative_to(ROOT / "dlrun").parts[0]
        imported = rooms.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            names = [node.module] if node.module != "dlrun" else [f"dlrun.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if parts[0] == "dlrun" and len(parts) > 1 and parts[1] != room:
                    imported.add(parts[1])
    return {room: imported & rooms.keys() for room, imported in rooms.items()}


def reachable(rooms: dict[str, set[str]], start: str) -> set[str]:
    """All rooms that `start` imports, directly or through others."""
    reached_rooms: set[str] = set()
    waiting = [*rooms[start]]
    while waiting:
        room = waiting.pop()
        if room not in reached_rooms:
            reached_rooms.add(room)
            waiting += rooms[room]
    return reached_rooms


def draw() -> str:
    """The Mermaid source."""
    rooms = read_imports()
    lines = ["```mermaid", "graph TD"]
    for room in sorted(rooms):
        for below in sorted(rooms[room]):
            through_others = any(below in reachable(rooms, other) for other in rooms[room] - {below})
            if not through_others:
                lines.append(f"    {room} --> {below}")
    return "\n".join([*lines, "```"])


def write(page: str) -> str:
    """The page with the graph of today."""
    return re.sub(r"```mermaid\n.*?```", lambda _: draw(), page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(write(PAGE.read_text()))
