"""Names of run folders."""

import re


def format_folder_name(text: str, longest: int = 100) -> str:
    """`text` as one folder's name: nothing that a shell or a file system minds, and not too long."""
    text = re.sub(r"[\[\](){}'\"]", "", text)  # [4] as 4: a dash would make it look negative
    return re.sub(r"[^\w.,=+-]+", "-", text).strip("-")[:longest] or "run"
