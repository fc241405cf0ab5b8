"""What synthetic images are asked for."""

from collections import Counter

import pytest
import torch

from avalanche_vlm.models import CLIPClassifier, LearnedContextHead, ZeroShotHead
from avalanche_vlm.sources import (
    ImageNetPrompts,
    LearnedClassPrompts,
    NamePrompts,
    Prompt,
    PromptPool,
    PromptUnion,
    draw_prompts,
)
from avalanche_vlm.testing import TINY_CLASSES, TinyBackbone, tiny_benchmark, tiny_classifier
from avalanche_vlm.text import DEFAULT_TEMPLATE, ClassNames, PromptTemplate, dataset_text


def texts(prompts):
    return [prompt.text for prompt in prompts]


def two_datasets(head=None):
    """Return a model of two data sets that share a name, of which classes 1, 2 and 3 were seen."""
    names = ClassNames(["cat", "lotus", "lotus", "rose"], ["things", "things", "flowers", "flowers"])
    model = CLIPClassifier(TinyBackbone(), head, class_names=names)
    model.classes_seen[1:] = True
    return model


def learned(model, templates=None):
    pool = LearnedClassPrompts(templates)
    pool.learn(model)
    return pool


def test_names_become_prompts_in_their_order():
    pool = NamePrompts(iter(["owl", "eel", "owl"]), template="the {}")
    model = tiny_classifier()
    assert pool.prompts(model) == [Prompt("the owl", None), Prompt("the eel", None)]
    assert pool.prompts(model) == pool.prompts(model)
    pool.learn(model)
    assert pool.state_dict() == {}
    pool.load_state_dict({})


def test_imagenet_has_its_names():
    found = ImageNetPrompts(template=PromptTemplate("one {}!")).prompts(tiny_classifier())
    assert texts(found) == [f"one {name}!" for name in dataset_text("imagenet").class_names]
    assert {prompt.class_id for prompt in found} == {None}


def test_imagenet_is_read_when_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("avalanche_vlm.sources.name_prompts.dataset_text", None)
    pool = ImageNetPrompts()
    with pytest.raises(TypeError):
        pool.prompts(tiny_classifier())


def test_classes_are_learned_when_their_experience_has_ended():
    model, pool = tiny_classifier(), LearnedClassPrompts()
    found = []
    for experience in tiny_benchmark().train_stream:
        model.adaptation(experience)
        found.append(pool.prompts(model))
        pool.learn(model)
    found.append(pool.prompts(model))
    assert [len(each) for each in found] == [0, 2, 4, 6]
    for each in found:
        ids = [prompt.class_id for prompt in each]
        assert ids == sorted(ids)
        assert texts(each) == [f"a photo of a {TINY_CLASSES[index]}." for index in ids]


def test_the_heads_first_template_is_taken():
    head = ZeroShotHead({"things": ["the thing {}", "a {}"], "flowers": "the flower {}"})
    assert learned(model := two_datasets(head)).prompts(model) == [
        Prompt("the thing lotus", 1),
        Prompt("the flower lotus", 2),
        Prompt("the flower rose", 3),
    ]
    model = tiny_classifier(ZeroShotHead(["my {}", "your {}"]))
    model.classes_seen[0] = True
    assert texts(learned(model).prompts(model)) == ["my cat"]


def test_a_head_without_templates_gets_the_plain_one():
    model = tiny_classifier(LearnedContextHead(context_length=2))
    model.classes_seen[4] = True
    assert learned(model).prompts(model) == [Prompt(DEFAULT_TEMPLATE("hen"), 4)]


def test_own_templates_come_before_the_heads():
    model = two_datasets(ZeroShotHead("the {}"))
    given = {"things": "thing {}", "flowers": PromptTemplate("flower {}")}
    assert texts(learned(model, given).prompts(model)) == ["thing lotus", "flower lotus", "flower rose"]
    # One text of two classes is one prompt.
    assert learned(model, "one {}").prompts(model) == [Prompt("one lotus", 1), Prompt("one rose", 3)]


def test_a_data_set_without_template_is_named():
    model = two_datasets()
    with pytest.raises(ValueError, match="`templates`.*'things'"):
        learned(model, {"flowers": "flower {}"}).prompts(model)
    model = tiny_classifier()
    model.classes_seen[0] = True
    with pytest.raises(ValueError, match="`templates`.*no class belongs to a data set"):
        learned(model, {"flowers": "flower {}"}).prompts(model)


def test_what_was_learned_goes_on_elsewhere():
    model = two_datasets()
    pool, other = learned(model), LearnedClassPrompts()
    state = pool.state_dict()
    model.classes_seen[0] = True
    pool.learn(model)
    other.load_state_dict(state)
    assert other.class_ids == [1, 2, 3]
    assert pool.class_ids == [0, 1, 2, 3]


