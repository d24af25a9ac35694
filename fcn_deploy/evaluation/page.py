"""The self-contained page of an evaluation: scores, classes, and the worst images side by side."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fcn_deploy.evaluation.scores import ClassScore, Confusions, Evaluation, ImageScore, class_scores
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.metrics import Scores
from fcn_deploy.model_info import VOID_LABEL, ModelInfo
from fcn_deploy.storage import staged_file

# The longer side of a picture on the page, pixels.
_SIDE = 480
# Void is white with stripes, unlike any class: their period and width, pixels.
_STRIPES_APART, _STRIPE_WIDTH = 8, 2
_STRIPE_GREY = 150


@dataclass(frozen=True)
class Picture:
    """An image on the page."""

    score: ImageScore  # its name and scores
    panels: Mapping[str, str]  # files as data URIs by caption: photo, truth, and the labels of each runtime
    classes: list[tuple[int, ClassScore]]  # the classes in it with their index, worst first
    void_share: float  # share of its pixels that are void in the truth


def draw(
    photo: Pixels, maps: Mapping[str, Labels | None], score: ImageScore, counts: Confusions, info: ModelInfo
) -> Picture:
    """Draw an h x w x 3 photo and its h x w label maps, by caption, and score its classes from its pixel counts."""
    drawn = {caption: _labels_uri(labels, info) for caption, labels in maps.items() if labels is not None}
    theirs = Scores(counts.pytorch) if counts.pytorch is not None else None
    scored = enumerate(class_scores(info.class_names, Scores(counts.artifact), theirs))
    found = [(index, of_class) for index, of_class in scored if of_class.occurs]
    found.sort(key=lambda pair: -1.0 if math.isnan(pair[1].iu) else pair[1].iu)
    return Picture(score, {"photo": _photo_uri(photo), **drawn}, found, float(np.mean(maps["truth"] == VOID_LABEL)))


def _photo_uri(photo: Pixels) -> str:
    small = Image.fromarray(photo)
    small.thumbnail((_SIDE, _SIDE))
    return _uri(small, "JPEG", quality=85)


def _labels_uri(labels: Labels, info: ModelInfo) -> str:
    small = Image.fromarray(labels)
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
    shown = np.array(small)
    colours = np.full((VOID_LABEL + 1, 3), 255, dtype=np.uint8)
    colours[: len(info.palette)] = info.palette
    rgb = colours[shown]
    stripes = np.indices(shown.shape).sum(axis=0) % _STRIPES_APART < _STRIPE_WIDTH
    rgb[(shown == VOID_LABEL) & stripes] = _STRIPE_GREY
    return _uri(Image.fromarray(rgb), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


PAGE_FILE = "index.html"
NOTHING = "-"
_TEMPLATES = Path(__file__).parent / "templates"
_TEMPLATE = "evaluation.html.jinja"
_SHOWN_CLASSES = 12


def write_page(result: Evaluation, pictures: Sequence[Picture], path: Path) -> None:
    """Write one page about an evaluation, with these pictures of its worst images; raises OutputError."""
    text = _render(result, pictures)
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8", errors="replace")  # names of files may be no UTF-8


def _render(result: Evaluation, pictures: Sequence[Picture]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(share=share, score=score)
    source = result.source
    return environment.get_template(_TEMPLATE).render(
        result=result,
        overall=[(f"artifact, {source.runtime}", result.scores), (source.pytorch, result.pytorch_scores)],
        classes=[(index, of_class) for index, of_class in enumerate(result.classes) if of_class.occurs],
        colours=["#{:02x}{:02x}{:02x}".format(*colour) for colour in result.info.palette],
        pictures=pictures,
        shown_classes=_SHOWN_CLASSES,
        untrained=result.info.provenance.untrained,
    )


def score(value: float | None) -> str:
    """Format a score with four decimals, or a dash where it is undefined."""
    # Adding 0.0 avoids "-0.0000".
    return NOTHING if value is None or math.isnan(value) else f"{round(value, 4) + 0.0:.4f}"


def share(value: float | None) -> str:
    """Format a share in per cent, or a dash where it is undefined."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.2%}"
