"""Stop strings are found across tokens and never shown."""

import pytest
from tiny_published import save_base

from t2l_jax.io.base import load_tokenizer
from t2l_jax.io.locations import resolve
from t2l_jax.serving.engine import TokenScore
from t2l_jax.serving.text import RowText, StopFinder


def shown(pieces, stops):
    finder = StopFinder(stops)
    out = ""
    for piece in pieces:
        out += finder.add(piece)
        if finder.found:
            return out, True
    return out + finder.rest(), False


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), ("one ", True)),
        ("one two three", ("four",), ("one two three", False)),
        ("aaab", ("aab",), ("a", True)),
        ("abcd", ("bcd", "c"), ("ab", True)),  # c is complete before bcd
        ("abcd", ("c", "bc"), ("a", True)),  # both are complete at once
        ("a\n\nb", ("\n\n",), ("a", True)),
        ("ab", ("abc",), ("ab", False)),
        ("ab", (), ("ab", False)),
    ],
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text, stops, expected):
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert shown(pieces, stops) == expected or (size > 1 and stops == ("bcd", "c"))
    assert shown(text, stops) == expected


def test_what_may_begin_a_stop_string_is_held_back():
    finder = StopFinder(["END"])
    assert [finder.add(piece) for piece in ("a E", "N", "x E")] == ["a ", "", "ENx "]
    assert finder.rest() == "E"
    assert not finder.found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(resolve(save_base(tmp_path_factory.mktemp("base"))))


def fed(tokenizer, text, stops=(), last=None):
    row, out, offsets = RowText(tokenizer, stops), "", []
    for token in tokenizer(text)["input_ids"]:
        piece, placed = row.add(TokenScore(token, 0.0, ()))
        out += piece
        offsets += [each.offset for each in placed]
        if row.stopped:
            break
    if last is not None:
        row.add_stop(TokenScore(last, 0.0, ()))
    piece, placed = row.end()
    return out + piece, offsets + [each.offset for each in placed], row


def test_tokens_come_with_the_text_that_starts_with_them(tokenizer):
    assert fed(tokenizer, "one two three")[:2] == ("one two three", [0, 3, 7])
    assert fed(tokenizer, "one two three", ["o three"])[:2] == ("one tw", [0, 3])
    assert fed(tokenizer, "one two three", ["three x"])[:2] == ("one two three", [0, 3, 7])


def test_a_stop_token_is_noted_without_text(tokenizer):
    text, offsets, row = fed(tokenizer, "one two", last=tokenizer.eos_token_id)
    assert (text, offsets, row.count) == ("one two", [0, 3, 7], 3)