def test_another_model_with_fewer_classes_is_refused():
    pool = learned(two_datasets())
    small = CLIPClassifier(TinyBackbone(), class_names=["cat"])
    with pytest.raises(ValueError, match="`model`.*class 3"):
        pool.prompts(small)


def test_classes_may_be_added_later():
    model = CLIPClassifier(TinyBackbone(), class_names=["cat"])
    model.classes_seen[0] = True
    pool = learned(model)
    model.set_classes(["cat", "dog"])
    assert pool.prompts(model) == [Prompt("a photo of a cat.", 0)]


def test_a_union_has_each_text_once_and_knows_its_class():
    model = tiny_classifier()
    model.classes_seen[1] = True
    pool = PromptUnion([NamePrompts(["eel", "dog"]), learned(model), NamePrompts(["eel", "owl"])])
    assert pool.prompts(model) == [
        Prompt("a photo of a eel.", None),
        Prompt("a photo of a dog.", 1),
        Prompt("a photo of a owl.", None),
    ]


def test_a_union_learns_and_resumes():
    model = tiny_classifier()
    model.classes_seen[2] = True
    pools = [PromptUnion([NamePrompts(["eel"]), PromptUnion([LearnedClassPrompts()])]) for _ in range(2)]
    pools[0].learn(model)
    assert [len(pool.prompts(model)) for pool in pools] == [2, 1]
    pools[1].load_state_dict(pools[0].state_dict())
    assert pools[0].prompts(model) == pools[1].prompts(model)


PROMPTS = [Prompt(f"number {number}", number) for number in range(8)]


def draw(count, seed=0, prompts=PROMPTS, **arguments):
    return draw_prompts(prompts, count, generator=torch.Generator().manual_seed(seed), **arguments)


def test_draws_are_uniform():
    counts = Counter(draw(8000))
    assert set(counts) == set(PROMPTS)
    # Eight binomials of deviation 30.
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_without_replacement_nothing_comes_twice():
    firsts = Counter()
    for seed in range(400):
        drawn = draw(5, seed, replacement=False)
        assert len(set(drawn)) == 5
        firsts[drawn[0]] += 1
    assert len(firsts) == 8
    assert set(draw(8, replacement=False)) == set(PROMPTS)


def test_the_generator_decides():
    state = torch.get_rng_state()
    for replacement in (True, False):
        assert draw(6, replacement=replacement) == draw(6, replacement=replacement)
        assert draw(6, replacement=replacement) != draw(6, 1, replacement=replacement)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "kind", "named"),
    [
        (lambda: NamePrompts("cat"), TypeError, "names"),
        (lambda: NamePrompts({"cat"}), TypeError, "names"),
        (lambda: NamePrompts([3]), TypeError, r"names\[0\]"),
        (lambda: NamePrompts(["cat", " "]), ValueError, r"names\[1\]"),
        (lambda: NamePrompts([]), ValueError, "names"),
        (lambda: NamePrompts(["cat"], template=3), TypeError, "template"),
        (lambda: NamePrompts(["cat"], template="a photo"), ValueError, "template"),
        (lambda: ImageNetPrompts(template=3), TypeError, "template"),
        (lambda: LearnedClassPrompts(3), TypeError, "templates"),
        (lambda: LearnedClassPrompts({"a": 3}), TypeError, "templates"),
        (lambda: LearnedClassPrompts({}), ValueError, "templates"),
        (lambda: PromptUnion(NamePrompts(["cat"])), TypeError, "pools"),
        (lambda: PromptUnion(["cat"]), TypeError, r"pools\[0\]"),
        (lambda: PromptUnion([]), ValueError, "pools"),
        (lambda: LearnedClassPrompts().load_state_dict({}), ValueError, "state"),
        (lambda: NamePrompts(["cat"]).load_state_dict({"learned": 0}), ValueError, "state"),
        (lambda: PromptUnion([NamePrompts(["a"])]).load_state_dict({"pools": []}), ValueError, "state"),
        (lambda: draw(9, replacement=False), ValueError, "count"),
        (lambda: draw(0), ValueError, "count"),
        (lambda: draw(1, prompts=[]), ValueError, "prompts"),
        (lambda: draw(1, replacement=1), TypeError, "replacement"),
        (lambda: draw_prompts(PROMPTS, 1, generator=None), TypeError, "generator"),
    ],
)
def test_faults_are_named(make, kind, named):
    with pytest.raises(kind, match=f"`{named}`"):
        make()


def test_the_contract_is_abstract():
    with pytest.raises(TypeError):
        PromptPool()
