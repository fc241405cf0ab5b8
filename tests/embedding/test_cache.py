"""When files are used again, and when not."""

import contextlib
import errno
import functools
import os
import resource
import shutil
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torchvision.transforms import Compose, Resize

from avalanche_vlm.benchmarks import (
    LabelledTensors,
    folder_benchmark,
    tensor_benchmark,
    with_validation_stream,
)
from avalanche_vlm.embedding import cache, embed
from avalanche_vlm.embedding.cache import DamagedFileError, read_embeddings, write_embeddings
from avalanche_vlm.embedding.data_fingerprint import FileIndex
from avalanche_vlm.models.preprocessing import ImageTransform
from avalanche_vlm.testing import TinyBackbone

from .conftest import NAMES, all_x, counting_backbone, pixels, transforms, write_folders


def benchmark_of(backbone, train=None, **arguments):
    arguments = {**transforms(backbone), "n_experiences": 2, **arguments}
    return tensor_benchmark(pixels(0) if train is None else train, pixels(1), class_names=NAMES, **arguments)


def encodes(benchmark, folder, **arguments):
    """Return how many images are encoded in a call with a fresh backbone."""
    backbone = arguments.pop("backbone", None) or counting_backbone()
    before = len(backbone.batches)
    embed(benchmark, backbone, cache_dir=folder, **arguments)
    return sum(backbone.batches[before:])


@pytest.fixture
def filled(backbone, tmp_path):
    """A cache that holds the standard benchmark."""
    assert encodes(benchmark_of(backbone), tmp_path / "cache") == 48
    return tmp_path / "cache"


def test_a_second_run_encodes_nothing(backbone, filled):
    assert encodes(benchmark_of(backbone), filled) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"n_experiences": 3},
        {"class_order": [3, 1, 0, 2, 5, 4]},
        {"task_labels": True},
        {"seed": 4},
    ],
)
def test_how_the_stream_is_cut_does_not_matter(other, backbone, filled):
    assert encodes(benchmark_of(backbone, **other), filled) == 0


def test_labels_and_parts_and_batches_do_not_matter(backbone, filled):
    x, y = pixels(0)
    assert encodes(benchmark_of(backbone, (x, (y + 1) % 6)), filled) == 0
    assert encodes(with_validation_stream(benchmark_of(backbone), fraction=0.25), filled) == 0
    assert encodes(benchmark_of(backbone), filled, batch_size=7) == 0


def test_the_train_transform_does_not_matter_for_one_view(backbone, filled):
    assert encodes(benchmark_of(backbone, train_transform=backbone.eval_transform), filled) == 0


@pytest.mark.parametrize(
    "other", [{"features": "raw"}, {"precision": "bf16"}, {"precision": "fp16"}], ids=str
)
def test_another_kind_of_features_is_a_miss(other, backbone, filled):
    assert encodes(benchmark_of(backbone), filled, **other) == 48
    assert encodes(benchmark_of(backbone), filled, **other) == 0


