"""Checks of messages by what they state (values, bounds, names, options), not by their wording."""

import re
from collections.abc import Callable

from fcn_deploy.errors import FcnDeployError

# The folders above a file that a test made: they are named after the test and its parameters.
_TEST_FOLDERS = re.compile(r"\S*/pytest-of-[^/\s]+/pytest-\d+(?:/popen-gw\d+)?/\w*(?:/(?:\S*/)?)?")


def missing(facts: str, message: str) -> list[str]:
    """Return those of the space-separated facts that the message, framed by the command line or not, lacks.

    Of a path below pytest's temporary directory only the file's name counts, unless the fact is such a path itself.
    """
    if not facts.split():
        raise ValueError("no facts to look for")
    whole = " ".join(message.replace("│", " ").split())
    names = _TEST_FOLDERS.sub("", whole)

    def stated(fact: str) -> bool:
        text = whole if _TEST_FOLDERS.match(fact) else names
        return re.search(rf"(?<![\w.]){re.escape(fact)}(?!\w|\.\d)", text) is not None

    return [fact for fact in facts.split() if not stated(fact)]


def states(facts: str, *, remedy: str = "") -> Callable[[BaseException], bool]:
    """Return a check for `pytest.raises`: the problem, without the remedy, states every space-separated fact.

    With `remedy`, the error's remedy states those facts as well.
    """

    def check(error: BaseException) -> bool:
        problem, advice = (error.problem, error.remedy) if isinstance(error, FcnDeployError) else (str(error), "")
        assert missing(facts, problem) == [], str(error)
        assert not remedy or missing(remedy, advice) == [], str(error)
        return True

    return check
