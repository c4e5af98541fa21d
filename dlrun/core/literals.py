"""Plain text on its way through OmegaConf, which would take `${...}` in it for an interpolation and evaluate it.

OmegaConf evaluates some text twice, so no escape is safe. The text stays outside instead: a placeholder goes in.
"""

import secrets
from typing import Any


class Literals:
    """Texts that look like interpolations, and a placeholder for each.

    Nobody can guess a placeholder, so text from a file cannot hold one.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_hex(16)
        self._texts: list[str] = []

    def hide(self, value: Any) -> Any:
        """Copy plain values with a placeholder for each text that holds `${`."""
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        if isinstance(value, str) and "${" in value:
            self._texts.append(value)
            return self._placeholder(len(self._texts) - 1)
        return value

    def restore(self, value: Any) -> Any:
        """Copy values with the text for each placeholder, also where an interpolation has put it into other text."""
        if isinstance(value, dict):
            return {key: self.restore(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.restore(item) for item in value]

        if isinstance(value, str) and self._secret in value:
            for number, text in enumerate(self._texts):
                value = value.replace(self._placeholder(number), text)
        return value

    def _placeholder(self, number: int) -> str:
        return f"<{self._secret} {number}>"
