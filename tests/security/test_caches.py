"""Folders of embeddings from anywhere: what cannot be those asked for is damage, and is made anew."""

import json
import os
import sqlite3
import struct
from contextlib import closing

import pytest
import torch
from safetensors.torch import save_file

from avalanche_vlm.benchmarks import tensor_benchmark
from avalanche_vlm.embedding import cache, embed
from avalanche_vlm.embedding.cache import CachedFile, DamagedFileError, read_embeddings, write_embeddings
from avalanche_vlm.embedding.data_fingerprint import FileIndex
from avalanche_vlm.models.fingerprint import fingerprint
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_images

FORMAT = "avalanche_vlm embeddings, 1"


def rewritten(path, tensors, **metadata):
    """Write a file with its right checksum, as somebody could who knows how it is made."""
    told = {"format": FORMAT, "key": "k", "checksum": fingerprint({"embeddings": tensors["embeddings"]})}
    path.unlink(missing_ok=True)
    save_file(tensors, path, metadata={**told, **metadata})


@pytest.fixture
def path(tmp_path):
    write_embeddings(tmp_path / "x.safetensors", torch.ones(6, 4), {"key": "k"})
    return tmp_path / "x.safetensors"


def damaged(path, message, verify="checksum"):
    with pytest.raises(DamagedFileError, match=message):
        read_embeddings(path, "k", 6, verify)


@pytest.mark.parametrize("verify", ["checksum", "header"])
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(5, 4), "not 6 embeddings"),
        (torch.ones(7, 4), "not 6 embeddings"),
        (torch.ones(6, 4, 1), "not 6 embeddings"),
        (torch.ones(6), "not 6 embeddings"),
        (torch.ones(6, 0), "not 6 embeddings"),
        (torch.ones(6, 4).double(), "float64"),
        (torch.ones(6, 4).half(), "float16"),
        (torch.ones(6, 4).int(), "int32"),
    ],
)
def test_another_count_or_type_is_damage(tensor, message, verify, path):
    rewritten(path, {"embeddings": tensor})
    damaged(path, message, verify)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_damage(value, path):
    x = torch.ones(6, 4)
    x[5, 3] = value
    rewritten(path, {"embeddings": x})
    damaged(path, "NaN or infinity")


def test_another_tensor_beside_or_other_facts_are_damage(path):
    rewritten(path, {"embeddings": torch.ones(6, 4), "more": torch.ones(1)})
    damaged(path, "not only 'embeddings'", "header")
    for other in ({"key": "other"}, {"format": "other"}, {"checksum": "0" * 64}):
        rewritten(path, {"embeddings": torch.ones(6, 4)}, **other)
        damaged(path, "header is not|checksum")


def headed(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


TOLD = {"format": FORMAT, "key": "k", "checksum": "0"}


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [6, 2**40], "data_offsets": [0, 6 * 2**42]},
        {"dtype": "F32", "shape": [6, 4], "data_offsets": [0, 100]},
        {"dtype": "F32", "shape": [6, 4], "data_offsets": [-96, 0]},
        {"dtype": "F32", "shape": [6, -4], "data_offsets": [0, 96]},
        {"dtype": "F32", "shape": [6, 1e300], "data_offsets": [0, 96]},
        {"dtype": "F32", "shape": [6, 10**30], "data_offsets": [0, 96]},
        {"dtype": "O", "shape": [6, 4], "data_offsets": [0, 96]},
        "x",
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("verify", ["checksum", "header"])
def test_a_header_that_does_not_fit_the_file_is_damage(entry, verify, path):
    headed(path, {"__metadata__": TOLD, "embeddings": entry}, bytes(96))
    damaged(path, "embeddings|bytes", verify)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"{", b"[]", b'{"a": 1, "a": 1}', b"\xff", b""])
def test_a_header_that_is_none_is_damage(header, path):
    headed(path, header)
    damaged(path, "header")


def test_a_file_that_is_shorter_than_it_says_is_damage_and_not_mapped(path):
    size = path.stat().st_size
    for length in (0, 7, size - 96, size - 1):
        os.truncate(path, min(length, path.stat().st_size))
        damaged(path, "cut|bytes", "header")
        path.unlink()
        write_embeddings(path, torch.ones(6, 4), {"key": "k"})


# The index of files


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture"
    file.write_bytes(b"pixels")
    os.utime(file, (10**9, 10**9))
    return file


