"""The files that `fuzz_study.py` changes: how each kind is made, read, and written around another value."""

import csv
import hashlib
import io
import json
import random
import shutil
import sqlite3
import warnings
from abc import ABC, abstractmethod
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from fuzz_mutations import Change, changed_bytes, changed_value
from kill_study_runs import SCRIPTS, Script, early, fine_tune, lora, made, prepare, text, validated
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from avalanche_vlm import plugins as ours
from avalanche_vlm.benchmarks import folder_benchmark, tensor_benchmark
from avalanche_vlm.checkpointing import _file as checkpoint_file
from avalanche_vlm.checkpointing import resume, save
from avalanche_vlm.checkpointing._bytes import from_bytes, to_bytes
from avalanche_vlm.comparison import compare, grid
from avalanche_vlm.embedding import cache, embed
from avalanche_vlm.logging import read_results, read_runs, results_table
from avalanche_vlm.logging.provenance import run_id
from avalanche_vlm.logging.results import as_rows
from avalanche_vlm.memory import KMeansSeeds, SeedBuffer
from avalanche_vlm.models import (
    CLIPClassifier,
    CosineHead,
    EmbeddingBackbone,
    LearnedContextHead,
    LoRA,
    OpenCLIPBackbone,
    TextFeatureHead,
)
from avalanche_vlm.models import saving as saved_model
from avalanche_vlm.models.tensor_file import write_tensors
from avalanche_vlm.plugins import AdaptiveWeightConsolidationPlugin
from avalanche_vlm.regularizers import CrossModalDistillation, CurrentPairs
from avalanche_vlm.sources import RenderedImageSource, StoredImageSource
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_images


class Container(ABC):
    """A kind of file, or of a folder of files.

    Everything that reading takes is made by `prepare`, once, so that a process forked later only reads.

    Attributes:
        name: for the table.
        is_text: whether a person may edit it: it has no checksum, and another number in it is that number.
    """

    name: str
    is_text = False

    @abstractmethod
    def build(self, folder: Path) -> None:
        """Make the valid files."""

    def prepare(self) -> None:
        """Make what reading needs beside the files."""

    @abstractmethod
    def read(self, folder: Path) -> Any:
        """Return all that comes out of the files, as plain values and tensors."""

    @abstractmethod
    def files(self, folder: Path) -> list[Path]:
        """Return the files whose bytes are changed."""

    @abstractmethod
    def change_value(self, folder: Path, draw: random.Random) -> Change:
        """Change one value inside, and write its file so that all checksums are right."""

    def live(self) -> Any:
        """Return what must be as before when a file is refused."""

    def go_on(self, folder: Path) -> None:
        """Use what was read."""

    def change_bytes(self, folder: Path, draw: random.Random) -> Change:
        """Change the bytes of one of the files."""
        path = draw.choice(self.files(folder))
        data, change = changed_bytes(path.read_bytes(), draw)
        path.write_bytes(data)
        return Change(f"{path.name}, {change.where}", change.what)


class Checkpoint(Container):
    """A checkpoint of a run, between experiences or inside one."""

    def __init__(self, name: str, script: Script, file: str) -> None:
        self.name, self.script, self.file = f"checkpoint, {name}", script, file

    def build(self, folder: Path) -> None:
        self.script.run(folder / "run", "fuzzed", folder / "run" / "results.csv", keep=99)
        shutil.copyfile(folder / "run" / "checkpoints" / self.file, folder / "run.ckpt")
        shutil.copyfile(folder / "run" / "results.csv", folder / "results.csv")
        shutil.copyfile(folder / "run" / "results.runs.jsonl", folder / "results.runs.jsonl")
        shutil.rmtree(folder / "run")

    def prepare(self) -> None:
        from kill_study import end_of

        self.end_of = end_of
        self.results = Path("results.csv")
        self.strategy, self.benchmark = self.script.built("fuzzed", self.results)

    def read(self, folder: Path) -> Any:
        start = resume(self.strategy, folder / "run.ckpt", self.benchmark)
        save(self.strategy, folder / "again.ckpt", self.benchmark)
        again = checkpoint_file.read_checkpoint(folder / "again.ckpt")
        state = from_bytes(again.sections["state"])
        return {"start": start, "end": self.end_of(self.strategy), "state": state | {"logs": None}}

    def live(self) -> Any:
        try:
            return self.end_of(self.strategy)
        except Exception as error:
            return {"broken": f"{type(error).__name__}: {error}"}

    def go_on(self, folder: Path) -> None:
        stream = self.benchmark.streams[self.script.train_stream]
        self.strategy.train(stream[1])
        self.strategy.eval(self.benchmark.test_stream)

    def files(self, folder: Path) -> list[Path]:
        return [folder / "run.ckpt"]

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        path = folder / "run.ckpt"
        file = checkpoint_file.read_checkpoint(path)
        header, sections = file.header, dict(file.sections)
        if draw.random() < 0.15:
            header, change = changed_value(header, draw)
            path.write_bytes(_checkpoint(header, sections))
            return Change(f"header/{change.where}", change.what, change.of_data)
        # Each part as often as the others, for nodes are many.
        part = draw.choice(sorted(sections))
        tree = from_bytes(sections[part])
        key = draw.choice(["nodes", "nodes", *sorted(tree)])
        new, change = changed_value(tree[key], draw)
        sections[part] = to_bytes(tree | {key: new})
        header = header | {"sections": [[name, len(data)] for name, data in sections.items()]}
        path.write_bytes(_checkpoint(header, sections))
        return Change(f"{part}/{key}/{change.where}", change.what, change.of_data)


