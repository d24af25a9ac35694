"""The page of an evaluation: scores, classes, and the worst images side by side; fetches nothing from anywhere."""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_deploy.errors import UsageError
from fcn_deploy.evaluation.pictures import Picture
from fcn_deploy.evaluation.result import Evaluation
from fcn_deploy.metrics import Scores
from fcn_deploy.staging import staged_file

PAGE_FILE = "index.html"
NOTHING = "-"
_TEMPLATES = Path(__file__).parent / "templates"
_TEMPLATE = "evaluation.html.jinja"
_SHOWN_CLASSES = 12


def page_possible() -> bool:
    """Whether what makes pages is installed, without loading it."""
    return importlib.util.find_spec("jinja2") is not None


def require_page() -> None:
    """Check that pages can be made.

    Raises:
        UsageError: a package is missing; names the extra that brings it.
    """
    if not page_possible():
        raise UsageError(
            "a page needs jinja2, which is not installed",
            remedy="pip install 'fcn-deploy[report]', or leave --page out.",
        )


def write_page(result: Evaluation, pictures: Sequence[Picture], path: Path) -> None:
    """Write one page about an evaluation, with these pictures of its worst images.

    Raises:
        OutputError: it cannot be written.
    """
    text = page(result, pictures)
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def page(result: Evaluation, pictures: Sequence[Picture]) -> str:
    """The page's HTML."""
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(share=share, score=score)
    return environment.get_template(_TEMPLATE).render(
        result=result,
        overall=_overall(result),
        classes=[(index, of_class) for index, of_class in enumerate(result.classes) if of_class.occurs],
        colours=["#{:02x}{:02x}{:02x}".format(*colour) for colour in result.info.palette],
        pictures=pictures,
        shown_classes=_SHOWN_CLASSES,
        untrained=result.info.provenance.untrained,
    )


def score(value: float | None) -> str:
    """A score in four decimals, or a dash where it is undefined."""
    # A loss of less than nothing and half a unit is no "-0.0000".
    return NOTHING if value is None or math.isnan(value) else f"{round(value, 4) + 0.0:.4f}"


def share(value: float | None) -> str:
    """A share in per cent, or a dash where it is undefined."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.2%}"


def _overall(result: Evaluation) -> list[dict[str, Any]]:
    """One row per side: who, and its four scores as texts."""
    sides: list[tuple[str, Scores | None]] = [
        (f"artifact, {result.source.runtime}", result.scores),
        (result.source.pytorch or "", result.pytorch_scores),
    ]
    return [
        {
            "name": name,
            "figures": (
                score(scores.mean_iu),
                share(scores.pixel_accuracy),
                share(scores.mean_accuracy),
                score(scores.frequency_weighted_iu),
            ),
        }
        for name, scores in sides
        if scores is not None
    ]
