"""Pictures of drift, and pictures and tables of anchors: their numbers, labels and names."""

import pytest
import torch
from matplotlib.figure import Figure

from avalanche_vlm.functional import AnchorSet, PixelSpace
from avalanche_vlm.logging import (
    ResultRow,
    anchor_table,
    matrix_rows,
    plot_anchors,
    plot_semantic_drift,
    save_figure,
    table_text,
    write_results,
)
from avalanche_vlm.models import DualPathHead
from avalanche_vlm.regularizers import AdversarialAnchors
from avalanche_vlm.testing import TINY_CLASSES, tiny_benchmark, tiny_classifier
from tests.reference.tiny_image_source import moved

PARTS = ("drift_boundary", "drift_core", "drift_everywhere")


def drift_rows(curves, *, method="m", seed=None, **columns):
    """Drift of boundary, core and everywhere after 2, 3, ... experiences."""
    return [
        ResultRow(method=method, seed=seed, metric=part, after_experience=after, value=value, **columns)
        for after, values in enumerate(curves, start=2)
        for part, value in zip(PARTS, values, strict=True)
    ]


NAIVE = [(0.5, 0.125, 0.25), (0.75, 0.25, 0.5)]
HELD = [(0.1, 0.05, 0.07), (0.2, 0.1, 0.15)]


