"""What the pictures show: their numbers, labels and names, not their pixels."""

import itertools
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from avalanche_vlm.logging import (
    ResultRow,
    matrix_rows,
    plot_accuracy_matrices,
    plot_accuracy_matrix,
    plot_accuracy_over_experiences,
    plot_forgetting_per_class,
    save_figure,
    write_results,
)

NAN = float("nan")
MATRIX = torch.tensor(
    [[0.5, 0.5, 0.5], [0.8, 0.4, 0.3], [0.6, 1.0, 0.2], [0.4, 0.9, 0.8]], dtype=torch.float64
)


def once(row, value):
    matrix = torch.full((4, 3), NAN, dtype=torch.float64)
    matrix[row] = value
    return matrix


@pytest.fixture
def results():
    return [
        *matrix_rows(MATRIX, method="CGIL", space="all", seed=0),
        *matrix_rows(MATRIX - 0.1, method="CGIL", space="all", seed=1),
        *matrix_rows(MATRIX / 2, method="Naive", space="all", seed=0),
        *matrix_rows(once(3, 0.95), method="Joint training", space="all"),
        *matrix_rows(once(0, 0.5), method="Zero-shot", space="all"),
    ]


def lines(axes):
    """The lines of an axes as {style: list of (x, y)}."""
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axes.lines]


def test_matrix_shows_percent_zero_shot_and_blanks(results):
    figure = plot_accuracy_matrix(results, method="CGIL", space="all")
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    shown = torch.tensor(axes.images[0].get_array())
    torch.testing.assert_close(shown, 100 * (MATRIX - 0.05))
    assert axes.get_title() == "CGIL"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["zero-shot", "1", "2", "3"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "3"]
    assert [text.get_text() for text in axes.texts][:4] == ["45.0", "45.0", "45.0", "75.0"]
    assert "all" in figure.axes[-1].get_ylabel()
    joint = plot_accuracy_matrix(results, method="Joint training", space="all").axes[0]
    assert [text.get_text() for text in joint.texts] == ["95.0"] * 3


def test_matrix_takes_names_of_experiences(results):
    names = ["Aircraft", "Food", "MNIST"]
    figure = plot_accuracy_matrix(results, method="CGIL", space="all", experience_names=names)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == names
    with pytest.raises(ValueError, match="`experience_names` must be 3 names"):
        plot_accuracy_matrix(results, method="CGIL", space="all", experience_names=names[:2])


def test_matrices_of_all_methods_share_one_scale(results):
    figure = plot_accuracy_matrices(results, space="all")
    panels = [axes for axes in figure.axes if axes.images and axes.get_visible() and axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["CGIL", "Naive", "Joint training", "Zero-shot"]
    assert {axes.images[0].get_clim() for axes in panels} == {(0.0, 100.0)}


@pytest.mark.parametrize("name", ["$a_{b$", "$x$", "costs $5 and $6", "100 %"])
def test_names_are_no_mathematics(name):
    rows = matrix_rows(MATRIX, method=name, space="all")
    matrix = plot_accuracy_matrix(rows, method=name, space="all", experience_names=[name, "b", name])
    curves = plot_accuracy_over_experiences(rows, space="all")
    for figure in (matrix, plot_accuracy_matrices(rows, space="all"), curves):
        figure.canvas.draw()
    shown = [matrix.axes[0].title, *matrix.axes[0].get_xticklabels(), *curves.axes[0].texts]
    assert [text.get_text() for text in shown] == [name, name, "b", name, f"{name}  70.0"]
    assert not any(text.get_parse_math() for text in shown)


def test_many_experiences_have_no_numbers_in_cells():
    rows = matrix_rows(torch.rand(31, 30), method="m", space="all")
    assert len(plot_accuracy_matrix(rows, method="m", space="all").axes[0].texts) == 0


def test_curves_are_means_over_experiences_so_far(results):
    axes = plot_accuracy_over_experiences(results, space="all").axes[0]
    curves = lines(axes)
    means = [0.8, 0.8, 0.7]
    assert curves[0] == ([1, 2, 3], pytest.approx([100 * (value - 0.05) for value in means]))
    assert curves[1] == ([1, 2, 3], pytest.approx([50 * value for value in means]))
    # Measured once: horizontal lines over the whole width.
    assert curves[2][1] == pytest.approx([95, 95])
    assert curves[3][1] == pytest.approx([50, 50])
    assert [line.get_linestyle() for line in axes.lines[:2]] == ["-", "-"]
    assert all(line.get_linestyle() == "--" for line in axes.lines[2:])
    # A band for the method with several seeds, and a name for everyone.
    assert len(axes.collections) == 1
    assert sorted(text.get_text() for text in axes.texts) == [
        "CGIL  65.0",
        "Joint training  95.0",
        "Naive  35.0",
        "Zero-shot  50.0",
    ]
    assert axes.get_xlabel() == "experiences trained on"
    assert axes.get_ylabel() == "accuracy on experiences so far (%)"


def test_names_at_the_ends_do_not_overlap():
    rows = [
        row
        for index in range(6)
        for row in matrix_rows(MATRIX + 0.001 * index, method=f"method {index}", space="all")
    ]
    figure = plot_accuracy_over_experiences(rows, space="all")
    places = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    low, high = figure.axes[0].get_ylim()
    assert len(places) == 6
    assert min(b - a for a, b in itertools.pairwise(places)) > 0.05 * (high - low)


def test_a_seen_space_without_zero_shot_row_is_drawn():
    matrix = MATRIX.clone()
    for t in range(4):
        matrix[t, t:] = NAN
    rows = matrix_rows(matrix, method="m", space="seen")
    assert lines(plot_accuracy_over_experiences(rows).axes[0])[0][1] == pytest.approx([80, 80, 70])
    assert len(plot_accuracy_matrix(rows, method="m").axes[0].texts) == 6


def test_a_method_without_any_measurement_has_no_line():
    rows = [
        *matrix_rows(once(3, NAN), method="nothing", space="all"),
        *matrix_rows(MATRIX, method="m", space="all"),
    ]
    axes = plot_accuracy_over_experiences(rows, space="all").axes[0]
    assert [text.get_text() for text in axes.texts] == ["m  70.0"]


def test_one_experience_is_drawn():
    rows = matrix_rows(torch.tensor([[0.5], [0.75]]), method="m", space="all")
    assert lines(plot_accuracy_over_experiences(rows, space="all").axes[0])[0] == ([1.0], [75.0])
    plot_accuracy_matrices(rows, space="all").draw_without_rendering()


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_figures_are_saved_whole_and_without_pyplot(tmp_path, results, ending):
    path = tmp_path / "results.csv"
    write_results(path, results)
    before = set(sys.modules)
    for number, figure in enumerate(
        [plot_accuracy_over_experiences(path, space="all"), plot_accuracy_matrices(path, space="all")]
    ):
        save_figure(figure, tmp_path / f"{number}.{ending}", dots_per_inch=50)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"0.{ending}", f"1.{ending}", "results.csv"]
    assert "matplotlib.pyplot" not in set(sys.modules) - before
    if ending == "png":
        with Image.open(tmp_path / "0.png") as image:
            assert image.size == (360, 210)
            assert len(image.convert("RGB").getcolors(1_000_000)) > 50


