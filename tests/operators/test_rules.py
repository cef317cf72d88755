import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from operators.rules import RuleSettings, apply_rules, detect_language

ENGLISH, GERMAN = "a photo of a dog on the beach", "ein Hund und die Katze liegen am Strand"


def check(rules, captions=(ENGLISH,), sizes=((300, 200),)):
    width, height = np.array(sizes, np.int64).reshape(-1, 2).T
    return apply_rules(RuleSettings(**rules), width, height, list(captions))


@pytest.mark.parametrize(
    ("rules", "caption", "size", "reason"),
    [
        ({"min_side": 200}, None, (200, 900), None),
        ({"min_side": 200}, None, (900, 199), "min_side"),
        ({"max_side": 200}, None, (200, 1), None),
        ({"max_side": 200}, None, (1, 201), "max_side"),
        ({"max_aspect": 3.0}, None, (300, 100), None),
        ({"max_aspect": 3.0}, None, (100, 301), "max_aspect"),
        ({"max_aspect": 3.0}, None, (0, 10), "max_aspect"),
        ({"min_words": 3}, " one\ttwo\nthree ", (1, 1), None),
        ({"min_words": 3}, "one two", (1, 1), "min_words"),
        ({"min_words": 1}, None, (1, 1), "min_words"),
        ({"max_words": 2}, "one two", (1, 1), None),
        ({"max_words": 2}, "one two three", (1, 1), "max_words"),
        ({"max_words": 2}, None, (1, 1), None),
        ({"min_chars": 6}, "abc 日本", (1, 1), None),
        ({"min_chars": 6}, "abcde", (1, 1), "min_chars"),
        ({"min_chars": 6}, None, (1, 1), "min_chars"),
        ({"languages": ["en"]}, ENGLISH, (1, 1), None),
        ({"languages": ["en"]}, GERMAN, (1, 1), "language"),
        ({"languages": ["en", "de"]}, GERMAN, (1, 1), None),
        ({"languages": ["en"], "min_language_score": 0.99}, ENGLISH, (1, 1), "language"),
        ({"languages": ["en"], "min_language_score": 0.3}, ENGLISH.replace(" ", "\r\n"), (1, 1), None),
    ],
)
def test_each_rule_on_both_sides_of_its_limit(rules, caption, size, reason):
    result = check(rules, [caption], [size])
    assert result.reasons_N == [reason]
    assert result.kept_N.tolist() == [reason is None]


def test_the_first_failing_rule_gives_the_reason():
    rules = {"min_side": 200, "max_aspect": 3.0, "min_words": 3, "min_chars": 6, "languages": ["en"]}
    captions = [None, None, None, "a b c", GERMAN, ENGLISH]
    sizes = [(10, 100), (200, 700), (300, 300), (300, 300), (300, 300), (300, 300)]
    result = check(rules, captions, sizes)
    assert result.reasons_N == ["min_side", "max_aspect", "min_words", "min_chars", "language", None]
    assert result.smaller_sides_N.tolist() == [10, 200, 300, 300, 300, 300]
    assert result.aspects_N.tolist() == [10.0, 3.5, 1.0, 1.0, 1.0, 1.0]
    assert result.words_N.tolist() == [0, 0, 0, 3, 8, 8]
    assert result.chars_N.tolist() == [0, 0, 0, 5, 39, 29]
    assert result.languages_N == [None, None, None, None, "de", "en"]
    assert np.isnan(result.language_scores_N).tolist() == [True] * 4 + [False] * 2


def test_empty_and_identical_rows():
    assert check({"min_side": 1, "languages": ["en"]}, [], []).kept_N.shape == (0,)
    assert check({"min_words": 9}, [ENGLISH] * 3, [(1, 1)] * 3).reasons_N == ["min_words"] * 3


@given(st.text(st.characters(), max_size=50))
def test_any_text_has_a_language(text):
    language, score = detect_language(text)
    assert language.isalpha()
    assert 0 <= score <= 1


def test_lone_surrogates_do_not_stop_the_detector():
    assert detect_language(f"{ENGLISH} \ud800")[0] == "en"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.none() | st.text("ab ", max_size=9)), max_size=20))
def test_kept_rows_are_those_that_pass_every_rule(rows):
    rules = {"min_side": 5, "max_side": 40, "max_aspect": 2.0, "min_words": 1, "max_words": 3, "min_chars": 2}
    result = check(rules, [r[2] for r in rows], [r[:2] for r in rows])
    for kept, reason, (width, height, caption) in zip(result.kept_N, result.reasons_N, rows, strict=True):
        small, large, text = min(width, height), max(width, height), caption or ""
        size_is_right = small >= 5 and large <= 40 and large <= 2 * small
        assert kept == (size_is_right and 1 <= len(text.split()) <= 3 and len(text) >= 2)
        assert kept == (reason is None)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "at least one rule must be given: min_side"),
        ({"min_size": 3}, "Extra inputs"),
        ({"min_side": 0}, "greater than or equal to 1"),
        ({"max_aspect": 0.5}, "greater than or equal to 1"),
        ({"min_side": 9, "max_side": 3}, "min_side must be at most max_side, got 9 and 3"),
        ({"min_words": 9, "max_words": 3}, "min_words must be at most max_words, got 9 and 3"),
        ({"languages": []}, "at least 1 item"),
        ({"languages": ["english"]}, "two or three lower-case letters .* got 'english'"),
        ({"min_language_score": 0.5}, "must come with languages"),
    ],
)
def test_settings_refuse(rules, message):
    with pytest.raises(ValidationError, match=message):
        RuleSettings(**rules)