def lines(figure):
    (axes,) = figure.axes
    return [(line.get_linestyle(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_drift_is_drawn_by_method_boundary_solid_and_core_dotted(tmp_path):
    rows = [
        *drift_rows(NAIVE, method="naive"),
        *matrix_rows(torch.rand(3, 2), method="naive", space="all"),
        *drift_rows(HELD, method="SeGP-CL"),
    ]
    path = tmp_path / "results.csv"
    write_results(path, rows)
    for results in (rows, path):
        figure = plot_semantic_drift(results)
        assert isinstance(figure, Figure)
        assert lines(figure) == [
            ("-", [2, 3], [0.5, 0.75]),
            (":", [2, 3], [0.125, 0.25]),
            ("-", [2, 3], [0.1, 0.2]),
            (":", [2, 3], [0.05, 0.1]),
        ]
        assert legend(figure) == ["naive", "SeGP-CL", "boundary", "core"]
        colours = [line.get_color() for line in figure.axes[0].lines]
        assert colours[0] == colours[1] != colours[2] == colours[3]
        assert figure.axes[0].get_ylim()[0] == 0
        assert "bits" in figure.axes[0].get_ylabel()


def test_drift_over_seeds_is_a_mean():
    rows = [*drift_rows(NAIVE, seed=0), *drift_rows(HELD, seed=1), *drift_rows(HELD[:1], seed=2)]
    boundary, core = lines(plot_semantic_drift(rows))
    assert boundary[1:] == ([2, 3], pytest.approx([0.7 / 3, 0.95 / 2]))
    assert core[1:] == ([2, 3], pytest.approx([0.225 / 3, 0.35 / 2]))


def test_one_stream_and_one_benchmark_are_drawn():
    rows = [*drift_rows(NAIVE), *drift_rows(HELD, stream="train")]
    assert lines(plot_semantic_drift(rows, stream="train"))[0][2] == [0.1, 0.2]
    assert lines(plot_semantic_drift(rows))[0][2] == [0.5, 0.75]
    two = [*drift_rows(NAIVE, benchmark="a"), *drift_rows(HELD, benchmark="b")]
    assert lines(plot_semantic_drift(two, benchmark="b"))[0][2] == [0.1, 0.2]
    for results, arguments, sentence in (
        (two, {}, "`benchmark` must be one of 'a', 'b'"),
        (rows, {"benchmark": "c"}, "`benchmark` must be one of ''"),
        (rows, {"stream": "tset"}, "`stream` must be one of 'test', 'train'; got 'tset'"),
        (matrix_rows(torch.rand(3, 2), method="m", space="all"), {}, "SemanticDriftMetric logs them"),
        ([], {}, "`results` must be rows with drift; got none"),
    ):
        with pytest.raises(ValueError, match=sentence):
            plot_semantic_drift(results, **arguments)


@pytest.mark.parametrize("name", ["$a_{b$", "costs $5 and $6", "_private", "100 %"])
def test_names_of_methods_are_no_mathematics(name):
    figure = plot_semantic_drift(drift_rows(NAIVE, method=name))
    figure.canvas.draw()
    assert legend(figure) == [name, "boundary", "core"]
    assert not any(text.get_parse_math() for text in figure.axes[0].get_legend().get_texts())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_experiences_are_whole_numbers(count):
    axes = plot_semantic_drift(drift_rows(count * NAIVE[:1])).axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks == list(range(2, 2 + count))


# Anchors.

SPACE = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
NAMES = ("cat", "dog", "a cow with a very long name", "fox")


def anchor_set():
    """Two anchors for cat and three for fox; cow, with one, has no prototype."""
    generator = torch.Generator().manual_seed(0)
    seeds = torch.rand(6, 3, 4, 4, generator=generator)
    text = torch.tensor([[0.8, 0.6, 0.5, 0.3, 0.2, 0.1], [9.0] * 6, [0.4, 0.2, 0.25, 0.2, 0.1, 0.0]])
    visual = torch.tensor([[0.5, 0.7, 1.0, 0.9, 0.6, 0.3], [9.0] * 6, [0.1, 0.1, 1.0, 0.4, 0.4, 0.4]])
    visual[1, 2] = 1.0
    return AnchorSet(
        seeds=(seeds - 0.4) / 0.25,
        images=(seeds - 0.4) / 0.25 + 0.02 * torch.randn(6, 3, 4, 4, generator=generator),
        classes=torch.tensor([0, 0, 2, 3, 3, 3]),
        text_distances=text,
        visual_distances=visual,
        probabilities_before=torch.tensor([0.1, 0.2, 0.0, 0.25, 0.25, 0.4]),
        probabilities_after=torch.tensor([0.5, 0.7, 1.0, 0.5, 0.5, 0.8]),
    )


def cells(table):
    return {str(column.header): [str(cell) for cell in column.cells] for column in table.columns}


def test_the_table_has_the_means_of_each_class():
    assert cells(anchor_table(anchor_set(), NAMES)) == {
        "Old class": ["cat", "a cow with a very long name", "fox", "all"],
        "Anchors": ["2", "1", "3", "6"],
        "Probability (%)": ["15.0 -> 60.0", "0.0 -> 100.0", "30.0 -> 60.0", "20.0 -> 66.7"],
        "Distance to text": ["0.700 -> 0.300", "0.500 -> 0.250", "0.200 -> 0.100", "0.417 -> 0.192"],
        # Of the five that have a prototype.
        "To prototype": ["0.600 -> 0.100", "–", "0.600 -> 0.400", "0.600 -> 0.280"],
    }


def test_without_any_prototype_there_are_dashes():
    anchors = anchor_set()
    anchors = anchors._replace(visual_distances=torch.ones_like(anchors.visual_distances))
    assert cells(anchor_table(anchors, NAMES))["To prototype"] == ["–"] * 4


def test_the_table_shows_names_as_they_are():
    names = ["[red]cat[/red]", "", "[/]", "$a_{b$"]
    assert cells(anchor_table(anchor_set(), names))["Old class"] == [names[0], names[2], names[3], "all"]
    text = table_text(anchor_table(anchor_set(), names))
    assert all(name in text for name in names)
    assert "seed -> anchor" in text


def shown(axes):
    return None if not axes.images else torch.from_numpy(axes.images[0].get_array().data).permute(2, 0, 1)


def panels(figure, columns):
    """What the axes show, row by row, as triples of seed, anchor and difference."""
    pictures = [shown(axes) for axes in figure.axes]
    rows = [pictures[start : start + 3 * columns] for start in range(0, len(pictures), 3 * columns)]
    return [[row[start : start + 3] for start in range(0, 3 * columns, 3)] for row in rows]


def labels(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_picture_shows_seeds_anchors_and_differences():
    anchors = anchor_set()
    figure = plot_anchors(anchors, NAMES, space=SPACE)
    before, after = SPACE.pixels(anchors.seeds), SPACE.pixels(anchors.images)
    largest = (after - before).abs().max()
    found = panels(figure, 3)
    assert len(found) == 3
    for row, own in zip(found, ([0, 1], [2], [3, 4, 5]), strict=True):
        for triple, index in zip(row, own, strict=False):
            seed, anchor, difference = triple
            torch.testing.assert_close(seed, before[index].clamp(0, 1))
            torch.testing.assert_close(anchor, after[index].clamp(0, 1))
            torch.testing.assert_close(difference, 0.5 + 0.5 * (after - before)[index] / largest)
        assert all(triple == [None] * 3 for triple in row[len(own) :])
    differences = torch.stack([triple[2] for row in found for triple in row if triple[2] is not None])
    assert max(float(differences.max()), 1 - float(differences.min())) == pytest.approx(1)
    stretched = f"difference × {0.5 / largest:.0f}"
    assert [axes.get_title() for axes in figure.axes[:9]] == ["seed", "anchor", stretched] * 3
    assert not any(axes.get_title() for axes in figure.axes[9:])
    assert labels(figure) == ["cat", "a cow with a\nvery long name", "fox"]


def test_the_picture_keeps_to_its_limits():
    anchors = anchor_set()
    assert len(plot_anchors(anchors, NAMES, space=SPACE, per_class=1).axes) == 3 * 3
    assert len(plot_anchors(anchors, NAMES, space=SPACE, per_class=2).axes) == 3 * 6
    assert len(plot_anchors(anchors, NAMES, space=SPACE, per_class=9).axes) == 3 * 9
    two = plot_anchors(anchors, NAMES, space=SPACE, most=2, per_class=1)
    assert labels(two) == ["cat", "a cow with a\nvery long name"]
    (((seed, *_),),) = panels(plot_anchors(anchors, NAMES, space=SPACE, most=1, per_class=1), 1)
    torch.testing.assert_close(seed, SPACE.pixels(anchors.seeds)[0].clamp(0, 1))


def test_anchors_that_did_not_move_are_grey():
    anchors = anchor_set()
    figure = plot_anchors(anchors._replace(images=anchors.seeds), NAMES, space=SPACE, per_class=1)
    for _, _, difference in [triple for row in panels(figure, 1) for triple in row]:
        assert bool((difference == 0.5).all())


def test_names_of_classes_are_no_mathematics(tmp_path):
    names = ["$a_{b$", "", "costs $5 and $6", "[red]x[/red]"]
    figure = plot_anchors(anchor_set(), names, space=SPACE)
    save_figure(figure, tmp_path / "anchors.png", dots_per_inch=40)
    assert labels(figure) == ["$a_{b$", "costs $5 and $6", "[red]x[/red]"]
    assert not any(text.get_parse_math() for axes in figure.axes for text in axes.texts)


def test_wrong_anchors_are_named():
    anchors = anchor_set()
    none = AnchorSet(*(part[..., :0] if part.ndim < 3 else part[:0] for part in anchors))
    for error, sentence, given, names in (
        (TypeError, "`anchors` must be AnchorSet", tuple(anchors), NAMES),
        (ValueError, "`anchors` must be at least one anchor; got none", none, NAMES),
        (ValueError, "`class_names` must be a name for each class, up to 3; got 3 names", anchors, NAMES[:3]),
    ):
        with pytest.raises(error, match=sentence):
            anchor_table(given, names)
        with pytest.raises(error, match=sentence):
            plot_anchors(given, names, space=SPACE)
    for error, name, value in (
        (TypeError, "space", (0.5, 0.5, 0.5)),
        (ValueError, "most", 0),
        (ValueError, "per_class", 0),
        (TypeError, "per_class", 1.5),
    ):
        with pytest.raises(error, match=f"`{name}`"):
            plot_anchors(anchors, NAMES, **{"space": SPACE, name: value})


def test_real_anchors_are_drawn_and_told(tmp_path):
    model = moved(tiny_classifier(DualPathHead(), trainable="both")).train()
    first, second, *_ = tiny_benchmark().train_stream
    for experience in (first, second):
        model.adaptation(experience)
    old = torch.tensor(sorted(first.classes_in_this_experience))
    model.head.update(torch.ones(1, 16), old[:1])
    anchors = AdversarialAnchors(seeds_per_class=2).make(model, second, old)
    figure = plot_anchors(anchors, model.class_names, space=model.backbone.pixel_space)
    save_figure(figure, tmp_path / "anchors.png", dots_per_inch=40)
    assert labels(figure) == [TINY_CLASSES[each] for each in old]
    found = cells(anchor_table(anchors, model.class_names))
    assert found["Old class"] == [*(TINY_CLASSES[each] for each in old), "all"]
    assert found["Anchors"] == ["2", "2", "4"]
    assert [cell == "–" for cell in found["To prototype"]] == [False, True, False]
    means = [anchors.text_distances[step, :2].mean() for step in (0, -1)]
    assert found["Distance to text"][0] == "{:.3f} -> {:.3f}".format(*means)
    assert means[1] < means[0]
