"""What a client is told when its request is not answered, over HTTP and gRPC alike."""

import reprlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

RETRY_AFTER_S = 1

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = 8


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that is answered with an error.

    Args:
        status: HTTP's status; gRPC's follows from it.
        problem: the value and the bound it broke.
        remedy: what the client can do.
        closes: whether the connection is of no further use.
    """

    def __init__(self, status: HTTPStatus, problem: str, remedy: str, *, closes: bool = False) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.status = status
        self.closes = closes

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP says besides: when to come again, and that the connection ends."""
        found = {"connection": "close"} if self.closes else {}
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            found["retry-after"] = str(RETRY_AFTER_S)
        return found


def bad_request(problem: str, remedy: str) -> Refusal:
    """A request that says something else than it may."""
    return Refusal(HTTPStatus.BAD_REQUEST, problem, remedy)


def busy(problem: str, *, closes: bool = False) -> Refusal:
    """A request that would be answered at another time."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, problem, f"Try again after {RETRY_AFTER_S} s.", closes=closes)


def failure() -> Refusal:
    """A request that the server itself failed at."""
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed at this request", "Its log says more.")


# What a client sent, short enough to be sent back.
shown: Callable[[Any], str] = _SHORT.repr