@pytest.fixture
def index(picture, tmp_path):
    index = FileIndex(tmp_path / "files.sqlite")
    index.digests([str(picture)])
    assert index.path.exists()
    return index


@pytest.mark.parametrize("digest", [b"", b"short", b"x" * 33, "x" * 32, None, 3])
def test_a_digest_that_is_none_is_not_believed(digest, index, picture):
    (right,) = FileIndex(index.path.with_name("none")).digests([str(picture)])
    with closing(sqlite3.connect(index.path)) as base, base:
        base.execute("UPDATE stamped SET digest = ?", (digest,))
    assert index.digests([str(picture)]) == [right]
    assert index.digests([str(picture), str(picture)]) == [right, right]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.mark.parametrize(
    "statements",
    [
        [
            "DROP TABLE stamped",
            f"CREATE VIEW stamped AS SELECT i AS path, i AS stamp, i AS digest FROM ({ENDLESS})",
        ],
        [f"CREATE TRIGGER t AFTER INSERT ON stamped BEGIN SELECT count(*) FROM ({ENDLESS}); END"],
        ["DROP TABLE stamped", "CREATE TABLE stamped (path)"],
    ],
)
def test_an_index_that_computes_is_neither_read_nor_written(statements, index, picture, tmp_path):
    with closing(sqlite3.connect(index.path)) as base, base:
        for statement in statements:
            base.execute(statement)
    before = index.path.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(b"others")
    os.utime(other, (10**9, 10**9))
    with pytest.warns(UserWarning, match=r"files\.sqlite is unreadable"):
        assert len(index.digests([str(picture), str(other)])) == 2
    assert index.path.read_bytes() == before


def test_an_index_that_is_a_link_is_left(index, picture, tmp_path):
    other = tmp_path / "theirs.sqlite"
    index.path.rename(other)
    index.path.symlink_to(other)
    before = other.read_bytes()
    os.utime(picture, (10**8, 10**8))
    with pytest.warns(UserWarning, match="it is a link"):
        assert len(index.digests([str(picture)])) == 1
    assert other.read_bytes() == before


# All of it


@pytest.fixture
def benchmark():
    backbone = TinyBackbone()
    parts = [tiny_images(per_class=count, seed=count) for count in (8, 1)]
    return tensor_benchmark(
        *[((x * 40 + 128).clamp(0, 255).to(torch.uint8), y) for x, y in parts],
        class_names=TINY_CLASSES,
        n_experiences=2,
        train_transform=backbone.train_transform,
        eval_transform=backbone.eval_transform,
    )


def test_a_file_of_nan_under_the_right_name_is_made_anew(benchmark, tmp_path):
    embed(benchmark, TinyBackbone(), cache_dir=tmp_path)
    path, _ = sorted(tmp_path.glob("*.safetensors"))
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    shape = header["embeddings"]["shape"]
    rewritten(path, {"embeddings": torch.full(shape, float("nan"))}, key=header["__metadata__"]["key"])
    with pytest.warns(UserWarning, match="NaN or infinity.*made anew"):
        embed(benchmark, TinyBackbone(), cache_dir=tmp_path)
    assert path.read_bytes() == content


def test_pieces_of_different_widths_are_made_anew(benchmark, tmp_path, monkeypatch):
    write, once = CachedFile.write_shard, []

    def narrow(self, shard, embeddings):
        keep = embeddings if once else embeddings[:, :3]
        once.append(shard)
        write(self, shard, keep)

    monkeypatch.setattr(CachedFile, "write_shard", narrow)
    with pytest.warns(UserWarning, match="differ in width and are made anew"):
        embed(benchmark, TinyBackbone(), cache_dir=tmp_path, batch_size=2)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_files_that_are_damaged_whenever_they_are_made_end_with_an_error(benchmark, tmp_path, monkeypatch):
    def damaging(path, embeddings, metadata):
        write_embeddings(path, embeddings, {**metadata, "checksum": "0" * 64})

    monkeypatch.setattr(cache, "write_embeddings", damaging)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RuntimeError, match="5 times") as caught:
        embed(benchmark, TinyBackbone(), cache_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_link_in_the_place_of_the_lock_is_not_followed(benchmark, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="a link is in the place of a lock"):
        embed(benchmark, TinyBackbone(), cache_dir=tmp_path / "cache")
    assert (tmp_path / "mine").read_text() == "mine"
