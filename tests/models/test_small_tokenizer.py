from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_vlm.models.small_clip import SMALL_CLIP_CONFIG, SmallTokenizer
from avalanche_vlm.models.small_vocabulary import PUNCTUATION, WORDS
from avalanche_vlm.text import normalize_text
from avalanche_vlm.world import STYLE_TEMPLATES, all_objects, caption

TOKENIZER = SmallTokenizer()

# Texts near the seams of the rule for spaces, and any text at all, lone surrogates included.
SEAMS = st.lists(
    st.sampled_from(
        [" ", "  ", "a", "red", "circle", "rad", ".", ",", "-", "_", "'", "7", "é", "№", "\n", "İ"]
    ),
    max_size=14,
).map("".join)
ANY = st.text(alphabet=st.characters(codec=None), max_size=16)
TEXTS = st.one_of(SEAMS, ANY)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_decoding_gives_the_normalised_text(text: str):
    assert TOKENIZER.decode(TOKENIZER(text, context_length=200)[0]) == normalize_text(text)


@settings(deadline=None, max_examples=300)
@given(TEXTS, TEXTS)
def test_texts_tokenize_alike_only_if_they_normalise_alike(first: str, second: str):
    alike = torch.equal(*TOKENIZER([first, second], context_length=200))

    assert alike == (normalize_text(first) == normalize_text(second))


@settings(deadline=None, max_examples=200)
@given(st.lists(TEXTS, min_size=2, max_size=2), st.text(min_size=60, max_size=90), st.integers(11, 40))
def test_overflowed_texts_stay_distinct(ends: list[str], head: str, context_length: int):
    first, second = (head + end for end in ends)
    tokens = TOKENIZER([first, second], context_length=context_length)

    assert torch.equal(*tokens) == (normalize_text(first) == normalize_text(second))


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(11, 77))
def test_the_end_token_is_the_only_highest_and_padding_follows_it(text: str, context_length: int):
    (tokens,) = TOKENIZER(text, context_length=context_length)
    end = int(tokens.argmax())

    assert tokens.shape == (context_length,)
    assert int(tokens[0]) == TOKENIZER.sot_token_id
    assert (tokens == TOKENIZER.eot_token_id).nonzero().flatten().tolist() == [end]
    assert TOKENIZER.eot_token_id == SMALL_CLIP_CONFIG["text_cfg"]["vocab_size"] - 1
    assert bool((tokens[:end] > 0).all())
    assert not bool(tokens[end + 1 :].any())


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, TOKENIZER.eot_token_id), max_size=30))
def test_any_tokens_decode_to_some_text(ids: list[int]):
    assert isinstance(TOKENIZER.decode(ids), str)


def test_an_overflowed_text_keeps_its_head():
    text = "a photo of a red striped circle " * 20
    (tokens,) = TOKENIZER(text)

    assert int(tokens[-1]) == TOKENIZER.eot_token_id
    assert torch.equal(tokens[:60], TOKENIZER(text, context_length=500)[0, :60])
    assert TOKENIZER.decode(tokens).startswith("a photo of a red striped circle a photo")
    assert TOKENIZER.decode(tokens).endswith("...")


def test_a_text_that_just_fits_is_whole():
    text = "circle " * 75
    (tokens,) = TOKENIZER(text)
    assert TOKENIZER.decode(tokens) == text.strip()
    assert TOKENIZER.decode(TOKENIZER(text + "star")[0]).endswith("...")


def test_a_digest_is_not_taken_for_text():
    long = TOKENIZER("x" * 100, context_length=30)
    spelled = TOKENIZER.decode(long[0])

    assert not torch.equal(long, TOKENIZER(spelled, context_length=30))


def test_every_word_of_the_world_is_one_token():
    generator = torch.Generator().manual_seed(0)
    sentences = [caption(each, generator=generator) for each in all_objects()]
    sentences += [caption(each, style=style) for each in all_objects()[::7] for style in STYLE_TEMPLATES]
    longest_word_token = TOKENIZER(sentences)

    assert int((longest_word_token != 0).sum(dim=1).max()) <= 20
    first_known = TOKENIZER.sot_token_id - len(WORDS) - len(PUNCTUATION)
    content = longest_word_token[longest_word_token > 3]
    assert int(content.min()) >= first_known


def test_known_pieces_are_listed_once_and_normalised():
    assert len(set(WORDS + PUNCTUATION)) == len(WORDS) + len(PUNCTUATION)
    assert all(normalize_text(piece) == piece for piece in WORDS + PUNCTUATION)


def test_one_text_several_texts_and_none():
    assert torch.equal(TOKENIZER("a cat"), TOKENIZER(["a cat"]))
    assert TOKENIZER(["a", "b", "c"]).shape == (3, 77)
    assert TOKENIZER([]).shape == (0, 77)
    assert TOKENIZER("x").dtype == torch.int64


def test_it_pickles():
    copy = pickle.loads(pickle.dumps(TOKENIZER))

    assert torch.equal(copy("a naïve cat"), TOKENIZER("a naïve cat"))


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"`texts\[1\]` must be text"):
        TOKENIZER(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`context_length` must be a whole number of at least 11"):
        TOKENIZER("a", context_length=10)
    with pytest.raises(ValueError, match="`ids` must be token ids from 0"):
        TOKENIZER.decode([100_000])
