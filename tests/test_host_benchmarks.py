"""Copies of the host's benchmarks, of both of its kinds."""

import pytest
import torch
from avalanche.benchmarks import CLScenario, EagerCLStream, benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from torch.utils.data import TensorDataset

from avalanche_vlm._host_benchmarks import definition_over, experience_over, with_streams


def data_of(labels):
    y = torch.tensor(labels)
    data = TensorDataset(torch.zeros(len(y), 2), y)
    data.targets = labels
    return data


def of_definitions():
    return nc_benchmark(
        data_of([0, 1, 0, 1]), data_of([0, 1]), n_experiences=2, task_labels=False, shuffle=False
    )


def of_streams():
    parts = [as_classification_dataset(data_of([label] * 2)) for label in (0, 1)]
    return benchmark_from_datasets(train=parts, test=[part.subset([0]) for part in parts])


def halved(benchmark):
    """The same benchmark with the first sample of each training experience alone."""
    return with_streams(
        benchmark,
        definitions=lambda known: {
            "train": definition_over(
                known["train"], (data.subset([0]) for data in known["train"].exps_data), None
            )
        },
        streams=lambda other: [
            EagerCLStream(
                "train", [experience_over(e, e.dataset.subset([0])) for e in benchmark.train_stream], other
            )
        ],
    )


@pytest.mark.parametrize("make", [of_definitions, of_streams])
def test_only_what_is_replaced_is_another(make):
    benchmark = make()
    streams = benchmark.streams
    other = halved(benchmark)
    assert type(other) is type(benchmark)
    assert isinstance(other, CLScenario)
    assert list(other.streams) == ["train", "test"]
    assert other.streams["test"] is benchmark.streams["test"]
    assert other.test_stream is benchmark.test_stream
    assert other.train_stream is other.streams["train"]
    assert [len(each.dataset) for each in other.train_stream] == [1, 1]
    assert [list(each.dataset.targets) for each in other.train_stream] == [[0], [1]]
    # The benchmark is as it was.
    assert benchmark.streams == streams
    assert [len(each.dataset) for each in benchmark.train_stream] == [2, 2]


def test_a_copy_of_an_experience_shares_no_attribute_that_a_stream_writes_to():
    benchmark = of_streams()
    first = benchmark.train_stream[1]
    other = experience_over(first, first.dataset.subset([0]))
    EagerCLStream("elsewhere", [other])
    assert (other.current_experience, first.current_experience) == (0, 1)
    assert first.origin_stream is benchmark.train_stream
    assert (len(other.dataset), len(first.dataset)) == (1, 2)


def test_what_is_made_on_demand_stays_so():
    benchmark = of_definitions()
    asked = []

    def datasets():
        for data in benchmark.stream_definitions["train"].exps_data:
            asked.append(len(data))
            yield data

    definition = benchmark.stream_definitions["train"]
    definition_over(definition, datasets(), None, on_demand=True)
    assert asked == []
    definition_over(definition, datasets(), None)
    assert asked == [2, 2]
