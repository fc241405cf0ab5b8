"""Anchors to look at: a picture of seeds and anchors, and a table of where they land."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from avalanche_vlm._checks import check_count, check_type, wrong_value
from avalanche_vlm.functional.anchors import AnchorSet, PixelSpace
from avalanche_vlm.logging._figures import GREY, new_figure


def plot_anchors(
    anchors: AnchorSet, class_names: Sequence[str], *, space: PixelSpace, most: int = 8, per_class: int = 3
) -> Figure:
    """Draw seeds, the anchors that they became, and the difference, a row a class.

    Differences are drawn around grey, times the number that makes the largest one of the picture black or
    white.

    Args:
        anchors: what `AdversarialAnchors.make` returned.
        class_names: by class id.
        space: what the numbers of the images mean: ``model.backbone.pixel_space``.
        most: number of classes to draw; of more, those that come first.
        per_class: number of anchors of each.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: no anchor, or a number below 1.
    """
    _check(anchors, class_names)
    check_type("space", space, PixelSpace)
    check_count("most", most)
    check_count("per_class", per_class)
    classes = _classes(anchors)[:most]
    columns = min(per_class, int(anchors.classes.bincount().max()))
    figure = new_figure(1.1 + 2.7 * columns, 0.5 + 0.95 * len(classes))
    panels = figure.subplots(len(classes), 3 * columns, squeeze=False)
    before, after = space.pixels(anchors.seeds).cpu(), space.pixels(anchors.images).cpu()
    drawn = {each: (anchors.classes.cpu() == each).nonzero().flatten().tolist()[:columns] for each in classes}
    moved, shown = after - before, [row for rows in drawn.values() for row in rows]
    factor = 0.5 / float(moved[shown].abs().max().clamp(min=1e-12))
    moved = 0.5 + factor * moved
    for place, (each, rows) in enumerate(drawn.items()):
        for column in range(columns):
            for offset, (title, pictures) in enumerate(
                (("seed", before), ("anchor", after), (f"difference × {factor:.0f}", moved))
            ):
                axes = panels[place, 3 * column + offset]
                axes.set_axis_off()
                if column < len(rows):
                    picture = pictures[rows[column]].clamp(0, 1).permute(1, 2, 0).numpy()
                    axes.imshow(picture, interpolation="nearest")
                if place == 0:
                    axes.set_title(title, fontsize=8, color=GREY)
        panels[place, 0].text(
            -0.08,
            0.5,
            _wrapped(class_names[each]),
            transform=panels[place, 0].transAxes,
            ha="right",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    return figure


def anchor_table(anchors: AnchorSet, class_names: Sequence[str]) -> Table:
    """Return where anchors land: for each old class, means over its anchors.

    The probability of the old class is that among all classes seen, those of the experience included;
    distances are cosine distances, to the class's text and to its visual prototype.

    Args:
        anchors: what `AdversarialAnchors.make` returned.
        class_names: by class id.

    Raises:
        TypeError: no `AnchorSet`.
        ValueError: no anchor.
    """
    _check(anchors, class_names)
    table = Table(box=box.SIMPLE_HEAD, caption=Text("means over the anchors of each class, seed -> anchor"))
    table.add_column("Old class", overflow="fold", min_width=16)
    for heading in ("Anchors", "Probability (%)", "Distance to text", "To prototype"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in [*_classes(anchors), None]:
        own = anchors.classes == each if each is not None else anchors.classes >= 0
        chances = (anchors.probabilities_before[own], anchors.probabilities_after[own])
        # A class without prototype has the distance 1 to it from first to last.
        has_prototype = own & (anchors.visual_distances != 1).any(dim=0)
        text, visual = anchors.text_distances[:, own], anchors.visual_distances[:, has_prototype]
        table.add_row(
            Text("all" if each is None else class_names[each]),
            str(int(own.sum())),
            _change(100 * chances[0], 100 * chances[1], 1),
            _change(text[0], text[-1], 3),
            _change(visual[0], visual[-1], 3) if bool(has_prototype.any()) else "–",
        )
    return table


def _check(anchors: AnchorSet, class_names: Sequence[str]) -> None:
    check_type("anchors", anchors, AnchorSet)
    if len(anchors.classes) == 0:
        raise wrong_value("anchors", "at least one anchor", "none")
    if int(anchors.classes.max()) >= len(class_names):
        expected = f"a name for each class, up to {int(anchors.classes.max())}"
        raise wrong_value("class_names", expected, f"{len(class_names)} names")


def _classes(anchors: AnchorSet) -> list[int]:
    return anchors.classes.unique().tolist()


def _change(before: Tensor, after: Tensor, digits: int) -> str:
    return f"{float(before.mean()):.{digits}f} -> {float(after.mean()):.{digits}f}"


def _wrapped(name: str) -> str:
    """Return a name in lines of about fifteen letters."""
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + len(word) > 14:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