def test_what_is_not_in_the_results_is_named(results):
    with pytest.raises(ValueError, match=r"`method` must be one of 'CGIL'.*Did you mean 'CGIL'"):
        plot_accuracy_matrix(results, method="CGILL", space="all")
    with pytest.raises(
        ValueError, match=r"`space` must be one of the label spaces in the results \(\['all'\]\)"
    ):
        plot_accuracy_over_experiences(results, space="seen")
    with pytest.raises(ValueError, match="`space` must be one of"):
        plot_accuracy_over_experiences(results, space="every")
    two = [*results, *matrix_rows(MATRIX, method="CGIL", space="all", benchmark="other")]
    with pytest.raises(ValueError, match="`benchmark` must be one of '', 'other'"):
        plot_accuracy_over_experiences(two, space="all")
    assert len(plot_accuracy_over_experiences(two, space="all", benchmark="other").axes[0].lines) == 1
    unequal = [*results, *matrix_rows(MATRIX[:3, :2], method="CGIL", space="all", seed=2)]
    with pytest.raises(ValueError, match="`results` must be matrices of one size for 'CGIL'"):
        plot_accuracy_matrices(unequal, space="all")
    with pytest.raises(TypeError, match="`figure` must be Figure"):
        save_figure("picture", "picture.png")


def class_rows(curves, *, seed=None, space="seen", method="m", learned=0, **columns):
    """Accuracies of single classes by name, after 0, 1, ... experiences."""
    return [
        ResultRow(
            method=method,
            seed=seed,
            space=space,
            metric="class_accuracy",
            class_name=name,
            after_experience=after,
            experience=learned if after > learned else None,
            value=value,
            **columns,
        )
        for name, curve in curves.items()
        for after, value in enumerate(curve)
    ]


def shown_bars(axes):
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    return dict(zip(names, [patch.get_width() for patch in axes.patches], strict=True))


