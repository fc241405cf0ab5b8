import pickle

import pytest

from avalanche_vlm.text import ClassNames, normalize_text


def test_names_are_an_ordered_list():
    names = ClassNames(["cat", "Siamese  cat", "dog"])
    assert list(names) == ["cat", "Siamese  cat", "dog"]  # as given, though compared normalised
    assert (names[0], names[-1], names[1:], len(names)) == ("cat", "dog", ("Siamese  cat", "dog"), 3)
    assert names.datasets == ()


@pytest.mark.parametrize(
    "source",
    [["a", "b"], ("a", "b"), (letter for letter in "ab"), {"a": 1, "b": 2}.keys(), ClassNames(["a", "b"])],
    ids=["list", "tuple", "generator", "keys", "names"],
)
def test_anything_in_order_will_do(source):
    assert ClassNames(source).names == ("a", "b")


def test_equality_counts_names_and_data_sets():
    names = ClassNames(["a", "b"], ["x", "y"])
    assert names == ClassNames(("a", "b"), ("x", "y"))
    assert hash(names) == hash(ClassNames(("a", "b"), ("x", "y")))
    assert names != ClassNames(["a", "b"])
    assert names != ClassNames(["b", "a"], ["x", "y"])
    assert names != ("a", "b")
    assert pickle.loads(pickle.dumps(names)) == names


@pytest.mark.parametrize("twin", ["cat", "CAT", " cat", "cat\n"])
def test_duplicates_are_found_up_to_case_and_white_space(twin):
    with pytest.raises(ValueError, match="`class_names` must be names without duplicates.*class 2.*class 0"):
        ClassNames(["cat", "dog", twin])
    with pytest.raises(ValueError, match="duplicates"):
        ClassNames(["Siamese cat", "siamese \t CAT"])


def test_a_name_may_come_back_in_another_data_set_only():
    names = ClassNames(["lotus", "rose", "Lotus", "rose "], ["objects", "objects", "flowers", "flowers"])
    assert names.names == ("lotus", "rose", "Lotus", "rose ")
    assert pickle.loads(pickle.dumps(names)) == names
    sentence = (
        "names without duplicates within data set 'flowers'.*'LOTUS' for class 2 and 'lotus' for class 1"
    )
    with pytest.raises(ValueError, match=sentence):
        ClassNames(["lotus", "lotus", "LOTUS"], ["objects", "flowers", "flowers"])
    with pytest.raises(ValueError, match="must be names without duplicates \\(up to case"):
        ClassNames(["lotus", "lotus"])


def test_data_sets_are_text():
    for wrong in (3, None, ["pets"]):
        with pytest.raises(TypeError, match=r"`datasets\[1\]` must be text"):
            ClassNames(["cat", "pie"], ["pets", wrong])


def test_normalisation_folds_case_and_white_space():
    assert normalize_text("  Siamese \n\t CAT ") == "siamese cat"
    assert normalize_text(" \n") == ""


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_names_are_refused(empty):
    with pytest.raises(ValueError, match=r"`class_names\[1\]` must be a name"):
        ClassNames(["cat", empty])


def test_no_names_are_refused():
    for none in ([], (), iter(())):
        with pytest.raises(ValueError, match="`class_names` must be at least one name; got an empty list"):
            ClassNames(none)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"cat", "dog"}, "an ordered list of names; got set.*A set has no order"),
        (frozenset({"cat", "dog"}), "an ordered list of names; got frozenset.*A set has no order"),
        ({0: "cat", 1: "dog"}, "an ordered list of names; got dict.*in the order of the class ids"),
        ("cat", "an ordered list of names; got str.*Wrap a single name in a list"),
        (None, "an ordered list of names; got NoneType"),
        (3, "an ordered list of names; got int"),
    ],
)
def test_what_has_no_order_is_refused(names, sentence):
    with pytest.raises(TypeError, match=f"`class_names` must be {sentence}"):
        ClassNames(names)


def test_names_are_text():
    with pytest.raises(TypeError, match=r"`class_names\[1\]` must be text; got int"):
        ClassNames(["cat", 1])


def test_data_sets_are_one_a_class():
    assert ClassNames(["cat", "pie"], ["pets", "food"]).datasets == ("pets", "food")
    for datasets in (["pets"], ["pets", "pets", "food"]):
        with pytest.raises(ValueError, match=r"`datasets` must be one entry per class \(2\); got \d entries"):
            ClassNames(["cat", "pie"], datasets)
    for datasets in ({"pets", "food"}, {"cat": "pets", "pie": "food"}, "ab", None):
        with pytest.raises(TypeError, match="`datasets` must be an ordered list, one entry per class"):
            ClassNames(["cat", "pie"], datasets)


def test_the_count_can_be_checked():
    names = ClassNames(["cat", "dog"])
    names.check_count(2, "the head")
    with pytest.raises(
        ValueError, match="`class_names` must be 3 names, one for each class of the head; got 2"
    ):
        names.check_count(3, "the head")