def test_precision_changes_values_and_not_the_type(backbone, filled):
    exact, half = (
        embed(benchmark_of(backbone), backbone, cache_dir=filled, precision=precision)
        .train_stream[0]
        .dataset[0][0]
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == exact.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.allclose(half, exact, atol=0.1)


def test_any_changed_weight_of_the_image_side_is_a_miss(backbone, filled):
    names = [name for name, _ in backbone.named_parameters() if name.startswith("image_tower")]
    for name in (names[0], names[len(names) // 2], names[-1]):
        changed = counting_backbone()
        with torch.no_grad():
            dict(changed.named_parameters())[name].view(-1)[0] += 1e-4
        assert encodes(benchmark_of(backbone), filled, backbone=changed) == 48


def test_a_changed_configuration_is_a_miss(backbone, filled):
    changed = counting_backbone()
    changed._configuration["quick_gelu"] = True
    assert encodes(benchmark_of(backbone), filled, backbone=changed) == 48


class Shifted(TinyBackbone):
    """A backbone with a buffer on its image side."""

    def __init__(self, shift, persistent):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift), persistent=persistent)

    def encode_image(self, images):
        return super().encode_image(images + self.shift)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_changed_buffer_is_a_miss_whether_it_is_saved_or_not(persistent, backbone, tmp_path):
    benchmark = benchmark_of(backbone)
    one, same, other = (
        all_x(embed(benchmark, Shifted(shift, persistent), cache_dir=tmp_path).train_stream[0])
        for shift in (0.0, 0.0, 3.0)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_buffers_of_the_text_tower_do_not_matter(backbone, filled):
    assert "text_tower.attn_mask" not in backbone.state_dict()
    backbone.text_tower.attn_mask += 1
    assert encodes(benchmark_of(backbone), filled, backbone=backbone) == 0


def test_a_forward_hook_must_have_a_name_and_is_a_miss(backbone, filled):
    def negated(module, images, features=None):
        return -images[0] if features is None else -features

    for register in ("register_forward_hook", "register_forward_pre_hook"):
        hook = functools.partial(negated)
        hooked = counting_backbone()
        getattr(hooked.image_tower.ln_post, register)(hook)
        with pytest.raises(ValueError, match=r"the hook .* on `image_tower.ln_post`.*hook.transform_name"):
            encodes(benchmark_of(backbone), filled, backbone=hooked)
        hook.transform_name = register
        assert encodes(benchmark_of(backbone), filled, backbone=hooked) == 48
        assert encodes(benchmark_of(backbone), filled, backbone=hooked) == 0
        hook.transform_name = f"{register}, 2"
        assert encodes(benchmark_of(backbone), filled, backbone=hooked) == 48
    of_text = counting_backbone()
    of_text.text_tower.ln_final.register_forward_hook(functools.partial(negated))
    assert encodes(benchmark_of(backbone), filled, backbone=of_text) == 0


def test_a_changed_pixel_is_a_miss_and_only_where_it_is(backbone, filled):
    x, y = pixels(0)
    x = x.clone()
    x[5, 1, 2, 3] ^= 1
    assert encodes(benchmark_of(backbone, (x, y)), filled) == 24
    assert encodes(benchmark_of(backbone, (x.flip(0), y.flip(0))), filled) == 24  # another order
    assert encodes(benchmark_of(backbone, (x[:23], y[:23])), filled) == 23


def test_a_changed_parameter_of_a_transform_is_a_miss(backbone, filled):
    chain = backbone.eval_transform.transform.transforms
    wider = ImageTransform(Compose([Resize(10), *chain[1:]]))
    assert encodes(benchmark_of(backbone, eval_transform=wider), filled) == 48


def test_a_transform_of_ones_own_must_have_a_name(backbone, filled):
    class Own:
        def __call__(self, image):
            return backbone.eval_transform(image)

    own = Own()
    with pytest.raises(TypeError, match=r"Set `transform.transform_name = 'some text'`"):
        encodes(benchmark_of(backbone, eval_transform=own), filled)
    own.transform_name = "own, 1"
    assert encodes(benchmark_of(backbone, eval_transform=own), filled) == 48
    assert encodes(benchmark_of(backbone, eval_transform=own), filled) == 0
    own.transform_name = "own, 2"
    assert encodes(benchmark_of(backbone, eval_transform=own), filled) == 48


# Files


@pytest.fixture
def pictures(backbone, tmp_path):
    folder = write_folders(tmp_path / "pictures", NAMES)
    long_ago = time.time() - 1000
    for path in folder.rglob("*.png"):
        os.utime(path, (long_ago, long_ago))

    def build(place=folder):
        return folder_benchmark(place / "train", place / "test", n_experiences=2, **transforms(backbone))

    build.folder = folder
    return build


@pytest.fixture
def reads(monkeypatch):
    """The files that are read for their fingerprint."""
    found = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: found.append(path) or read_bytes(path))
    return found


def test_files_are_hashed_once(pictures, reads, tmp_path):
    assert encodes(pictures(), tmp_path / "cache") == 24
    assert len(reads) == 24
    assert encodes(pictures(), tmp_path / "cache") == 0
    assert len(reads) == 24


def test_files_that_moved_or_were_touched_are_the_same_files(pictures, reads, tmp_path):
    assert encodes(pictures(), tmp_path / "cache") == 24
    shutil.copytree(pictures.folder, tmp_path / "elsewhere")
    assert encodes(pictures(tmp_path / "elsewhere"), tmp_path / "cache") == 0
    os.utime(next(pictures.folder.rglob("*.png")))
    reads.clear()
    assert encodes(pictures(), tmp_path / "cache") == 0
    assert len(reads) == 1
    assert encodes(pictures(), tmp_path / "cache") == 0
    assert len(reads) == 2  # too young to be sure of its time stamp


def test_a_changed_file_is_a_miss(pictures, tmp_path):
    assert encodes(pictures(), tmp_path / "cache") == 24
    path = sorted((pictures.folder / "train").rglob("*.png"))[3]
    array = np.asarray(Image.open(path)).copy()
    array[0, 0, 0] ^= 1
    Image.fromarray(array).save(path)
    assert encodes(pictures(), tmp_path / "cache") == 12


def test_a_changed_file_with_its_old_size_and_time_of_writing_is_a_miss(pictures, tmp_path):
    for path in pictures.folder.rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(1000, b"\0"))
        os.utime(path, (10**9, 10**9))
    assert encodes(pictures(), tmp_path / "cache") == 24
    first, second, *_ = sorted((pictures.folder / "train").rglob("*.png"))
    first.write_bytes(second.read_bytes())
    os.utime(first, (10**9, 10**9))
    assert encodes(pictures(), tmp_path / "cache") == 12


