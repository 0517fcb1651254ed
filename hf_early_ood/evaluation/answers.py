r"""Exact match and F1 of answers to questions, by the rules of the official scripts of SQuAD and MLQA.

**Normalization.** An answer is put in lower case, loses its punctuation, then the articles of its language, and is cut
into tokens, which are joined by single spaces.

========  =======================================  =========================================================
          ``squad``                                ``mlqa``
========  =======================================  =========================================================
source    Rajpurkar et al. 2016 (1606.05250)       Lewis et al. 2020 (1910.07475)
for       en, no language, and every other one     es, de, vi, ar, hi, zh; en if asked for
removed   the 32 characters of ASCII punctuation   also every character of a Unicode category P
articles  a, an, the                               of the language; hi and zh have none
tokens    between white space                      the same; in zh each character U+4E00 to U+9FA5 is a token
========  =======================================  =========================================================

Two things are as in the official script of MLQA, so that numbers can be compared, not as one would choose them: Arabic
"ال" is cut out wherever it stands, in the middle of a word too; and texts are not brought to one Unicode form, so that
a Vietnamese vowel with a combining mark differs from the composed one.

**XQuAD** (Artetxe et al. 2020, 1910.11856) is published with the rules ``squad`` in all of its languages, English
articles included: give ``rules="squad"`` to compare with those numbers. By default only its el, ro, ru, th and tr, of
which MLQA says nothing, are scored so. Thai puts no space between words, so that F1 there is hardly finer than exact
match. A language with rules of neither script is scored by ``squad`` as well.

**Scores.** Exact match: the normalized answers are the same. F1: of the two bags of tokens, with n common ones, p
predicted and g right ones, F1 = 2 n / (p + g). The score of a question is the highest over its right answers.

**No answer** (SQuAD 2.0, Rajpurkar et al. 2018, 1806.03822). Right answers of which nothing is left are not counted; if
there is none, the right one is the empty answer. An empty answer has F1 1 against an empty one, and else 0. (The
scripts of SQuAD 1.1 and MLQA give F1 0 to two empty answers. Their data have none, but for such as "the" in English.)
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.metrics import IntArray
from hf_early_ood.evaluation.scores import Formula, Scores
from hf_early_ood.names import EXACT_MATCH, F1

SQUAD, MLQA = "squad", "mlqa"

_ENGLISH = r"\b(?:a|an|the)\b"
# Language -> what is removed as its articles; None where there are none. The keys are the languages of MLQA.
_ARTICLES = {
    "en": _ENGLISH,
    "es": r"\b(?:un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(?:ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(?:của|là|cái|chiếc|những)\b",
    "ar": "ال",
    "hi": None,
    "zh": None,
}
_CHINESE_CHARACTER = re.compile("([\u4e00-\u9fa5])")


def rules_for(language: str | None) -> str:
    """The rules by which answers in a language are scored unless others are asked for.

    Args:
        language: ISO 639-1 code, with or without a region; None is taken for English.

    Example:
        >>> rules_for("en"), rules_for("zh-CN"), rules_for("th")
        ('squad', 'mlqa', 'squad')
    """
    return MLQA if _code(language) in _ARTICLES and _code(language) != "en" else SQUAD


def normalize(text: str, language: str | None = None, rules: str | None = None) -> str:
    """What is compared of an answer: its tokens, joined by spaces.

    Args:
        text: The answer.
        language: ISO 639-1 code of its language.
        rules: "squad" or "mlqa"; None: those of the language, see `rules_for`.

    Raises:
        ConfigurationError: If there are no such rules, or MLQA has none for the language.

    Example:
        >>> normalize("The  U.S.A.!"), normalize("Die Höhe (2016)", "de"), normalize("1990年代", "zh")
        ('usa', 'höhe 2016', '1990 年 代')
    """
    rules, code = _check_rules(language, rules), _code(language)
    by_mlqa = rules == MLQA
    kept = "".join(character for character in text.lower() if not _is_punctuation(character, by_mlqa))
    articles = _ARTICLES[code] if by_mlqa else _ENGLISH
    if articles is not None:
        kept = re.sub(articles, " ", kept)
    if by_mlqa and code == "zh":
        kept = _CHINESE_CHARACTER.sub(r" \1 ", kept)
    return " ".join(kept.split())


def exact_match(
    prediction: str, answers: Sequence[str], *, language: str | None = None, rules: str | None = None
) -> float:
    """1 if an answer is one of the right ones after normalization, else 0.

    Args:
        prediction: The answer; "" for none.
        answers: The right ones; none of them: the question has no answer.
        language: ISO 639-1 code.
        rules: As for `normalize`.

    Raises:
        ConfigurationError: As for `normalize`.

    Example:
        >>> exact_match("The Rhine.", ["Rhine", "river Rhine"]), exact_match("", [])
        (1.0, 1.0)
    """
    return _score(normalize(prediction, language, rules), _right(answers, language, rules))[0]


def f1(prediction: str, answers: Sequence[str], *, language: str | None = None, rules: str | None = None) -> float:
    """F1 of the tokens of an answer, against the right one that it is closest to.

    Args:
        prediction: The answer; "" for none.
        answers: The right ones; none of them: the question has no answer.
        language: ISO 639-1 code.
        rules: As for `normalize`.

    Raises:
        ConfigurationError: As for `normalize`.

    Example:
        >>> f1("the river Rhine", ["Rhine", "Danube"])
        0.6666666666666666
    """
    return _score(normalize(prediction, language, rules), _right(answers, language, rules))[1]


def answer_scores(
    ids: Sequence[str],
    answers: Sequence[Sequence[str]],
    predictions: Sequence[str],
    *,
    language: str | None,
    rules: str | None = None,
    groups: IntArray | None = None,
) -> Scores:
    """Exact match and F1 of every question: means of them are the metrics of the set.

    Args:
        ids: n ids of the questions, no two the same.
        answers: Right answers of each; none: it has no answer.
        predictions: Answer to each; "" for none.
        language: ISO 639-1 code.
        rules: As for `normalize`.
        groups: (n,) group of each question.

    Returns:
        Scores with the metrics "exact_match" and "f1", both in [0, 1].

    Raises:
        ConfigurationError: As for `normalize`.
        DataError: If there are no questions, the arguments differ in length, or an id is there twice.

    Example:
        >>> scores = answer_scores(["1", "2"], [["Rhine"], []], ["the Rhine", "Danube"], language="en")
        >>> {metric: float(formula.of_sums(scores.columns.sum(0))) for metric, formula in scores.formulas.items()}
        {'exact_match': 0.5, 'f1': 0.5}
    """
    lengths = [len(ids), len(answers), len(predictions), *([] if groups is None else [len(groups)])]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise DataError(
            "Questions, right answers and predictions do not fit.",
            got=f"{', '.join(map(str, lengths))} of them",
            allowed="the same number of each, one or more",
        )
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise DataError("Questions have the same id.", got=f"{len(twice)} ids, such as {twice[0]}")
    rules = _check_rules(language, rules)
    rows = [
        (*_score(normalize(prediction, language, rules), _right(right, language, rules)), 1.0)
        for prediction, right in zip(predictions, answers, strict=True)
    ]
    task = [rules, _code(language), [[name, list(right)] for name, right in zip(ids, answers, strict=True)]]
    return Scores(
        columns=np.array(rows),
        formulas={
            EXACT_MATCH: Formula(lambda sums: sums[..., 0] / sums[..., 2]),
            F1: Formula(lambda sums: sums[..., 1] / sums[..., 2]),
        },
        examples=hashlib.sha256(json.dumps(task).encode()).hexdigest(),
        groups=groups,
    )


def _score(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of normalized answers."""
    return float(prediction in answers), max(_overlap(prediction.split(), answer.split()) for answer in answers)


def _overlap(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))


def _right(answers: Sequence[str], language: str | None, rules: str | None) -> list[str]:
    """Right answers, normalized; the empty one if nothing is left of any."""
    if isinstance(answers, str):  # its characters would be taken for answers
        raise DataError("Right answers are not a list.", got=repr(answers), allowed="a list of texts")
    return [kept for kept in (normalize(answer, language, rules) for answer in answers) if kept] or [""]


def _is_punctuation(character: str, by_mlqa: bool) -> bool:
    return character in string.punctuation or (by_mlqa and unicodedata.category(character).startswith("P"))


def _code(language: str | None) -> str:
    return "en" if language is None else re.split("[-_]", language.lower())[0]


def _check_rules(language: str | None, rules: str | None) -> str:
    if rules is None:
        return rules_for(language)
    if rules not in (SQUAD, MLQA):
        raise ConfigurationError("There are no such rules.", got=rules, allowed=f"{SQUAD}, {MLQA}")
    if rules == MLQA and _code(language) not in _ARTICLES:
        raise ConfigurationError(
            "MLQA has no rules for this language.",
            got=language,
            allowed=", ".join(_ARTICLES),
            fix='Use rules="squad", or none to have those of the language.',
        )
    return rules
