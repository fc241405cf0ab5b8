"""What users do by mistake, and what is written down of their runs."""

import json

import pytest
import torch
from avalanche.training import Naive
from torch.optim import SGD

from avalanche_vlm.logging.provenance import provenance
from avalanche_vlm.models import ImageConditionedPromptHead, ZeroShotHead
from avalanche_vlm.plugins import AdaptiveWeightConsolidationPlugin, LabelSpaceCrossEntropy, RegularizerPlugin
from avalanche_vlm.regularizers import (
    CrossModalDistillation,
    HeadTexts,
    ReferencePairs,
    Regularizer,
    SyntheticPairs,
)
from avalanche_vlm.sources import (
    GeneratedImages,
    ImageSource,
    LearnedClassPrompts,
    NamePrompts,
    PromptUnion,
    StoredImageSource,
)
from avalanche_vlm.strategies import GIFT, FineTune
from avalanche_vlm.testing import tiny_benchmark, tiny_classifier
from tests.reference.tiny_image_source import NAMES, TinyImageSource

BENCHMARK = tiny_benchmark()


def trained(kind=FineTune, *, plugins=(), model=None, lr=0.01, **arguments):
    model = tiny_classifier(trainable="both") if model is None else model
    arguments |= {"model": model, "optimizer": SGD(model.parameters(), lr=lr), "plugins": [*plugins]}
    if kind is not GIFT:
        arguments["criterion"] = LabelSpaceCrossEntropy("experience")
    strategy = kind(train_mb_size=4, train_epochs=1, evaluator=None, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        strategy.train(BENCHMARK.train_stream[0])
    return strategy


class Entropy(Regularizer):
    """The entropy of the batch's own logits."""

    def __call__(self, model, x, y, logits):
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("kind", [FineTune, Naive])
def test_an_own_regularizer_of_the_logits_may_be_consolidated(kind):
    plain = trained(kind, plugins=[RegularizerPlugin(Entropy())])
    held = trained(kind, plugins=[AdaptiveWeightConsolidationPlugin(Entropy(), consolidation_weight=0.0)])
    for one, other in zip(plain.model.parameters(), held.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, None, torch.zeros(3, requires_grad=True)], ids=["0", "None", "row"])
@pytest.mark.parametrize("plugin", [RegularizerPlugin, AdaptiveWeightConsolidationPlugin])
def test_a_term_that_is_no_scalar_is_named(plugin, value):
    class Wrong(Regularizer):
        def __call__(self, model, x, y, logits):
            return value

    with pytest.raises(TypeError, match=r"regularizer.*Wrong"):
        trained(plugins=[plugin(Wrong())])


def told(prompts):
    model = tiny_classifier(trainable="both")
    strategy = GIFT(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.01),
        images=TinyImageSource(),
        prompts=prompts,
        evaluator=None,
    )
    return json.dumps(provenance(strategy, stream=BENCHMARK.train_stream))


def test_runs_with_other_prompts_are_told_apart():
    pools = [
        NamePrompts(NAMES),
        NamePrompts(NAMES, template="u {}"),
        NamePrompts(NAMES[:3]),
        NamePrompts([f"name {number}" for number in range(40)]),
        NamePrompts([f"name {number}" for number in range(1, 41)]),
        LearnedClassPrompts("a {}."),
        LearnedClassPrompts(),
    ]
    alone = [told(pool) for pool in pools]
    joined = [told(PromptUnion([pool, NamePrompts(["cat"])])) for pool in pools]
    assert len(set(alone + joined)) == 2 * len(pools)
    assert "tench" in alone[0]


def test_reference_images_and_texts_are_told():
    images = torch.zeros(5, 3, 8, 8)
    first = ReferencePairs(images, ["a", "b", "a"]).describe()
    assert first["images"]["count"] == 5
    assert first["texts"]["count"] == 2
    assert first["texts"] != ReferencePairs(images, ["a", "c"]).describe()["texts"]


class Breaking(TinyImageSource):
    """Is interrupted once, after the first images."""

    broken = False

    def _sample(self, prompts, seeds):
        made = super()._sample(prompts, seeds)
        if not self.broken:
            self.broken = True
            raise KeyboardInterrupt
        return made


def test_who_tries_again_asks_for_the_same_images():
    source = Breaking()
    plugin = RegularizerPlugin(CrossModalDistillation(SyntheticPairs(source, NamePrompts(NAMES), count=6)))
    model = tiny_classifier(trainable="both")
    strategy = FineTune(
        model=model, optimizer=SGD(model.parameters(), lr=0.01), plugins=[plugin], train_mb_size=4
    )
    with pytest.raises(KeyboardInterrupt):
        strategy.train(BENCHMARK.train_stream[0])
    strategy.train(BENCHMARK.train_stream[0])
    assert source.drawn[:6] == source.drawn[6:]


def test_a_pool_of_another_run_is_refused():
    def pairs(pool):
        return SyntheticPairs(TinyImageSource(), pool, count=6, batch_size=3)

    pool = LearnedClassPrompts()
    trained(plugins=[RegularizerPlugin(CrossModalDistillation(pairs(pool)))])
    other = tiny_classifier(trainable="both")
    other.adaptation(BENCHMARK.train_stream[1])
    with pytest.raises(ValueError, match=r"prompts.*fresh LearnedClassPrompts"):
        pool.prompts(other)


def test_a_teacher_reads_the_templates_of_the_student():
    head = ZeroShotHead(["a {}.", "the {}.", "one {}."], training_templates="a {}.")
    model = tiny_classifier(head, trainable="both")
    model.classes_seen[:] = True
    pool = LearnedClassPrompts()
    pool.learn(model)
    terms = []

    class Noted(CrossModalDistillation.__base__):
        def compare(self, model, student):
            teacher = self.says(model, student)
            terms.append((student.texts.detach(), teacher.texts))
            return student.texts.sum() * 0

    pairs = SyntheticPairs(TinyImageSource(), pool, count=8, batch_size=4, texts=HeadTexts())
    trained(plugins=[RegularizerPlugin(Noted(pairs))], model=model, lr=0.0)
    assert terms
    for student, teacher in terms:
        torch.testing.assert_close(student, teacher, atol=1e-6, rtol=1e-5)


def test_a_head_without_class_weights_names_the_argument():
    model = tiny_classifier(ImageConditionedPromptHead(), trainable="both")
    own = {"images": TinyImageSource(), "prompts": NamePrompts(NAMES), "images_per_experience": 4}
    with pytest.raises(ValueError, match=r"text_space.*'all'"):
        trained(GIFT, model=model, **own)
    trained(
        GIFT, model=tiny_classifier(ImageConditionedPromptHead(), trainable="both"), text_space="all", **own
    )


@pytest.mark.parametrize(
    "made",
    [
        None,
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        GeneratedImages(torch.zeros(1, 3, 8, 8), ["x"]),
        GeneratedImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [3]),
        GeneratedImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), []),
        GeneratedImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8).numpy(), ["x"]),
    ],
    ids=["None", "tensor", "floats", "number", "no caption", "array"],
)
def test_a_source_that_returns_something_else_is_named(made):
    class Wrong(ImageSource):
        def _sample(self, prompts, seeds):
            return made

        def describe(self):
            return {}

    with pytest.raises((TypeError, ValueError), match=r"_sample.*Wrong"):
        Wrong().sample(["x"], [0])


def test_images_may_have_a_field_that_is_called_source(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    line = {"file": "1.png", "prompt": "a tench.", "source": "flickr"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert StoredImageSource(tmp_path).sample(["a tench."], [0]).images[0, 0, 0, 0] == 255
