"""Draws the parts of every map of a network: live, moat and rim."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.passes.trace import trace
from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.errors import BundleError, UsageError
from fcn_deploy.graph import infer_shapes
from fcn_deploy.installation import require_extra
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.regions import Region, map_regions
from fcn_deploy.storage import staged_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# Okabe and Ito's colours, which colour-blind readers can distinguish.
_LIVE, _MOAT, _RIM = "#E69F00", "#BFE3F7", "#0072B2"
_PANEL_IN = 1.55


@dataclass(frozen=True)
class MapRegions:
    """The regions of one map."""

    name: str  # of the layer that computes it
    height: Region  # its regions along the height
    width: Region  # its regions along the width
    ends_block: bool  # whether it is the last of its block, as the map of a pool is

    @property
    def live_share(self) -> float:
        """Return the share of the map's pixels that depend on the image."""
        return self.height.live.size * self.width.live.size / (self.height.size * self.width.size)


def regions_of(bundle: Bundle) -> tuple[MapRegions, ...]:
    """Return the maps of the original network, or of the graph when the file does not name a network.

    Raises:
        BundleError: the graph does not pad its image.
    """
    try:
        network, (_, _, height, width) = bundle.info.network, bundle.input_shape
    except BundleError:
        return _traced(bundle)
    if not isinstance(network, NetworkSpec):
        return _traced(bundle)
    rows, columns = (map_regions(size, network.geometry) for size in (height, width))
    return tuple(MapRegions(name, rows[name], columns[name], name.startswith("pool")) for name in rows)


def draw_regions(path: Path, picture: Path) -> Path:
    """Draw the maps of a bundle, or of any ONNX file of fixed shapes, to a PNG or SVG file; returns that file.

    Raises:
        UsageError: the picture has another suffix, or matplotlib is not installed.
        BundleError: the artifact is missing or damaged, or nothing in it frames an image.
        OutputError: the picture cannot be written.
    """
    if picture.suffix not in SUFFIXES:
        raise UsageError(f"{picture} ends in neither .png nor .svg", remedy="Name the picture *.png or *.svg.")
    require_extra("--picture", "report", ["matplotlib"])
    maps = regions_of(open_bundle(path))
    figure = _figure(maps)
    with staged_file(picture) as staging:
        figure.savefig(staging, dpi=110, metadata={"Date": None} if picture.suffix == ".svg" else None)
    return picture


def _traced(bundle: Bundle) -> tuple[MapRegions, ...]:
    infer_shapes(bundle.model)
    found = trace(bundle.model)
    if not found.steps:
        raise BundleError(
            f"{bundle.model_path}: no Conv or Pad frames a map of fixed shape, so every pixel depends on the image",
            remedy="Only networks that pad their input have a frame.",
        )
    return tuple(
        MapRegions(str(step.node.name), *found.regions[step.output], step.node.op_type == "MaxPool")
        for step in found.steps
        if not step.is_local
    )


def _figure(maps: Sequence[MapRegions]) -> "Figure":
    from matplotlib.figure import Figure

    columns: list[list[MapRegions]] = [[]]
    for one in maps:
        columns[-1].append(one)
        if one.ends_block:
            columns.append([])
    columns = [column for column in columns if column]
    rows = max(len(column) for column in columns)
    figure = Figure(figsize=(_PANEL_IN * len(columns) + 0.3, (_PANEL_IN + 0.28) * rows + 1.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[(_PANEL_IN + 0.28) * rows, 1.35])
    upper, lower = halves
    panels = upper.subplots(rows, len(columns), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for index, column in enumerate(columns):
        for row, one in enumerate(column):
            _draw_map(panels[row][index], one)
    _draw_key(lower.subplots())
    return figure


def _draw_map(axes: "Axes", one: MapRegions) -> None:
    """Draw one map; all maps are drawn at the same size."""
    from matplotlib.patches import Rectangle

    height, width = one.height, one.width
    parts = (
        (height.whole, width.whole, _RIM),
        (height.settled, width.settled, _MOAT),
        (height.live, width.live, _LIVE),
    )
    for rows, columns, colour in parts:
        corner = columns.first, rows.first
        axes.add_patch(Rectangle(corner, max(columns.size, 0), max(rows.size, 0), facecolor=colour, linewidth=0))
    axes.set_xlim(0, width.size)
    axes.set_ylim(height.size, 0)
    axes.set_aspect("equal")
    axes.set_title(f"{one.name}  {height.size}x{width.size}", fontsize=8, pad=3)
    middle = (width.live.first + width.live.size / 2, height.live.first + height.live.size / 2)
    axes.text(*middle, f"{one.live_share:.0%}", ha="center", va="center", fontsize=9)


def _draw_key(axes: "Axes") -> None:
    from matplotlib.patches import Patch

    axes.set_axis_off()
    parts = (
        (_LIVE, "live: depends on the image (its share of the map)"),
        (_MOAT, "moat: one constant per channel, the same everywhere"),
        (_RIM, "rim: constants that later zero padding makes different"),
    )
    handles = [Patch(facecolor=colour, label=label) for colour, label in parts]
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=9, borderaxespad=0)
    axes.text(
        0, 0, "Every map of the network as it was trained. Only live pixels have to be computed for an image:\n"
        "moat and rim are known once the weights are.", fontsize=9, va="bottom", transform=axes.transAxes,
    )  # fmt: skip