def test_an_index_of_an_earlier_version_is_added_to(pictures, reads, tmp_path):
    index = tmp_path / "files.sqlite"
    with contextlib.closing(sqlite3.connect(index)) as base, base:
        base.execute("CREATE TABLE files (path TEXT PRIMARY KEY, size INT, mtime_ns INT, digest BLOB)")
    path = str(next(pictures.folder.rglob("*.png")))
    assert FileIndex(index).digests([path]) == FileIndex(index).digests([path])
    assert len(reads) == 1


def test_the_index_may_be_lost_or_damaged(pictures, reads, tmp_path):
    folder = tmp_path / "cache"
    encodes(pictures(), folder)
    index = folder / "files.sqlite"
    index.write_bytes(b"no data base" * 100)
    with pytest.warns(UserWarning, match=r"files\.sqlite is unreadable"):
        assert encodes(pictures(), folder) == 0
    assert encodes(pictures(), folder) == 0  # removed, and read once more
    reads.clear()
    assert encodes(pictures(), folder) == 0
    assert not reads


def test_an_index_that_cannot_be_written_only_costs_time(pictures, tmp_path):
    path = next(pictures.folder.rglob("*.png"))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert len(FileIndex(blocked / "files.sqlite").digests([str(path)])) == 1
    locked = tmp_path / "files.sqlite"
    with contextlib.closing(sqlite3.connect(locked)) as base, base:
        base.execute("CREATE TABLE stamped (other TEXT)")
    with pytest.warns(UserWarning, match="unreadable"):
        assert len(FileIndex(locked).digests([str(path)])) == 1


# Faults of files


def flipped(content, position):
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


def header_size(content):
    return 8 + int.from_bytes(content[:8], "little")