def _checkpoint(header: Any, sections: dict[str, bytes]) -> bytes:
    """Return the bytes of a checkpoint with a right checksum, whatever its header says."""
    head = json.dumps(header).encode()
    body = b"".join([len(head).to_bytes(8, "big"), head, *sections.values()])
    return b"avlmckpt" + hashlib.sha256(body).digest() + body


class SavedModel(Container):
    """What ``save_pretrained`` wrote."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = f"saved model, {name}", model

    def build(self, folder: Path) -> None:
        self.model().save_pretrained(str(folder / "model"))

    def read(self, folder: Path) -> Any:
        model = CLIPClassifier.from_pretrained(str(folder / "model"))
        names = [list(model.class_names), list(model.class_names.datasets)]
        config = json.loads(json.dumps(saved_config(model)))
        return {"weights": dict(model.state_dict()), "names": names, "config": config}

    def files(self, folder: Path) -> list[Path]:
        return [folder / "model" / "model.safetensors"]

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        (path,) = self.files(folder)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        del metadata["checksum"]
        tensors = load_file(path)
        kind = draw.choice(("config", "config", "config", "tensors", "tensors", "metadata"))
        if kind == "config":
            config, change = changed_value(json.loads(metadata["avalanche_vlm"]), draw)
            metadata["avalanche_vlm"] = json.dumps(config)
        elif kind == "tensors":
            tensors, change = changed_value(tensors, draw)
        else:
            metadata, change = changed_value(metadata, draw)
        texts = isinstance(metadata, dict) and all(_is_text(n) and _is_text(t) for n, t in metadata.items())
        if not texts or not isinstance(tensors, dict) or not all(map(_is_tensor, tensors, tensors.values())):
            return self.change_value(folder, draw)
        told = metadata.get("avalanche_vlm", "")
        write_tensors(path, tensors, metadata | {"checksum": saved_model._checksum(told, tensors)})
        return change


def saved_config(model: CLIPClassifier) -> Any:
    """Return what a saved model says of itself."""
    from avalanche_vlm.models.parts import part_config
    from avalanche_vlm.models.trained_towers import trainable_config

    parts = [model.backbone, model.head, *([model.image_adapter] if model.image_adapter else [])]
    return [*map(part_config, parts), trainable_config(model.trainable), model.train_logit_scale]


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class EmbeddingCache(Container):
    """A folder of embeddings, of tensors or of files of images."""

    def __init__(self, files: bool) -> None:
        self.of_files, self.name = files, f"embedding cache, {'files' if files else 'tensors'}"

    def build(self, folder: Path) -> None:
        if self.of_files:
            for split, index, (x, y) in ((s, i, _images(s)) for i, s in enumerate(("train", "test"))):
                for number, (pixels, label) in enumerate(zip(x, y, strict=True)):
                    path = folder / "images" / split / TINY_CLASSES[int(label)] / f"{number}{index}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray((pixels.permute(1, 2, 0) * 40 + 128).clamp(0, 255).byte().numpy()).save(
                        path
                    )
        self.read(folder)

    def prepare(self) -> None:
        self.backbone = TinyBackbone()

    def read(self, folder: Path) -> Any:
        backbone = self.backbone
        transforms = {"train_transform": backbone.eval_transform, "eval_transform": backbone.eval_transform}
        if self.of_files:
            benchmark = folder_benchmark(
                *(folder / "images" / split for split in ("train", "test")), n_experiences=3, **transforms
            )
        else:
            data = [tiny_images(seed=seed) for seed in (0, 1)]
            benchmark = tensor_benchmark(*data, class_names=TINY_CLASSES, n_experiences=3)
        embedded = embed(benchmark, backbone, cache_dir=folder / "cache")
        return {
            name: [[x.clone(), int(y)] for experience in stream for x, y, *_ in experience.dataset]
            for name, stream in embedded.streams.items()
        }

    def files(self, folder: Path) -> list[Path]:
        found = sorted((folder / "cache").glob("*.safetensors"))
        return found + [path for path in [folder / "cache" / "files.sqlite"] if path.exists()]

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        path = draw.choice(self.files(folder))
        if path.suffix == ".sqlite":
            return _change_row(path, draw)
        with safe_open(path, framework="pt") as file:
            metadata, tensor = dict(file.metadata()), file.get_tensor("embeddings")
        if draw.random() < 0.6:
            tensor, change = changed_value(tensor, draw)
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32:
                return self.change_value(folder, draw)
        else:
            metadata, change = changed_value(metadata, draw)
            if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
                return self.change_value(folder, draw)
        told = {name: value for name, value in metadata.items() if name not in ("format", "checksum")}
        path.unlink()
        cache.write_embeddings(path, tensor, told)
        return Change(f"{path.suffix} {change.where}", change.what, change.of_data)


def _images(split: str) -> Any:
    return tiny_images(per_class=3, seed=int(split == "test"))


def _change_row(path: Path, draw: random.Random) -> Change:
    with closing(sqlite3.connect(path)) as base, base:
        (table,) = next(iter(base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")))
        names = [column[1] for column in base.execute(f"PRAGMA table_info({table})")]
        rows = [list(row) for row in base.execute(f"SELECT rowid, * FROM {table}")]
        row, column = draw.choice(rows), draw.randrange(len(names))
        new, change = changed_value(row[1 + column], draw)
        if not isinstance(new, (str, bytes, int, float, type(None))) or (
            isinstance(new, int) and new >= 2**63
        ):
            new = None
        base.execute(f"UPDATE OR REPLACE {table} SET {names[column]} = ? WHERE rowid = ?", (new, row[0]))
    return Change(f"files.sqlite, {names[column]}", change.what, change.of_data)


class Results(Container):
    """A file of results, and the facts of its runs."""

    name, is_text = "results", True

    def build(self, folder: Path) -> None:
        SCRIPTS["Naive"].run(folder / "run", "a", folder / "results.csv")
        SCRIPTS["ZeroShot"].run(folder / "run2", "b", folder / "results.csv")
        shutil.rmtree(folder / "run"), shutil.rmtree(folder / "run2")

    def read(self, folder: Path) -> Any:
        path = folder / "results.csv"
        rows = read_results(path)
        table = str(results_table(path))
        return {"rows": [repr(row) for row in rows], "runs": read_runs(path), "table": table}

    def files(self, folder: Path) -> list[Path]:
        return [folder / "results.csv", folder / "results.runs.jsonl"]

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        if draw.random() < 0.6:
            path = folder / "results.csv"
            lines = list(csv.reader(io.StringIO(path.read_text(), newline="")))
            row, column = draw.randrange(1, len(lines)), draw.randrange(len(lines[0]))
            new, change = changed_value(lines[row][column], draw)
            lines[row][column] = draw.choice(
                [str(new), str(new), "nan", "inf", "-1", "1e999", "7", "0x1", "1_0"]
            )
            out = io.StringIO(newline="")
            csv.writer(out, lineterminator="\n").writerows(lines)
            path.write_text(out.getvalue())
            what = f"{change.what}, written as {lines[row][column]!r:.40}"
            return Change(f"row {row}, {lines[0][column]}", what, True)
        path = folder / "results.runs.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        index = draw.randrange(len(lines))
        facts, change = changed_value(lines[index], draw)
        if isinstance(facts, dict) and "run" in facts and draw.random() < 0.8:
            facts["run"] = run_id({name: fact for name, fact in facts.items() if name != "run"})
        lines[index] = facts
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Change(f"run {index}, {change.where}", change.what, change.of_data)


class Manifest(Container):
    """A folder of stored images; beside it lies an image that is none of its business."""

    name, is_text = "stored images", True
    prompts = ("a red striped circle", "a blue plain square", "digit seven", "digit two")

    def build(self, folder: Path) -> None:
        StoredImageSource(folder / "images", RenderedImageSource()).generate(self.prompts, range(4))
        Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "outside.png")

    def read(self, folder: Path) -> Any:
        found = StoredImageSource(folder / "images").sample(self.prompts, range(4))
        with_source = StoredImageSource(folder / "images", RenderedImageSource())
        again = with_source.sample(self.prompts, range(4))
        return [found.images, list(found.captions), again.images, list(again.captions)]

    def files(self, folder: Path) -> list[Path]:
        lists = sorted((folder / "images").glob("manifest*.jsonl"))
        return lists * 3 + sorted((folder / "images").rglob("*.png"))

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        path = draw.choice(sorted((folder / "images").glob("manifest*.jsonl")))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        index = draw.randrange(len(lines))
        if draw.random() < 0.25 and "file" in lines[index]:
            new = draw.choice(
                ("../outside.png", str(folder / "outside.png"), ".", "", "nothing.png", "/dev/zero")
            )
            lines[index], change = lines[index] | {"file": new}, Change("file", f"becomes {new[:40]!r}", True)
        else:
            lines[index], change = changed_value(lines[index], draw)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Change(f"line {index}, {change.where}", change.what, change.of_data)


class Outcomes(Container):
    """The folder of a comparison, with what became of its runs."""

    name, is_text = "outcomes of a comparison", True

    def build(self, folder: Path) -> None:
        self.read(folder)

    def prepare(self) -> None:
        methods = {"naive": fine_tune, "replay": partial(fine_tune, memory=7)}
        self.runs = grid(methods, {"small": partial(prepare)}, seeds=[0])

    def read(self, folder: Path) -> Any:
        outcomes = compare(self.runs, folder / "comparison", processes=0)
        paths = sorted((folder / "comparison").rglob("results.csv"))
        costs = ("seconds", "peak")
        rows = {repr(r) for path in paths for r in as_rows(path) if not any(c in r.metric for c in costs)}
        return [[o.method, o.stream, o.seed, o.state, o.reason] for o in outcomes], sorted(rows)

    def files(self, folder: Path) -> list[Path]:
        return sorted((folder / "comparison").rglob("outcome.json"))

    def change_value(self, folder: Path, draw: random.Random) -> Change:
        path = draw.choice(self.files(folder))
        new, change = changed_value(json.loads(path.read_text()), draw)
        path.write_text(json.dumps(new))
        return change


def many_parts() -> list[Any]:
    """Return plugins that keep states of many kinds."""
    return [
        ours.FeatureReplayPlugin(SeedBuffer(max_size=12, source=KMeansSeeds(2)), batch_size=4),
        AdaptiveWeightConsolidationPlugin(CrossModalDistillation(CurrentPairs())),
        LwFPlugin(alpha=1.0, temperature=2.0),
        EWCPlugin(ewc_lambda=5.0),
    ]


def prompted() -> CLIPClassifier:
    """Return a model of open_clip with LoRA and learned prompts."""
    configuration = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 4, "heads": 2, "layers": 1},
    }
    head = LearnedContextHead(context_length=2)
    names = ["cat", "dog", "cow"]
    return CLIPClassifier(
        OpenCLIPBackbone(configuration), head, class_names=names, trainable=LoRA(rank=2, alpha=4.0)
    )


def embedded() -> CLIPClassifier:
    """Return a model on embeddings."""
    head = CosineHead(TextFeatureHead(torch.eye(3, 4)))
    return CLIPClassifier(EmbeddingBackbone(4), head, class_names=["cat", "dog", "cow"])


CONTAINERS: list[Container] = [
    Checkpoint(
        "Replay and LoRA",
        Script(made(FineTune, lora, lambda: [ReplayPlugin(7)], train_epochs=1)),
        "experience-0001.ckpt",
    ),
    Checkpoint(
        "parts of four methods",
        Script(made(FineTune, text, many_parts, train_epochs=1)),
        "experience-0001.ckpt",
    ),
    Checkpoint(
        "inside an experience",
        Script(
            made(FineTune, lora, lambda: [early()], train_epochs=3, eval_every=1),
            validated,
            periodic="valid",
            every_n_epochs=1,
        ),
        "experience-0001-epoch-0001.ckpt",
    ),
    SavedModel("prompts and LoRA", prompted),
    SavedModel("on embeddings", embedded),
    EmbeddingCache(files=False),
    EmbeddingCache(files=True),
    Results(),
    Manifest(),
    Outcomes(),
]
warnings.filterwarnings("ignore", category=DeprecationWarning)
