"""Checks of messages by what they state (values, bounds, names, options), not by their wording."""

import re
from collections.abc import Callable


def missing(facts: str, message: str) -> list[str]:
    """Return those of the space-separated facts that the message, framed by the command line or not, lacks."""
    text = " ".join(message.replace("│", " ").split())
    return [fact for fact in facts.split() if not re.search(rf"(?<![\w.]){re.escape(fact)}(?!\w|\.\d)", text)]


def states(facts: str) -> Callable[[BaseException], bool]:
    """Return a check for `pytest.raises`: the error's message states every one of the space-separated facts."""

    def check(error: BaseException) -> bool:
        assert missing(facts, str(error)) == [], str(error)
        return True

    return check
