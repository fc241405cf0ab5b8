"""Benchmarks that know their class names.

Each builder returns a benchmark of the host whose samples carry the names of all classes, and
`class_names` reads them back from whatever the host makes of it. Label ids are never renumbered:
class id i is ``class_names(benchmark)[i]`` everywhere.
"""

from avalanche_vlm.benchmarks.class_incremental import ClassIncrementalArguments, StreamArguments
from avalanche_vlm.benchmarks.class_names import class_names
from avalanche_vlm.benchmarks.digits_benchmark import digits_benchmark
from avalanche_vlm.benchmarks.domain_benchmark import domain_benchmark, domain_folder_benchmark
from avalanche_vlm.benchmarks.folder_benchmark import folder_benchmark
from avalanche_vlm.benchmarks.known_benchmark import known_benchmark
from avalanche_vlm.benchmarks.known_datasets import KNOWN_DATASETS, KnownDataset
from avalanche_vlm.benchmarks.known_sequence_benchmark import known_sequence_benchmark
from avalanche_vlm.benchmarks.labelled_tensors import LabelledTensors
from avalanche_vlm.benchmarks.multi_dataset_benchmark import multi_dataset_benchmark
from avalanche_vlm.benchmarks.naming import with_class_names
from avalanche_vlm.benchmarks.small_world import (
    small_world_benchmark,
    small_world_domains_benchmark,
    small_world_sequence_benchmark,
)
from avalanche_vlm.benchmarks.small_world_and_digits import small_world_and_digits_benchmark
from avalanche_vlm.benchmarks.tensor_benchmark import tensor_benchmark
from avalanche_vlm.benchmarks.validation import with_validation_stream

__all__ = [
    "KNOWN_DATASETS",
    "ClassIncrementalArguments",
    "KnownDataset",
    "LabelledTensors",
    "StreamArguments",
    "class_names",
    "digits_benchmark",
    "domain_benchmark",
    "domain_folder_benchmark",
    "folder_benchmark",
    "known_benchmark",
    "known_sequence_benchmark",
    "multi_dataset_benchmark",
    "small_world_and_digits_benchmark",
    "small_world_benchmark",
    "small_world_domains_benchmark",
    "small_world_sequence_benchmark",
    "tensor_benchmark",
    "with_class_names",
    "with_validation_stream",
]
