"""Looking at a memory of seeds."""

import io

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from avalanche_vlm.logging import plot_seeds, save_figure, seed_table

FEATURES = F.normalize(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), dim=1)
LABELS = torch.arange(24) % 4
SEEDS = torch.stack([FEATURES[label == LABELS].mean(dim=0) for label in range(4)])
NAMES = ["cat", "$dog", "a_cow", "fox"]


def text_of(table):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_class_means_are_told_to_be_class_means():
    text = text_of(seed_table(SEEDS, torch.arange(4), FEATURES, LABELS))
    assert "1.000 ± 0.000" in text
    rows = [line.split() for line in text.splitlines() if "variance" in line and "directions" in line]
    assert [row[-2] for row in rows] == ["0.0000", "0.0000"]  # one seed a class does not vary
    assert all(float(row[-1]) > 0 for row in rows)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_the_picture_has_seeds_features_and_means(tmp_path, classes):
    figure = plot_seeds(SEEDS[:classes], torch.arange(classes), FEATURES, LABELS, NAMES)
    assert len(figure.axes[0].lines) == 3 * classes + 3
    save_figure(figure, tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").stat().st_size > 5000
    figure = plot_seeds(SEEDS, torch.arange(4), FEATURES, LABELS, NAMES, most=2)
    assert len(figure.axes[0].lines) == 3 * 2 + 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": [1.0]}, "seeds"),
        ({"seeds": SEEDS[:, :3]}, "seeds"),
        ({"labels": torch.arange(3)}, "labels"),
        ({"labels": torch.arange(4) + 9}, "labels"),
        ({"features": FEATURES[0]}, "features"),
        ({"feature_labels": LABELS.float()}, "feature_labels"),
        ({"class_names": ["cat"]}, "class_names"),
        ({"most": 0}, "most"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    good = {"seeds": SEEDS, "labels": torch.arange(4), "features": FEATURES, "feature_labels": LABELS}
    with pytest.raises((TypeError, ValueError), match=f"`{named}`"):
        plot_seeds(**{**good, "class_names": NAMES, **change})
    if named not in ("class_names", "most"):
        with pytest.raises((TypeError, ValueError), match=f"`{named}`"):
            seed_table(**{**good, **change})
