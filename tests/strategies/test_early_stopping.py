"""The host's early stopping says nothing where it never sees its metric; our strategies do."""

import re
import warnings

import pytest
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin
from torch.optim import SGD

from avalanche_vlm.benchmarks import with_validation_stream
from avalanche_vlm.metrics import continual_metrics
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier

# The host's own words before it has seen a value.
pytestmark = pytest.mark.filterwarnings("ignore:Metric .* used by the EarlyStopping plugin:UserWarning")


def train(plugin, **arguments):
    """Return how many of six epochs an experience took, and what was said."""
    benchmark = with_validation_stream(tiny_benchmark(per_class=6), fraction=0.3)
    model = tiny_classifier(trainable="image")
    strategy = FineTune(
        model=model,
        optimizer=SGD(model.parameters(), lr=1e-9),  # no accuracy changes
        train_epochs=6,
        plugins=[plugin],
        evaluator=EvaluationPlugin(*continual_metrics(), accuracy_metrics(stream=True), loggers=[]),
        **arguments,
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.valid_stream])
    said = [str(each.message) for each in found if str(each.message).startswith("EarlyStoppingPlugin")]
    return strategy.clock.train_exp_epochs, said


@pytest.mark.parametrize(
    ("name", "eval_every"), [("Top1_Acc_Stream", 1), ("Top1_Acc_Stream", 2), ("Accuracy_seen", 1)]
)
def test_it_stops_and_nothing_is_said(name, eval_every):
    epochs, said = train(EarlyStoppingPlugin(2, "valid_stream", metric_name=name), eval_every=eval_every)
    assert (epochs < 6, said) == (True, [])


@pytest.mark.parametrize(
    ("plugin", "arguments", "words"),
    [
        (("Top1_Acc_Stream", "valid_stream"), {}, "nothing is evaluated.*eval_every=1"),
        (("Top1_Acc_Stream", "valid_stream"), {"eval_every": 0}, "nothing is evaluated.*eval_every=1"),
        (("LastAccuracy_seen", "valid_stream"), {"eval_every": 1}, "LastAccuracy_seen/.*'Accuracy_seen/eval"),
        (
            ("Top1_Acc_Stream", "val_stream"),
            {"eval_every": 1},
            "val_stream.*Top1_Acc_Stream/eval_phase/valid_",
        ),
        (("Top1", "test_stream"), {"eval_every": 1}, "no evaluation inside of training has published"),
    ],
)
def test_it_would_do_nothing(plugin, arguments, words):
    name, stream = plugin
    epochs, said = train(EarlyStoppingPlugin(2, stream, metric_name=name), **arguments)
    # With eval_every=0 the host sees the value of before for ever, and stops for that.
    assert epochs == (2 if arguments == {"eval_every": 0} else 6)
    assert len(said) == 1
    assert re.search(words, said[0]), said
