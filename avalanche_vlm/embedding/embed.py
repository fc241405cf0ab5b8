"""The one call: a benchmark of images becomes a benchmark of embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from avalanche_vlm._checks import check_choice, check_count, check_type, wrong_value
from avalanche_vlm._host_benchmarks import AnyBenchmark
from avalanche_vlm._precision import Precision
from avalanche_vlm.embedding.cache import CachedFile, Verify
from avalanche_vlm.embedding.data_fingerprint import FileIndex, sample_digests
from avalanche_vlm.embedding.embedded_dataset import EmbeddedSource
from avalanche_vlm.embedding.embedded_streams import embedded_streams, locate, stream_groups
from avalanche_vlm.embedding.extraction import Features, cached_embeddings, image_encoder
from avalanche_vlm.embedding.frozen_backbone import backbone_facts, frozen_backbone
from avalanche_vlm.embedding.rebuilding import stream_data, with_data
from avalanche_vlm.embedding.samples import Source, ViewSamples
from avalanche_vlm.models import CLIPClassifier, VisionLanguageBackbone


def embed(
    benchmark: AnyBenchmark,
    backbone: VisionLanguageBackbone | CLIPClassifier,
    *,
    cache_dir: str | PathLike[str],
    features: Features = "projected",
    n_views: int = 1,
    batch_size: int = 256,
    precision: Precision = "fp32",
    device: str | torch.device | None = None,
    num_workers: int = 0,
    verify: Verify = "checksum",
) -> AnyBenchmark:
    """Return a copy of ``benchmark`` whose samples are un-normalised embeddings, encoded once for all.

    Experiences, their order, labels, task labels, class names and streams stay what they are;
    ``benchmark`` itself is left alone. Validation and online streams can be cut from the result (an
    online stream cannot be embedded: embed first). x is a row (D,) of a float32 tensor that is
    mapped from disk; y is the host's ``targets``.

    With one view, *every* stream, the train stream included, goes through its eval transform. With
    V > 1, each sample of the train stream is encoded under the eval transform and under V draws of
    its train transform; training (``dataset.train()``) then picks one of the V at random each time,
    from torch's global generator as any augmentation does, and ``dataset.eval()`` gives the eval
    view. What a draw yields depends on the sample and the number of the view, not on batch, process
    or experience, and more views later keep the first ones.

    Files are filed under a fingerprint of the weights, buffers, configuration and forward hooks of
    the backbone (its text tower and logit scale apart), the transforms, precision, features, view,
    and the samples in their order in the data set. So all streams that are cut from the same
    samples share a file, whatever the class order, and a changed weight, transform or sample is
    another file: never stale data. Not in the fingerprint are the batch size, the device and the
    versions of libraries (they move values by rounding; the file says which made it), and the code
    and plain attributes of a backbone class: what tells two apart belongs into its ``config()``.
    What counts as a changed sample says `sample_digests`, and as a changed transform
    `describe_transform`.

    A damaged file is reported by a warning and made anew. An interrupted call goes on where it
    stopped, and any number of processes, under ``torchrun`` or started by hand, share the work
    through ``cache_dir``: the result is bit for bit that of one process with this ``batch_size``.

    Args:
        benchmark: any benchmark of images (3, H, W), of this package or the host's; its eval
            transform (and, for V > 1, its train transform) is the backbone's, as a rule.
        backbone: the encoder, or a classifier with it; its image tower is frozen.
        cache_dir: folder of the files, made where it is missing.
        features: ``"projected"``, the embeddings (B, D) that are compared with text, or ``"raw"``,
            those before the projection (B, D_raw).
        n_views: V, number of views of a training sample.
        batch_size: number of images that are encoded at once.
        precision: ``"fp32"`` for the backbone's own type, or autocast to ``"bf16"`` or ``"fp16"``;
            on disk it is float32 in any case.
        device: where to encode; None for where the backbone is. It is put back afterwards.
        num_workers: processes that read and transform images, as in torch's ``DataLoader``.
        verify: ``"checksum"`` reads each file once a process and compares all of it; ``"header"``
            compares key, size and type only.

    Raises:
        TypeError: an argument is of a wrong type, a transform that cannot be told from others (the
            message says how to name it), or samples that are no float images.
        ValueError: an argument is out of its range, an image tower that trains or is missing, a
            forward hook without a name on it (the message says how to name it), an online stream,
            or features that are not finite.
        OSError: the folder cannot be written to, or is full; the message names it.

    >>> import tempfile
    >>> from avalanche_vlm.benchmarks import class_names
    >>> from avalanche_vlm.testing import TinyBackbone, tiny_benchmark
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embedded = embed(tiny_benchmark(), TinyBackbone(), cache_dir=folder)
    ...     x, y, task = embedded.train_stream[0].dataset[0]
    >>> tuple(x.shape), y, class_names(embedded)[y]
    ((16,), 0, 'cat')
    """
    encoder_module = frozen_backbone(backbone)
    _check_arguments(cache_dir, features, n_views, batch_size, precision, device, num_workers, verify)
    folder = Path(cache_dir).expanduser().absolute()
    streams = stream_data(benchmark)
    sources: dict[str, Source] = {}
    located = {
        name: [locate(dataset, stream_groups(name, n_views), sources) for dataset in data.datasets]
        for name, data in streams.items()
    }
    if not sources:
        raise wrong_value("benchmark", "a benchmark with samples", "none in any stream")
    index = FileIndex(folder / "files.sqlite")
    facts = {
        **backbone_facts(encoder_module),
        "features": features,
        "precision": precision,
        "matmul": torch.get_float32_matmul_precision(),
    }
    target = None if device is None else torch.device(device)
    embedded: dict[int, EmbeddedSource] = {}
    with image_encoder(encoder_module, features, precision, target) as encoder:
        for source in sources.values():
            digests = sample_digests(source.leaf, source.rows, index)
            views: list[Tensor] = []
            for number in range(n_views + 1 if "train" in source.transforms else 1):
                group = "train" if number else "eval"
                data = _data_facts(source.transforms[group], digests, number)
                file = CachedFile(
                    folder, {**facts, **data}, len(digests), batch_size=batch_size, verify=verify
                )
                samples = ViewSamples(source, digests, group=group, view=number)
                title = f"Encoding, view {number} of {n_views}" if number else "Encoding"
                views.append(cached_embeddings(file, samples, encoder, num_workers=num_workers, title=title))
            embedded[id(source)] = EmbeddedSource(source, views)
    return with_data(benchmark, embedded_streams(streams, located, sources, embedded, n_views))


def _data_facts(transforms: str, digests: Sequence[bytes], view: int) -> dict[str, Any]:
    return {
        "transforms": json.loads(transforms),
        "samples": hashlib.sha256(b"".join(digests)).hexdigest(),
        "view": view,
    }


def _check_arguments(
    cache_dir: Any,
    features: Any,
    n_views: Any,
    batch_size: Any,
    precision: Any,
    device: Any,
    num_workers: Any,
    verify: Any,
) -> None:
    check_type("cache_dir", cache_dir, (str, PathLike))
    check_choice("features", features, get_args(Features))
    check_count("n_views", n_views)
    check_count("batch_size", batch_size)
    check_choice("precision", precision, get_args(Precision))
    check_type("device", device, (str, torch.device, type(None)))
    check_count("num_workers", num_workers, at_least=0)
    check_choice("verify", verify, ("checksum", "header"))