def test_forgetting_is_the_best_since_learned_minus_the_last():
    curves = {"cat": [0.9, 0.5, 0.8, 0.25], "dog": [0.0, 0.5, 0.5, 0.5], "cow": [1.0, 0.5, 0.25, NAN]}
    rows = class_rows(curves)
    other = [
        *class_rows({"cat": [0.0, 1.0, 0.0]}, method="other"),
        *class_rows({"cat": [0.0, 1.0, 0.0]}, stream="train"),
        *class_rows({"cat": [0.0, 1.0, 0.0]}, space="all"),
        *class_rows({"late": [1.0, 0.5, 0.25]}, learned=9),
    ]
    figure = plot_forgetting_per_class([*other, *rows, *other], method="m")
    axes = figure.axes[0]
    # Zero-shot accuracy, from before the class was learned, does not count.
    assert shown_bars(axes) == pytest.approx({"cat": 55.0, "cow": 25.0, "dog": 0.0})
    assert list(shown_bars(axes)) == ["cat", "cow", "dog"]
    assert [text.get_text() for text in axes.texts] == ["55.0", "25.0", "0.0"]
    assert figure.get_suptitle() == "m"
    assert figure.get_supxlabel() == "3 classes, label space: seen"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the worst at the top
    later = plot_forgetting_per_class(class_rows(curves, learned=2), method="m").axes[0]
    assert shown_bars(later) == pytest.approx({"cat": 0.0, "dog": 0.0})


def test_an_unknown_stream_is_named(results):
    for draw in (plot_accuracy_matrices, plot_accuracy_over_experiences):
        with pytest.raises(ValueError, match="`stream` must be one of 'test'; got 'tset'"):
            draw(results, space="all", stream="tset")


def test_forgetting_over_seeds_is_a_mean_with_whiskers():
    rows = [
        *class_rows({"cat": [0.0, 0.8, 0.2], "dog": [0.0, 0.5, 0.4]}, seed=0),
        *class_rows({"cat": [0.0, 0.8, 0.6], "dog": [0.0, 0.5, 0.4]}, seed=1),
    ]
    figure = plot_forgetting_per_class(rows, method="m")
    axes = figure.axes[0]
    assert shown_bars(axes) == pytest.approx({"cat": 40.0, "dog": 10.0})
    (whiskers,) = [line for line in axes.collections if hasattr(line, "get_segments")]
    ends = [segment[:, 0].tolist() for segment in whiskers.get_segments()]
    deviation = 20 * 2**0.5
    assert ends[0] == pytest.approx([40 - deviation, 40 + deviation])
    assert ends[1] == pytest.approx([10, 10])
    assert "mean ± deviation of 2 seeds" in figure.get_supxlabel()


def test_of_many_classes_the_worst_are_drawn():
    rows = class_rows({f"class {c}": [0.0, 1.0, 1.0 - c / 100] for c in range(100)})
    figure = plot_forgetting_per_class(rows, method="m", most=7)
    axes = figure.axes[0]
    assert shown_bars(axes) == pytest.approx({f"class {c}": float(c) for c in range(99, 92, -1)})
    assert figure.get_supxlabel().startswith("the worst 7 of 100 classes")
    long = class_rows({"a very long name of a class, " * 3 + end: [0.0, 1.0, 0.5] for end in "xy"})
    names = list(shown_bars(plot_forgetting_per_class(long, method="m").axes[0]))
    assert len(set(names)) == 2
    assert all(len(name) <= 32 and "…" in name for name in names)
    dollars = plot_forgetting_per_class(class_rows({"$a_{b$": [0, 1, 0]}, method="$x"), method="$x")
    dollars.canvas.draw()


def test_a_picture_of_forgetting_needs_its_numbers(results):
    rows = class_rows({"cat": [0.5, 0.5]})
    for arguments, error, sentence in (
        ({"method": "n"}, ValueError, "`method` must be one of 'm'"),
        (
            {"space": "all"},
            ValueError,
            r"`space` must be one of the label spaces in the results \(\['seen'\]",
        ),
        ({"space": "some"}, ValueError, "`space` must be one of"),
        ({"benchmark": "b"}, ValueError, "`benchmark` must be one of ''"),
        ({"most": 0}, ValueError, "`most` must be a whole number of at least 1"),
        ({"results": results}, ValueError, "ClassAccuracyMetric logs them"),
        ({"results": class_rows({"cat": [0.5]})}, ValueError, "`results` must be classes that were learned"),
        ({"stream": "train"}, ValueError, "`stream` must be one of 'test'; got 'train'"),
    ):
        with pytest.raises(error, match=sentence):
            plot_forgetting_per_class(**{"results": rows, "method": "m", **arguments})


def test_pictures_show_one_stream(results):
    valid = matrix_rows(MATRIX / 4, method="CGIL", space="all", seed=0, stream="valid")
    both = [*results, *valid, *class_rows({"cat": [0.0, 0.0]}, method="CGIL", space="all", seed=0)]
    axes = plot_accuracy_matrix(both, method="CGIL", space="all").axes[0]
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array()), 100 * (MATRIX - 0.05))
    axes = plot_accuracy_matrices(both, space="all", stream="valid").axes[0]
    torch.testing.assert_close(torch.tensor(axes.images[0].get_array()), 25 * MATRIX)
    curves = plot_accuracy_over_experiences(both, space="all", stream="valid").axes[0]
    assert lines(curves)[0][1] == pytest.approx([20, 20, 17.5])