DAMAGES = {
    "empty": lambda content: b"",
    "cut in the length": lambda content: content[:4],
    "cut in the header": lambda content: content[:100],
    "cut in the data": lambda content: content[: (header_size(content) + len(content)) // 2],
    "cut at the end": lambda content: content[:-1],
    "longer": lambda content: content + b"\0" * 64,
    "flipped length": lambda content: flipped(content, 1),
    "flipped in the key": lambda content: flipped(content, content.index(b'"key"') + 12),
    "flipped in the checksum": lambda content: flipped(content, content.index(b'"checksum"') + 16),
    "flipped at the start of the data": lambda content: flipped(content, header_size(content)),
    "flipped in the data": lambda content: flipped(content, (header_size(content) + len(content)) // 2),
    "flipped at the end": lambda content: flipped(content, -1),
    "another file": lambda content: b"text" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_and_made_anew(damage, backbone, filled):
    benchmark = benchmark_of(backbone)
    before = [all_x(e).clone() for e in embed(benchmark, backbone, cache_dir=filled).train_stream]
    path, _ = sorted(filled.glob("*.safetensors"))
    content = path.read_bytes()
    path.unlink()  # and not in place, where it is still mapped
    path.write_bytes(DAMAGES[damage](content))
    counting = counting_backbone()
    with pytest.warns(UserWarning, match=f"{path.name} is damaged .* and is made anew"):
        after = embed(benchmark, counting, cache_dir=filled)
    assert sum(counting.batches) == 24
    assert path.read_bytes() == content
    for expected, experience in zip(before, after.train_stream, strict=True):
        assert torch.equal(all_x(experience), expected)
    assert encodes(benchmark, filled) == 0


def test_no_flipped_bit_of_the_header_gives_other_embeddings(tmp_path):
    path = tmp_path / "x.safetensors"
    x = torch.randn(6, 4)
    write_embeddings(path, x, {"key": "k" * 64})
    content = path.read_bytes()
    assert torch.equal(read_embeddings(path, "k" * 64, 6, "checksum"), x)
    for position in range(header_size(content)):
        path.unlink()
        path.write_bytes(flipped(content, position))
        try:
            found = read_embeddings(path, "k" * 64, 6, "checksum")
        except DamagedFileError:
            continue
        assert torch.equal(found, x)


def test_a_file_changed_in_place_within_a_process_is_compared_again(tmp_path):
    path = tmp_path / "x.safetensors"
    write_embeddings(path, torch.ones(6, 4), {"key": "k"})
    os.utime(path, (10**9, 10**9))
    read_embeddings(path, "k", 6, "checksum")
    path.write_bytes(flipped(path.read_bytes(), -3))
    os.utime(path, (10**9, 10**9))
    with pytest.raises(DamagedFileError, match="checksum"):
        read_embeddings(path, "k", 6, "checksum")


def test_a_folder_in_the_place_of_a_file_is_named_and_left(backbone, filled):
    path = min(filled.glob("*.safetensors"))
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="in the place of a file of embeddings") as raised:
        embed(benchmark_of(backbone), backbone, cache_dir=filled)
    assert raised.value.filename == str(path)
    assert path.is_dir()


def test_the_data_set_is_made_without_reading_the_file(backbone, filled, monkeypatch):
    read = []
    real = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda x: read.append(x) or real(x))
    (node,) = (
        embed(benchmark_of(backbone), backbone, cache_dir=filled, verify="header")
        .train_stream[0]
        .dataset._flat_data._datasets
    )
    assert not read
    _, y = pixels(0)
    checked = LabelledTensors(node.x, y)
    assert vars(node).keys() == vars(checked).keys()
    assert torch.equal(node.y, y)
    assert (node.y.dtype, node.targets) == (checked.y.dtype, checked.targets)


def test_a_damaged_shard_is_made_anew(backbone, filled, tmp_path, monkeypatch):
    benchmark = benchmark_of(backbone)
    monkeypatch.setattr(cache.CachedFile, "join", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed(benchmark, backbone, cache_dir=tmp_path / "new", batch_size=1)
    monkeypatch.undo()
    shards = sorted((tmp_path / "new").glob("*/*.safetensors"))
    assert len(shards) == 3
    content = shards[1].read_bytes()
    shards[1].write_bytes(flipped(content, -5))
    counting = counting_backbone()
    with pytest.warns(UserWarning, match=r"000001\.safetensors is damaged"):
        embed(benchmark, counting, cache_dir=tmp_path / "new", batch_size=1)
    assert sum(counting.batches) == 8 + 24  # the shard, and the test stream
    files = sorted(path.name for path in filled.glob("*.safetensors"))
    assert sorted(path.name for path in (tmp_path / "new").glob("*.safetensors")) == files
    assert not list((tmp_path / "new").glob("*batches*"))


def test_the_checksum_is_compared_once_a_process_or_not_at_all(backbone, filled, monkeypatch):
    compared = []
    real = cache.fingerprint
    monkeypatch.setattr(cache, "fingerprint", lambda tensors: compared.append(1) or real(tensors))
    monkeypatch.setattr(cache, "_verified", set())
    embed(benchmark_of(backbone), backbone, cache_dir=filled, verify="header")
    assert not compared
    for _ in range(2):
        embed(benchmark_of(backbone), backbone, cache_dir=filled)
    assert len(compared) == 2  # two files


def test_the_file_is_plain_safetensors_and_says_what_it_holds(backbone, filled):
    for path in filled.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            assert file.get_tensor("embeddings").shape == (24, 16)
        assert metadata["key"].startswith(path.stem)
        assert '"precision": "fp32"' in metadata["facts"]
        assert metadata["torch"] in torch.__version__


def test_writing_into_the_tensor_does_not_reach_the_file(backbone, filled):
    embedded = embed(benchmark_of(backbone), backbone, cache_dir=filled)
    (node,) = embedded.train_stream[0].dataset._flat_data._datasets
    node.x[0] = 7.0
    monkey = embed(benchmark_of(backbone), backbone, cache_dir=filled)
    (again,) = monkey.train_stream[0].dataset._flat_data._datasets
    assert not torch.equal(again.x[0], node.x[0])


# A folder that cannot be written to


def test_a_folder_that_cannot_be_made_is_named(backbone, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match=f"below the folder '{blocked / 'cache'}' failed") as raised:
        embed(benchmark_of(backbone), backbone, cache_dir=blocked / "cache")
    assert raised.value.errno == errno.ENOTDIR


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named_and_a_filled_one_serves(backbone, filled, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, filled):
        folder.chmod(0o500)
    try:
        assert encodes(benchmark_of(backbone), filled) == 0
        with pytest.raises(PermissionError, match=f"below the folder '{empty}' failed"):
            embed(benchmark_of(backbone), backbone, cache_dir=empty)
    finally:
        for folder in (empty, filled):
            folder.chmod(0o700)


def test_a_full_disk_is_named_and_leaves_nothing_behind(backbone, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"below the folder '{tmp_path}' failed") as raised:
            embed(benchmark_of(backbone), backbone, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert encodes(benchmark_of(backbone), tmp_path) == 48


def test_an_image_that_cannot_be_read_is_no_fault_of_the_folder(backbone, pictures, tmp_path):
    benchmark = pictures()
    path = sorted((pictures.folder / "train").rglob("*.png"))[3]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name) as raised:
        embed(benchmark, backbone, cache_dir=tmp_path / "cache")
    assert "cache_dir" not in str(raised.value)
