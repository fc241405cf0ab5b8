"""Pipelines of diffusers, with random weights and without a network."""

import copy
import hashlib
import json
import logging
import sys
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch.optim import SGD

from avalanche_vlm.checkpointing import CheckpointPlugin, resume
from avalanche_vlm.sources import DiffusionImageSource, StoredImageSource
from avalanche_vlm.strategies import FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from avalanche_vlm.testing.tiny_diffusion import save_tiny_pipeline

# The DPM-Solver of diffusers hands tensors to np.array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a photo of a cat.", "a photo of a dog.", "", "a photo of a cat."]
SEEDS = [0, 1, 2**63 - 1, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("diffusion") / "tiny")


def tiny(folder, **settings):
    return DiffusionImageSource(folder, **{"steps": 2, **settings})


def drawn(folder, prompts=PROMPTS, seeds=SEEDS, **settings):
    return tiny(folder, **settings).sample(prompts, seeds).images


def difference(one, other):
    return (one.int() - other.int()).abs().max()


def test_images_are_those_of_the_pipeline(folder):
    images, captions = tiny(folder, steps=3, guidance_scale=4.0, height=32, width=48).sample(PROMPTS, SEEDS)
    assert captions == PROMPTS
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 32, 48)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for prompt, seed, image in zip(PROMPTS, SEEDS, images, strict=True):
        (picture,) = pipeline(
            prompt,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=3,
            guidance_scale=4.0,
            height=32,
            width=48,
        ).images
        assert difference(torch.from_numpy(np.array(picture)).permute(2, 0, 1), image) <= 1
    assert images.float().std() > 10  # something is in them


def test_an_image_depends_on_its_prompt_and_seed_alone(folder):
    images = drawn(folder)
    assert torch.equal(images, drawn(folder))
    assert difference(images[[2, 0]], drawn(folder, ["", PROMPTS[0]], [SEEDS[2], 0])) <= 1
    assert difference(images, drawn(folder, batch_size=3)) <= 1
    assert difference(images[0], images[3]) > 5  # another seed
    assert difference(images[:1], drawn(folder, PROMPTS[1:2], SEEDS[:1], guidance_scale=50.0)) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 5},
        {"guidance_scale": 40.0},
        {"scheduler": "DPMSolverMultistepScheduler"},
        {"dtype": "bfloat16"},
    ],
)
def test_settings_reach_the_pipeline(folder, settings):
    images = drawn(folder, PROMPTS[:1], [0], steps=4)
    assert difference(images, drawn(folder, PROMPTS[:1], [0], **{"steps": 4, **settings})) > 0


def test_the_scheduler_keeps_the_configuration(folder):
    source = tiny(folder, scheduler="DPMSolverMultistepScheduler")
    source.sample(PROMPTS[:1], [0])
    assert type(source._loaded().scheduler) is diffusers.DPMSolverMultistepScheduler
    assert source._loaded().scheduler.config.beta_end == 0.012


def test_the_dtype_is_that_of_all_parts(folder):
    source = tiny(folder, dtype="bfloat16")
    source.sample(PROMPTS[:1], [0])
    parts = [getattr(source._loaded(), name) for name in ("unet", "vae", "text_encoder")]
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.bfloat16}


def test_the_global_generator_and_the_terminal_are_left_alone(folder, capfd):
    state = torch.get_rng_state()
    tiny(folder).sample(PROMPTS, SEEDS)
    assert torch.equal(state, torch.get_rng_state())
    out, err = capfd.readouterr()
    assert out == ""
    assert "%|" not in err
    assert diffusers.utils.logging.is_progress_bar_enabled()


def test_a_tiny_pipeline_comes_from_its_seed(folder, tmp_path):
    state = torch.get_rng_state()
    same = drawn(save_tiny_pipeline(tmp_path / "same"), PROMPTS[:1], [0])
    other = drawn(save_tiny_pipeline(str(tmp_path / "other"), seed=1), PROMPTS[:1], [0])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(same, drawn(folder, PROMPTS[:1], [0]))
    assert difference(same, other) > 5


def test_nothing_is_loaded_before_the_first_image(tmp_path):
    source = DiffusionImageSource(tmp_path / "nowhere")
    assert source.to("cpu") is source
    with pytest.raises(ValueError, match="`pipeline`.*nowhere"):
        source.sample(PROMPTS, SEEDS)


def test_a_copy_loads_for_itself(folder):
    source = tiny(folder)
    images = source.sample(PROMPTS, SEEDS).images
    twin = copy.deepcopy(source)
    assert twin._loaded is None
    assert torch.equal(twin.sample(PROMPTS, SEEDS).images, images)


class Painter(SupervisedPlugin):
    """A plugin that has used a source."""

    def __init__(self, source):
        super().__init__()
        self.source = source

    def before_training_exp(self, strategy, **kwargs):
        self.source.sample(PROMPTS[:1], [0])


def test_a_checkpoint_does_not_look_into_the_pipeline(folder, tmp_path):
    def strategy(source):
        model = tiny_classifier(trainable="image")
        plugins = [Painter(source), CheckpointPlugin(tmp_path)]
        optimizer = SGD(model.parameters(), lr=0.1)
        return FineTune(model=model, optimizer=optimizer, plugins=plugins, evaluator=None)

    benchmark, source = tiny_benchmark(), tiny(folder)
    strategy(source).train(benchmark.train_stream[0])
    assert source._loaded is not None
    again = tiny(folder)
    assert resume(strategy(again), tmp_path, benchmark) in (0, 1)
    assert torch.equal(drawn(folder), again.sample(PROMPTS, SEEDS).images)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2_000_000


