"""What each visitor of the page asks for: the latest request counts, and work for an earlier one is abandoned."""

from typing import Any


class Abandoned(Exception):  # noqa: N818 - not an error
    """Nobody waits any more for what is being computed."""


class Latest:
    """The latest request of each visitor.

    gradio drops an event that comes while one of its kind runs, or repeats that one in its place. So an event that is never kept
    waiting notes what is asked for, and the one after it, which may wait for others, takes that.
    """

    def __init__(self) -> None:
        self.waiting: dict[str, Any] = {}
        self.working: set[str] = set()

    def ask(self, visitor: str, request: Any) -> None:
        """Notes a request in place of an earlier one."""
        self.waiting[visitor] = request

    def take(self, visitor: str) -> Any | None:
        """Returns what the visitor asks for; None if that is taken already."""
        self.working.add(visitor)
        return self.waiting.pop(visitor, None)

    def check(self, visitor: str) -> None:
        """Raises Abandoned if the visitor has asked for something else since `take`, or has left."""
        if visitor in self.waiting or visitor not in self.working:
            raise Abandoned

    def leave(self, visitor: str) -> None:
        """Forgets a visitor."""
        self.waiting.pop(visitor, None)
        self.working.discard(visitor)
