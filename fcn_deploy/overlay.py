"""A label map drawn over its photo, with a legend of the classes found."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import ModelInfo

OPACITY = 0.55
LEGEND_ROWS = 12
_TEXT_COLOUR = (32, 32, 32)
_NOTE_COLOUR = (170, 30, 30)


def overlay(image: Pixels, labels: Labels, info: ModelInfo) -> Image.Image:
    """Blend the label colours over an H x W photo and put a legend of the largest classes to its right."""
    colours = Image.fromarray(np.array(info.palette, dtype=np.uint8)[labels])
    photo = Image.blend(Image.fromarray(image), colours, OPACITY)
    # Small photos are enlarged by whole factors so that the legend beside them stays readable.
    factor = max(1, min(round(320 / min(photo.size)), 1000 // max(photo.size)))
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)
    return _with_legend(photo, class_shares(labels), info)


def class_shares(labels: Labels) -> list[tuple[int, float]]:
    """Every label that occurs with its share of the pixels (0..1), largest first."""
    counts = np.bincount(labels.ravel())
    found = sorted(np.flatnonzero(counts), key=lambda label: -counts[label])
    return [(int(label), float(counts[label] / labels.size)) for label in found]


def _with_legend(photo: Image.Image, shares: list[tuple[int, float]], info: ModelInfo) -> Image.Image:
    size = max(12, min(photo.height // 22, 40))
    font = ImageFont.load_default(size)
    lines = [(info.palette[k], f"{info.class_names[k]}  {share:.1%}") for k, share in shares[:LEGEND_ROWS]]
    rest = sum(share for _, share in shares[LEGEND_ROWS:])
    notes = [f"{len(shares) - LEGEND_ROWS} more  {rest:.1%}"] if rest else []
    warning = ["untrained weights:", "labels mean nothing"] if info.provenance.untrained else []
    texts = [text for _, text in lines] + notes + warning
    row, margin = round(size * 1.5), size
    width = 3 * margin + size + round(max(font.getlength(text) for text in texts))
    height = max(photo.height, 2 * margin + row * len(texts))
    canvas = Image.new("RGB", (photo.width + width, height), "white")
    canvas.paste(photo, (0, 0))
    _draw_legend(ImageDraw.Draw(canvas), (photo.width + margin, margin, row, size), lines, notes, warning)
    return canvas


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    layout: tuple[int, int, int, int],
    lines: list[tuple[tuple[int, int, int], str]],
    notes: list[str],
    warning: list[str],
) -> None:
    left, top, row, size = layout
    font = ImageFont.load_default(size)
    for colour, text in lines:
        draw.rectangle((left, top, left + size, top + size), fill=colour, outline=_TEXT_COLOUR)
        draw.text((left + round(1.5 * size), top + size / 2), text, fill=_TEXT_COLOUR, font=font, anchor="lm")
        top += row
    for text, colour in [*((n, _TEXT_COLOUR) for n in notes), *((w, _NOTE_COLOUR) for w in warning)]:
        draw.text((left, top + size / 2), text, fill=colour, font=font, anchor="lm")
        top += row
