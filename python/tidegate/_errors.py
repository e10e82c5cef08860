"""What can go wrong, by who can do something about it."""

from __future__ import annotations


class TidegateError(Exception):
    """Anything that Tidegate could not do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        """What is wrong, with its causes on lines of their own."""
        self.hint = hint
        """What to try, where something helps."""

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class WrongRequest(TidegateError):
    """The request, or the data that came with it, is wrong: change it and try again."""


class NotFound(WrongRequest):
    """Something that was named does not exist: a project, a view, a feature, a snapshot."""


class Stale(TidegateError):
    """What is live is older than ``max_staleness`` allows, and no ``defaults`` were given."""


class Unavailable(TidegateError):
    """The registry or the online store does not answer: the same call may work later."""


class Failed(TidegateError):
    """We failed. The message says at what."""


class ForgottenWarning(UserWarning):
    """A dataset was made, and the registry could not be told to remember it under its name."""


class LateWarning(UserWarning):
    """Labels are later than what a view had, by more than its ``max_age``: they see what was known before."""
