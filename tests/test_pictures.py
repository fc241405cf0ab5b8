"""A picture is what it shows, whichever way it comes."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.transforms import PILToTensor

from avalanche_vlm import _pictures
from avalanche_vlm._pictures import as_rgb, read_picture
from avalanche_vlm.benchmarks import domain_folder_benchmark, folder_benchmark
from avalanche_vlm.benchmarks.class_folders import LabelledFiles
from avalanche_vlm.embedding.data_fingerprint import FileIndex, leaf_transforms, sample_digests
from avalanche_vlm.embedding.transform_description import describe_transform
from avalanche_vlm.models import CLIPClassifier, OpenCLIPBackbone
from avalanche_vlm.models.preprocessing import ImageTransform
from avalanche_vlm.sources import StoredImageSource

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [40, 50, 60]]] * 3, dtype=np.uint8)
GREY = np.array([[0, 2000, 30000, 60000, 65535]] * 2, dtype=np.uint16)


def saved(picture, form="PNG", **options):
    """Return a picture as it comes back from a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def palette(transparent=None):
    picture = Image.new("P", (4, 3))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 40, 50, 60])
    picture.putdata([0, 1, 2, 3] * 3)
    return picture if transparent is None else saved(picture, transparency=transparent)


def scanned(data, size, *, bits=16, photometric=0):
    """Write a grey TIFF by hand, because Pillow writes none of these."""
    width, height = size
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric)]
    entries += [(273, 8), (277, 1), (278, height), (279, len(data))]
    table = struct.pack("<H", len(entries))
    table += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    file = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table + b"\0\0\0\0"
    return Image.open(io.BytesIO(file))


def on_white(colours, alpha):
    """Composite by definition, in float64."""
    share = np.asarray(alpha, dtype=np.float64)[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share))


def with_alpha(alpha):
    return Image.fromarray(np.dstack([COLOURS, np.full((3, 4), alpha, np.uint8)]))


LOOKS = {
    "RGB": lambda: (Image.fromarray(COLOURS), COLOURS),
    "palette": lambda: (palette(), COLOURS),
    "palette with a transparent colour": lambda: (
        palette(1),
        on_white(COLOURS, [[255, 0, 255, 255]] * 3),
    ),
    "palette with shades of transparency": lambda: (
        palette(bytes([0, 128, 255, 64])),
        on_white(COLOURS, [[0, 128, 255, 64]] * 3),
    ),
    "GIF with a transparent colour": lambda: (
        saved(palette(), "GIF", transparency=2),
        on_white(COLOURS, [[255, 255, 0, 255]] * 3),
    ),
    "RGBA": lambda: (with_alpha(100), on_white(COLOURS, np.full((3, 4), 100))),
    "RGBA, invisible": lambda: (with_alpha(0), np.full((3, 4, 3), 255)),
    "RGB with a transparent colour": lambda: (
        saved(Image.fromarray(COLOURS), transparency=(0, 0, 255)),
        on_white(COLOURS, [[255, 255, 0, 255]] * 3),
    ),
    "grey and alpha": lambda: (
        Image.merge("LA", [Image.new("L", (4, 3), 60), Image.new("L", (4, 3), 128)]),
        on_white(np.full((3, 4, 3), 60), np.full((3, 4), 128)),
    ),
    "one bit": lambda: (
        Image.fromarray(np.tile(np.uint8([0, 255]), (3, 2))).convert("1"),
        np.repeat(np.tile([0, 255], (3, 2))[..., None], 3, axis=2),
    ),
    "CMYK": lambda: (
        Image.new("CMYK", (4, 3), (255, 0, 0, 0)),
        np.tile([0, 255, 255], (3, 4, 1)),
    ),
    **{
        f"16 bits, {form}": lambda form=form: (
            saved(Image.fromarray(GREY), form),
            np.repeat(np.rint(GREY / 257)[..., None], 3, axis=2),
        )
        for form in ("PNG", "TIFF", "PPM")
    },
    "16 bits, white is zero": lambda: (
        scanned(GREY.astype("<u2").tobytes(), (5, 2)),
        np.repeat(255 - np.rint(GREY / 257)[..., None], 3, axis=2),
    ),
    "12 bits": lambda: (
        scanned(b"\x00\x0f\xff" * 2, (2, 2), bits=12, photometric=1),
        np.repeat(np.array([[0, 255]] * 2)[..., None], 3, axis=2),
    ),
    "16 bits with a transparent grey": lambda: (
        saved(Image.fromarray(GREY), transparency=2000),
        np.repeat(np.where(GREY == 2000, 255, np.rint(GREY / 257))[..., None], 3, axis=2),
    ),
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_picture_becomes_what_it_shows(name):
    picture, expected = LOOKS[name]()
    shown = as_rgb(picture)
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown).astype(int) - expected).max() <= 1  # Pillow composites in whole numbers
    assert as_rgb(shown) is shown


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_are_turned_upright_once(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    flat = Image.fromarray(np.kron(COLOURS, np.ones((8, 8, 1))).astype(np.uint8))
    file = saved(flat, form, exif=exif)
    expected = ImageOps.exif_transpose(saved(flat, form, exif=exif)).convert("RGB")
    for picture in (file, saved(flat, form, exif=exif).convert("RGB"), as_rgb(file)):
        assert np.array_equal(np.asarray(as_rgb(picture)), np.asarray(expected))


def test_broken_notes_of_a_camera_are_no_reason_to_refuse():
    picture = Image.fromarray(COLOURS)
    picture.info["exif"] = b"Exif\0\0MM\0*\0\0\xff\xff"
    assert np.array_equal(np.asarray(as_rgb(picture)), COLOURS)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_refused(dtype, tmp_path):
    picture = Image.fromarray(GREY.astype(dtype))
    with pytest.raises(ValueError, match="`image` must be a picture whose mode says.*mode '[IF]'.*Scale"):
        as_rgb(picture)
    picture.save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=r"`file` must be .*depth.tiff'.*mode '[IF]'"):
        read_picture(tmp_path / "depth.tiff")