def test_images_can_be_kept(folder, tmp_path):
    images, captions = tiny(folder).sample(PROMPTS, SEEDS)
    found = StoredImageSource(tmp_path, tiny(folder)).sample(PROMPTS, SEEDS)
    assert torch.equal(found.images, images)
    assert found.captions == captions
    with pytest.raises(ValueError, match="`steps` is 2 and 3"):
        StoredImageSource(tmp_path, tiny(folder, steps=3)).sample(PROMPTS, SEEDS)


def test_the_description_is_plain_and_leaves_out_what_only_rounds(folder):
    source = tiny(folder, scheduler="DDIMScheduler", height=64)
    told = source.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["pipeline"] == str(folder)
    assert set(told) == {
        *("kind", "pipeline", "steps", "guidance_scale", "scheduler"),
        *("dtype", "height", "width", "revision", "most_attempts"),
    }


class Fake:
    """A pipeline of grey images, black for the seeds of which ``black`` says so."""

    dtype = torch.float32

    def __init__(self, black=lambda seed: False, value=0.5):
        self.black = black
        self.value = value
        self.calls = []

    def __call__(
        self,
        prompt,
        generator,
        output_type,
        num_inference_steps=50,
        guidance_scale=7.5,
        height=None,
        width=None,
    ):
        seeds = [each.initial_seed() for each in generator]
        self.calls.append((prompt, seeds))
        values = [0.0 if self.black(seed) else self.value for seed in seeds]
        return SimpleNamespace(images=torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2))


class Short(Fake):
    """A pipeline without guidance and sizes."""

    def __call__(self, prompt, generator, output_type, num_inference_steps=50):
        return super().__call__(prompt, generator, output_type)


def with_pipeline(fake, **settings):
    source = DiffusionImageSource("a-pipeline", **settings)
    source._loaded = lambda: fake
    return source


def derived(seed, attempt):
    return int(hashlib.sha256(f"{seed} {attempt}".encode()).hexdigest()[:16], 16) // 2


def test_black_images_are_drawn_again():
    seeds = list(range(10, 16))
    black = {11, 14, derived(14, 2)}
    fake = Fake(black.__contains__)
    prompts = [f"number {seed}" for seed in seeds]
    images, captions = with_pipeline(fake, batch_size=4).sample(prompts, seeds)
    assert (images == 128).all()
    assert len(images) == 6
    assert captions == prompts
    assert fake.calls == [
        (prompts[:4], seeds[:4]),
        (prompts[4:], seeds[4:]),
        ([prompts[1], prompts[4]], [derived(11, 2), derived(14, 2)]),
        ([prompts[4]], [derived(14, 3)]),
    ]


def test_a_prompt_that_stays_black_is_named():
    fake = Fake(lambda seed: seed not in (1, 3))
    with pytest.raises(ValueError, match=r"`prompts`.*'a nude' with seed 2.*3 attempts"):
        with_pipeline(fake, most_attempts=3).sample(["a cat", "a nude", "a dog"], [1, 2, 3])
    assert len(fake.calls) == 3


def test_an_almost_black_image_is_one():
    images = with_pipeline(Fake(value=0.004)).sample(["night"], [0]).images
    assert (images == 1).all()


def test_images_without_numbers_are_refused():
    with pytest.raises(ValueError, match="`dtype`.*'float16'.*float32"):
        with_pipeline(Fake(value=float("nan")), dtype="float16").sample(["a cat"], [0])


def test_arguments_that_a_pipeline_lacks_are_left_out_or_refused():
    assert with_pipeline(Short()).sample(["a cat"], [0]).images.shape == (1, 3, 2, 2)
    for name, value in (("guidance_scale", 1.0), ("height", 8), ("width", 8)):
        with pytest.raises(ValueError, match=f"`{name}`.*Short"):
            with_pipeline(Short(), **{name: value}).sample(["a cat"], [0])


def test_a_pipeline_that_makes_no_images_of_text_is_refused(tmp_path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`pipeline`.*DDPMPipeline.*`prompt`"):
        DiffusionImageSource(tmp_path).sample(["a cat"], [0])


def test_unknown_schedulers_are_refused_with_close_names(folder):
    for name in ("DDIMSchedular", "DiffusionPipeline", "no_such_thing"):
        with pytest.raises(ValueError, match=f"`scheduler`.*'{name}'") as error:
            tiny(folder, scheduler=name).sample(PROMPTS, SEEDS)
        assert "'DDIMScheduler'" in str(error.value) or name != "DDIMSchedular"


def test_without_diffusers_it_says_what_to_install(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "avalanche-vlm\[diffusion\]"'):
        tiny(folder).sample(PROMPTS, SEEDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pipeline", 3),
        ("steps", 0),
        ("guidance_scale", -1),
        ("scheduler", 3),
        ("dtype", "float8"),
        ("height", 0),
        ("width", 2.5),
        ("revision", 3),
        ("batch_size", 0),
        ("device", "abacus"),
        ("device", 2.5),
        ("most_attempts", 0),
    ],
)
def test_faults_are_named(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        DiffusionImageSource(**{"pipeline": "nowhere", name: value})


def test_the_log_is_quiet(folder, caplog):
    with caplog.at_level(logging.WARNING):
        tiny(folder, scheduler="DPMSolverMultistepScheduler").sample(PROMPTS, SEEDS)
    assert not caplog.records
