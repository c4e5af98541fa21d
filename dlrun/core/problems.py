"""The mistakes of one request, collected so that all of them are said at once."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from dlrun.core.errors import ListedError, RequestError

P = ParamSpec("P")
T = TypeVar("T")


class Several(ListedError):
    """More than one mistake, as a numbered list."""

    def __init__(self, found: list[RequestError]) -> None:
        self.found = found
        lines = [f"{i:>3}. {error}" for i, error in enumerate(found, 1)]
        super().__init__("\n".join([f"{len(found)} things are wrong:", *lines]))


class ErrorList:
    """What was wrong so far."""

    def __init__(self) -> None:
        self.found: list[RequestError] = []

    def add(self, error: RequestError) -> None:
        """Note a mistake; each of Several on its own, and the same sentence once."""
        for one in error.found if isinstance(error, Several) else [error]:
            if str(one) not in map(str, self.found):
                self.found.append(one)

    def attempt(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `make` returns, or null when it ends in a RequestError, which is noted."""
        try:
            return make(*args, **kwargs)
        except RequestError as error:
            self.add(error)
            return None

    def settle(self) -> None:
        """Raise what was found: a single mistake as it is, more than one as Several."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise Several(self.found)
