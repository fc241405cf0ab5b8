"""The records of a file of results: what is one, what is the rest of a crash, and what is damage.

Every row is as `write_results` writes it, but for line ends of two characters and a byte order mark, which
spreadsheets write: a stray quotation mark or comma, a lost line end or a byte that is no text is seen, and
told with its line. Only the last record may be unfinished.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from avalanche_vlm._checks import wrong_value
from avalanche_vlm.logging.result_row import MOST, NUMBER, ROW_END, ResultRow

HEADER = [field.name for field in fields(ResultRow)]
HEADER_LINE = (",".join(HEADER) + "\n").encode()
_HEADERS = [mark + HEADER_LINE[:-1] + end for mark in (b"", codecs.BOM_UTF8) for end in (b"\n", b"\r\n")]

_WHOLE_COLUMNS = frozenset(("seed", "after_experience", "experience", "step"))
_OPEN = rb'"[^"]*(?:""[^"]*)*'
_CELL = rb'(?:%s"|[^",\r\n]*)' % _OPEN
_RECORD = re.compile(rb"%s(?:,%s)*\r?\n" % (_CELL, _CELL))
_UNFINISHED = re.compile(rb'(?:%s,)*(?:%s"?|[^",\r\n]*\r?)' % (_CELL, _OPEN))
_ONE_CELL = re.compile(_CELL)
_NUMBER = re.compile(NUMBER, re.ASCII)
_NUMBER_SO_FAR = re.compile(r"-?(?:\d*(?:\.\d*)?(?:(?<=[\d.])[eE][+-]?\d*)?|n|na|nan|i|in|inf)", re.ASCII)
_WHOLE = re.compile(r"(?:0|[1-9]\d{0,19})?", re.ASCII)
# Most rows: no quotes, and no number of more than 19 digits.
_PLAIN_CELLS = dict.fromkeys(_WHOLE_COLUMNS, r"((?:0|[1-9]\d{0,18})?)") | {"value": f"({NUMBER})"}
_PLAIN = re.compile(
    ",".join(_PLAIN_CELLS.get(name, r'([^",\r\n\0]*)') for name in HEADER).encode() + rb"\r?\n"
)
_MOST_TEXTS = 10_000


class Record(NamedTuple):
    """A row as text, column by column, and the bytes of the file that it takes."""

    start: int
    end: int
    cells: tuple[str, ...]


class _Damage(Exception):
    """A record is damaged; the message says how."""


def records(path: Path, data: bytes, start: int | None = None) -> Generator[Record]:
    """Yield the finished records of a file, one after another.

    Args:
        path: of the file, for errors.
        data: its bytes.
        start: where a record begins; None for the first one, after the header.

    Raises:
        ValueError: the file has another header, or a record is damaged.
    """
    place = header_end(path, data) if start is None else start
    texts: dict[bytes, str] = {}  # few are different
    try:
        while place < len(data):
            plain = _PLAIN.match(data, place)
            if plain is not None:
                end = plain.end()
                cells = tuple(
                    [texts[cell] if cell in texts else _decoded(texts, cell) for cell in plain.groups()]
                )
            else:
                found = _RECORD.match(data, place)
                if found is None:
                    _check_unfinished(data[place:])
                    return
                end = found.end()
                cells = _cells(data[place:end])
                _check(cells)
            yield Record(place, end, cells)
            place = end
    except (_Damage, UnicodeDecodeError) as error:
        raise damaged(path, data.count(b"\n", 0, place) + 1, error) from error


def rows_of(found: Iterable[Record]) -> list[ResultRow]:
    """Return the rows of records."""
    rows: list[ResultRow] = []
    for record in found:
        run, method, benchmark, seed, space, stream, metric, after, experience, name, step, value = (
            record.cells
        )
        row = object.__new__(ResultRow)  # all of it is checked already, which takes most of the time
        row.__dict__.update(
            run=run,
            method=method,
            benchmark=benchmark,
            seed=int(seed) if seed else None,
            space=space,
            stream=stream,
            metric=metric,
            after_experience=int(after) if after else None,
            experience=int(experience) if experience else None,
            class_name=name,
            step=int(step) if step else None,
            value=float(value),
        )
        rows.append(row)
    return rows


def _decoded(texts: dict[bytes, str], cell: bytes) -> str:
    if len(texts) >= _MOST_TEXTS:
        texts.clear()
    text = texts[cell] = cell.decode()
    return text


def header_end(path: Path, data: bytes) -> int:
    """Return where the first record of a file begins; 0 if not even the header is finished.

    Raises:
        ValueError: the file has another header.
    """
    end = data.find(b"\n") + 1
    if end == 0 and any(whole.startswith(data) for whole in _HEADERS):
        return 0
    check_header(path, data)
    return end


def check_header(path: Path, data: bytes) -> None:
    """Raise `ValueError` unless a file begins with the header of results."""
    first = data.removeprefix(codecs.BOM_UTF8).split(b"\n", 1)[0].decode(errors="replace").removesuffix("\r")
    names = first.split(",")
    if names == HEADER:
        return
    advice = "Use another file."
    if {"method", "metric", "value"} <= set(names):
        added = [name for name in HEADER if name not in names]
        columns = f" (it lacks {', '.join(added)})" if added else ""
        advice = (
            f"Another version of avalanche-vlm wrote it{columns}: begin a new file, and keep this one for "
            "the version that it belongs to."
        )
    raise wrong_value(
        "path", f"a file with the header {','.join(HEADER)}", f"{first[:120]!r} in {path}", advice
    )


def damaged(path: Path, line: int, error: Exception) -> ValueError:
    """Return the error of a damaged line."""
    return wrong_value(
        "path",
        "a file of which every line is a row of results",
        f"line {line} of {path} ({error})",
        "The file is left as it is: mend that line, or delete it.",
    )


def encoded(rows: Iterable[ResultRow]) -> bytes:
    """Return rows as they stand in a file."""
    # Not by the module csv: which characters it puts quotes around depends on the version of Python.
    return "".join(",".join(_text(getattr(row, name)) for name in HEADER) + "\n" for row in rows).encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    if "," in value or '"' in value or "\n" in value or "\r" in value:
        return '"' + value.replace('"', '""') + '"'
    return value


def _cells(record: bytes) -> tuple[str, ...]:
    """Return the cells of a record in which some have quotes."""
    cells: list[str] = []
    place = 0
    while True:
        found = _ONE_CELL.match(record, place)
        assert found is not None
        cells.append(_unquoted(found[0].decode()))
        place = found.end()
        if record[place : place + 1] != b",":
            return tuple(cells)
        place += 1


def _unquoted(cell: str) -> str:
    if not cell.startswith('"'):
        return cell
    text = cell[1:-1].replace('""', '"')
    if not any(mark in text for mark in ',"\r\n'):
        raise _Damage(f"quotation marks around {text[:60]!r}, which needs none")
    if ROW_END.search(text):
        raise _Damage("a quotation mark, and rows before the next one")
    return text


def _check(cells: Sequence[str]) -> None:
    """Raise unless these are the columns of a row."""
    if len(cells) != len(HEADER):
        raise _Damage(f"{len(cells)} columns, not {len(HEADER)}")
    for name, cell in zip(HEADER, cells, strict=True):
        if name == "value":
            if _NUMBER.fullmatch(cell) is None:
                raise _Damage(f"{cell[:60]!r} is not a number")
        elif name in _WHOLE_COLUMNS:
            if _WHOLE.fullmatch(cell) is None or (cell and int(cell) >= MOST):
                raise _Damage(f"{cell[:60]!r} in the column {name} is not a whole number")
        else:
            _check_nul(name, cell)


def _check_unfinished(tail: bytes) -> None:
    """Raise unless the end of a file is what a crash leaves of a record: the beginning of one."""
    if _UNFINISHED.fullmatch(tail) is None:
        raise _Damage("a quotation mark or line end where none belongs")
    cells: list[bytes] = []
    place = 0
    while (found := _ONE_CELL.match(tail, place)) is not None and tail[found.end() : found.end() + 1] == b",":
        cells.append(found[0])
        place = found.end() + 1
    last = tail[place:]
    if len(cells) >= len(HEADER):
        raise _Damage(f"more than {len(HEADER)} columns")
    for name, cell in zip(HEADER, cells, strict=False):
        text = _unquoted(cell.decode())
        if name in _WHOLE_COLUMNS and _WHOLE.fullmatch(text) is None:
            raise _Damage(f"{text[:60]!r} in the column {name} is not a whole number")
        _check_nul(name, text)
    name = HEADER[len(cells)]
    text = codecs.getincrementaldecoder("utf-8")().decode(last)  # which may end within a letter
    _check_nul(name, text)
    if name == "value":
        if _NUMBER_SO_FAR.fullmatch(text.removesuffix("\r")) is None:
            raise _Damage(f"{text[:60]!r} is not a number")
    elif name in _WHOLE_COLUMNS:
        if _WHOLE.fullmatch(text) is None:
            raise _Damage(f"{text[:60]!r} in the column {name} is not a whole number")
    elif text.startswith('"') and (ROW_END.search(text) or _is_row_without_quotes(tail)):
        raise _Damage("a quotation mark that is not closed, and rows after it")


def _is_row_without_quotes(tail: bytes) -> bool:
    """Return whether the first line of an unfinished record is a row, but for a quotation mark in it."""
    line = tail.split(b"\n", 1)[0].removesuffix(b"\r")
    return (
        b"\n" in tail
        and line.count(b",") == len(HEADER) - 1
        and ROW_END.search(line.decode() + "\n") is not None
    )


def _check_nul(name: str, text: str) -> None:
    if "\0" in text:
        raise _Damage(f"a NUL in the column {name}")
