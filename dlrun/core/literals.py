"""Plain text on its way through OmegaConf, which would take `${...}` in it for an expression and evaluate it.

OmegaConf evaluates some text twice, so no escape is safe. The text stays outside instead: a stand-in goes in.
"""

import secrets
from typing import Any


class Literals:
    """Text that looks like an expression, and the stand-in of each.

    Nobody can guess a stand-in, so text from a file cannot hold one.
    """

    def __init__(self) -> None:
        self._secret = secrets.token_hex(16)
        self._texts: list[str] = []

    def hide(self, value: Any) -> Any:
        """A copy of plain values with a stand-in for each text that holds `${`."""
        if isinstance(value, dict):
            return {key: self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        if isinstance(value, str) and "${" in value:
            self._texts.append(value)
            return self._stand_in(len(self._texts) - 1)
        return value

    def restore(self, value: Any) -> Any:
        """A copy with the text in place of each stand-in, also where an expression has put it into other text."""
        if isinstance(value, dict):
            return {key: self.restore(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.restore(item) for item in value]
        if isinstance(value, str) and self._secret in value:
            for number, text in enumerate(self._texts):
                value = value.replace(self._stand_in(number), text)
        return value

    def _stand_in(self, number: int) -> str:
        return f"<{self._secret} {number}>"