def broken(folder):
    """Write files that are no whole pictures; return them with what their error says."""
    rows = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"):
        path = folder / f"cut.{form.lower()}"
        Image.fromarray(rows).save(path, form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        yield path
    (folder / "empty.png").touch()
    yield folder / "empty.png"
    (folder / "page.jpg").write_text("<html>404</html>")
    yield folder / "page.jpg"


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for path in broken(tmp_path):
        with pytest.raises(ValueError, match=rf"`file` must be .*{path.name}'.*Repair the file"):
            read_picture(path)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_picture(tmp_path / "none.png")
    Image.new("1", (400, 400)).save(tmp_path / "enormous.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(ValueError, match=r"`file` must be .*enormous.png'.*MAX_IMAGE_PIXELS"):
        read_picture(tmp_path / "enormous.png")


def test_workers_that_load_name_the_file_too(tmp_path):
    (path := tmp_path / "page.jpg").write_text("no picture")
    loader = DataLoader(LabelledFiles([str(path)], [0]), num_workers=1, batch_size=None)
    with pytest.raises(ValueError, match=r"page\.jpg"):
        next(iter(loader))


@pytest.mark.parametrize("name", LOOKS)
def test_every_way_to_give_a_picture_shows_the_same(name, tmp_path):
    picture, _ = LOOKS[name]()
    ending = {"CMYK": "tiff", "I": "ppm"}.get(picture.mode, "png")
    if "white is zero" in name or name == "12 bits":
        picture = as_rgb(picture)  # which Pillow cannot write
    notes = {key: value for key, value in picture.info.items() if key == "transparency"}
    for label in ("cat", "dog"):
        (tmp_path / "d" / "domain" / label).mkdir(parents=True)
        for number in range(2):
            picture.save(tmp_path / "d" / "domain" / label / f"{number}.{ending}", **notes)
    path = tmp_path / "d" / "domain" / "cat" / f"0.{ending}"
    shown = np.asarray(as_rgb(Image.open(path)))
    transforms = {"train_transform": PILToTensor(), "eval_transform": PILToTensor()}
    by_class = folder_benchmark(tmp_path / "d" / "domain", n_experiences=1, **transforms)
    by_domain = domain_folder_benchmark(tmp_path / "d", **transforms)
    for benchmark in (by_class, by_domain):
        assert np.array_equal(benchmark.train_stream[0].dataset[0][0].permute(1, 2, 0).numpy(), shown)
    model = CLIPClassifier(OpenCLIPBackbone("small-clip", pretrained=None), class_names=["cat", "dog"])
    with Image.open(path) as opened:
        for transform in (model.eval_transform, pickle.loads(pickle.dumps(model.eval_transform))):
            assert torch.equal(transform(opened), transform(Image.fromarray(shown)))
        expected = model.predict(Image.fromarray(shown)).probabilities
        assert torch.equal(model.predict(opened).probabilities, expected)
    (tmp_path / "stored").mkdir()
    picture.save(tmp_path / "stored" / f"a.{ending}", **notes)
    (tmp_path / "stored" / "manifest.jsonl").write_text(f'{{"file": "a.{ending}", "prompt": "a cat"}}\n')
    stored = StoredImageSource(tmp_path / "stored").sample(["a cat"], [0]).images[0]
    assert np.array_equal(stored.permute(1, 2, 0).numpy(), shown)


class InMemory(torch.utils.data.Dataset):
    def __init__(self, *pictures):
        self.pictures = pictures

    def __getitem__(self, index):
        return self.pictures[index], 0

    def __len__(self):
        return len(self.pictures)


def test_pictures_in_memory_are_told_apart_by_all_that_changes_their_looks(tmp_path):
    other = palette()
    other.putpalette([1, 2, 3] * 4)
    turned = Image.fromarray(COLOURS)
    turned.getexif()[0x0112] = 6
    noted = saved(Image.fromarray(COLOURS), exif=turned.getexif())
    keyed, other_key = (Image.fromarray(COLOURS) for _ in range(2))
    keyed.info["transparency"], other_key.info["transparency"] = (tuple(COLOURS[0, i]) for i in (0, 1))
    profile = Image.fromarray(COLOURS)
    profile.info["icc_profile"] = b"wide"
    pictures = [
        *(palette(), other, palette(0), palette(1), palette(bytes([0, 128, 255, 64]))),
        *(Image.fromarray(COLOURS), turned, profile, with_alpha(255), with_alpha(0)),
        *(keyed, other_key),
    ]
    digests = sample_digests(InMemory(*pictures), range(12), FileIndex(tmp_path / "i"))
    assert len(set(digests)) == 12
    again = [pickle.loads(pickle.dumps(each)) for each in pictures if each is not turned]
    kept = [digest for digest, each in zip(digests, pictures, strict=True) if each is not turned]
    assert sample_digests(InMemory(*again), range(11), FileIndex(tmp_path / "i")) == kept
    first, second = sample_digests(
        InMemory(noted, Image.fromarray(COLOURS)), range(2), FileIndex(tmp_path / "i")
    )
    assert first != second


def test_embeddings_are_kept_under_the_conversion():
    """Another conversion gives other embeddings, so that those of before must not be served."""
    assert leaf_transforms(LabelledFiles([], [])) == _pictures.CONVERSION
    assert describe_transform(ImageTransform(None))["conversion"] == _pictures.CONVERSION
