"""The small CLIP's tokenizer: no two texts ever get the same tokens.

Known words are one token each; any other piece is spelled in bytes, of which the last is marked.
Spaces are not tokens: a word has one before it and a sign of punctuation has none, and wherever a
text has it otherwise a special token says so. Therefore tokens spell the normalised text exactly.
A text that is too long keeps its head, followed by a digest of all of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from avalanche_vlm._checks import check_count, wrong_type, wrong_value
from avalanche_vlm.models.small_vocabulary import PUNCTUATION, WORDS
from avalanche_vlm.text import normalize_text

_PADDING, _SPACE, _JOIN, _CUT = range(4)
_BYTE = 4  # a byte, with more to come
_LAST_BYTE = _BYTE + 256  # the last byte of a piece
_FIRST_PIECE = _LAST_BYTE + 256
_PIECES = (*WORDS, *PUNCTUATION)
_ID_OF_PIECE = {piece: _FIRST_PIECE + index for index, piece in enumerate(_PIECES)}
_START = _FIRST_PIECE + len(_PIECES)
_END = _START + 1  # the highest id: CLIP reads a text's feature where argmax finds it
_DIGEST_SIZE = 8
_SHORTEST = 2 + 1 + _DIGEST_SIZE  # start, <cut>, digest, end
_PIECE = re.compile(r"\w+|[^\w\s]")

VOCABULARY_SIZE: int = _END + 1


def _is_word(piece: str) -> bool:
    return re.match(r"\w", piece) is not None and piece not in PUNCTUATION


def _spell(piece: str) -> list[int]:
    known = _ID_OF_PIECE.get(piece)
    if known is not None:
        return [known]
    # A lone surrogate is legal in a Python text and has no UTF-8; it must not stop anybody.
    *body, last = piece.encode("utf-8", "surrogatepass")
    return [*(_BYTE + value for value in body), _LAST_BYTE + last]


def _encode(text: str) -> list[int]:
    """Return the tokens of a normalised text, without start and end."""
    ids: list[int] = []
    for number, chunk in enumerate(text.split(" ") if text else ()):
        for position, piece in enumerate(_PIECE.findall(chunk)):
            starts_text = number == 0 and position == 0
            has_space = position == 0 and not starts_text
            if not starts_text and has_space != _is_word(piece):
                ids.append(_SPACE if has_space else _JOIN)
            ids.extend(_spell(piece))
    return ids


def _digest(text: str) -> list[int]:
    encoded = text.encode("utf-8", "surrogatepass")
    return [_BYTE + value for value in hashlib.blake2b(encoded, digest_size=_DIGEST_SIZE).digest()]


class SmallTokenizer:
    """Turn texts into token ids for the small CLIP, and back.

    Properties, for texts x and y that differ after `avalanche_vlm.text.normalize_text`:

    - the tokens of x differ from those of y, also if x and y hold words never seen before, and,
      up to collisions of a digest of 64 bits, if they are too long;
    - ``decode`` gives x back, normalised, if it is not too long;
    - the end token has the highest id, padding is 0 and comes after it.

    >>> tokenizer = SmallTokenizer()
    >>> tokens = tokenizer("A photo of a red striped  circle.")
    >>> tokens.shape, int((tokens != 0).sum())
    (torch.Size([1, 77]), 10)
    >>> tokenizer.decode(tokens[0])
    'a photo of a red striped circle.'
    """

    vocab_size: int = VOCABULARY_SIZE
    sot_token_id: int = _START
    eot_token_id: int = _END

    def __call__(self, texts: str | Sequence[str], context_length: int = 77) -> Tensor:
        """Return the token ids of one or several texts.

        Args:
            texts: one text, or N of them.
            context_length: tokens per text, start and end included.

        Returns:
            int64 (N, ``context_length``).

        Raises:
            TypeError: something in ``texts`` is not text.
            ValueError: ``context_length`` has no room for the shortest form of a long text.
        """
        check_count("context_length", context_length, at_least=_SHORTEST)
        listed = [texts] if isinstance(texts, str) else list(texts)
        result = torch.zeros(len(listed), context_length, dtype=torch.int64)
        for row, text in enumerate(listed):
            if not isinstance(text, str):
                raise wrong_type(f"texts[{row}]", "text", text)
            normalized = normalize_text(text)
            ids = _encode(normalized)
            if len(ids) > context_length - 2:
                ids = [*ids[: context_length - _SHORTEST], _CUT, *_digest(normalized)]
            ids = [_START, *ids, _END]
            result[row, : len(ids)] = torch.tensor(ids)
        return result

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """Return the normalised text that the tokens spell.

        Args:
            ids: tokens of one text, (L,). Start, end and padding are passed over. Of a text that
                was too long the head comes back, followed by ``"..."``.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        values = [int(value) for value in (ids.tolist() if isinstance(ids, Tensor) else ids)]
        text, pending, mark = "", bytearray(), _PADDING
        for value in values:
            if not 0 <= value < VOCABULARY_SIZE:
                raise wrong_value("ids", f"token ids from 0 to {_END}", value)
            if value == _CUT:
                return text + pending.decode("utf-8", "replace") + "..."
            if value in (_PADDING, _START, _END):
                continue
            if value in (_SPACE, _JOIN):
                mark = value
                continue
            if value < _LAST_BYTE:
                pending.append(value - _BYTE)
                continue
            if value < _FIRST_PIECE:
                pending.append(value - _LAST_BYTE)
                piece = _read(pending)
                pending.clear()
            else:
                piece = _PIECES[value - _FIRST_PIECE]
            spaced = _is_word(piece) if mark == _PADDING else mark == _SPACE
            text += (" " if spaced and text else "") + piece
            mark = _PADDING
        return text


def _read(spelled: bytearray) -> str:
    try:
        return spelled.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # tokens that no text has
        return spelled.decode("utf-8", "replace")
