"""Expected values are worked out by hand from the rules of the official scripts of SQuAD v1.1 / v2.0 and MLQA v1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.evaluation.answers import answer_scores, exact_match, f1, normalize, rules_for

SQUAD_CASES = [
    # Prediction, right answers, exact match, F1.
    ("The U.S.A.!", ["usa"], 1, 1),  # punctuation leaves no space behind: u.s.a. is one token
    ("twenty-one", ["twenty one"], 0, 0),  # neither does a hyphen: twentyone against twenty, one
    ("the big cat sat", ["a cat sat down"], 0, 2 / 3),  # big cat sat, cat sat down: 2 common, 2 * 2 / (3 + 3)
    ("New, new York", ["new york"], 0, 0.8),  # new new york: a token counts as often as in both, 2 * 2 / (3 + 2)
    ("in 1990", ["1991", "1990", "the year 1990"], 0, 2 / 3),  # best of 0, 2 / (2 + 1) and 2 / (2 + 2)
    ("Rhine", ["Danube", "the Rhine"], 1, 1),
    ("“Rhine”", ["Rhine"], 0, 0),  # these quotation marks are not ASCII: another token
    ("theory a", ["theory"], 1, 1),  # articles are whole words
    ("one\u00a0two\tthree", ["one two three"], 1, 1),  # any white space
]

EMPTY_CASES = [
    ("", [], 1, 1),
    ("Paris", [], 0, 0),
    ("", ["Paris"], 0, 0),
    ("the", ["Paris"], 0, 0),  # nothing is left of the prediction
    ("The!", [], 1, 1),  # as empty as the right one
    ("", ["the", "..."], 1, 1),  # nothing is left of any right answer: there is none
    ("", ["the", "Paris"], 0, 0),  # one is left, and it is another
]

MLQA_CASES = [
    ("en", "“The Rhine”", ["Rhine"], 1, 1),  # punctuation of all Unicode
    # die and des go: höhe turms against höhe, 2 * 1 / (2 + 1).
    ("de", "Die Höhe des Turms", ["der „Höhe“"], 0, 2 / 3),
    ("de", "Diebstahl", ["stahl"], 0, 0),  # articles are whole words
    ("de", "the Rhein", ["Rhein"], 0, 2 / 3),  # English ones stay
    # los goes, and ¿ ? are punctuation.
    ("es", "¿Los Ángeles?", ["Ángeles"], 1, 1),
    ("es", "las 3 reglas de la casa", ["3 reglas"], 0, 2 / 3),  # 3 reglas de casa: 2 * 2 / (4 + 2)
    ("vi", "của Việt Nam", ["Việt Nam"], 1, 1),
    ("vi", "những cái cây", ["Cây"], 1, 1),
    ("ar", "الكتاب؟", ["كتاب"], 1, 1),
    # The article is cut out wherever its two letters stand: of "the money" (ا ل م ا ل) one letter is left, and both
    # "the world" and "world" (ع ا ل م) become two tokens of one letter.
    ("ar", "المال", ["م"], 1, 1),
    ("ar", "العالم", ["عالم"], 1, 1),
    ("ar", "العالم", ["ع"], 0, 2 / 3),
    ("hi", "दिल्ली।", ["दिल्ली"], 1, 1),  # the danda is punctuation, vowel signs and virama are not
    ("hi", "एक किताब", ["किताब"], 0, 2 / 3),  # no articles
    ("zh", "1990年", ["1990年代"], 0, 0.8),  # 1990 年, 1990 年 代: 2 * 2 / (2 + 3)
    ("zh", "《红楼梦》", ["红楼梦"], 1, 1),
    ("zh", "NBA 总冠军", ["nba总冠军。"], 1, 1),  # a run between Chinese characters is a token, spaces are none
    ("zh", "乔治·华盛顿", ["华盛顿"], 0, 0.75),  # 2 * 3 / (5 + 3)
    ("zh", "人人", ["人"], 0, 2 / 3),  # a character counts as often as in both
    ("zh", "", ["红楼梦"], 0, 0),
    ("zh", "。", [], 1, 1),
]

OTHER_LANGUAGES = [
    ("th", "กรุงเทพ มหานคร", ["กรุงเทพ"], 0, 2 / 3),
    ("th", "เมืองกรุงเทพ", ["กรุงเทพ"], 0, 0),  # two words, but no space: one token
    ("ru", "«Мир»", ["Мир"], 0, 0),  # not ASCII
    ("tr", "a kedi", ["kedi"], 1, 1),  # a is an English article
    ("el", "στην Αθήνα,", ["ΑΘΉΝΑ"], 0, 2 / 3),
    ("ro", "un leu", ["leu"], 0, 2 / 3),
]


def check(prediction, answers, match, overlap, **rules):
    assert exact_match(prediction, answers, **rules) == match
    assert f1(prediction, answers, **rules) == pytest.approx(overlap, abs=1e-12)


@pytest.mark.parametrize(("prediction", "answers", "match", "overlap"), [*SQUAD_CASES, *EMPTY_CASES])
def test_squad(prediction, answers, match, overlap):
    check(prediction, answers, match, overlap)
    check(prediction, answers, match, overlap, language="en")
    check(prediction, answers, match, overlap, language="zh", rules="squad")


@pytest.mark.parametrize(("language", "prediction", "answers", "match", "overlap"), MLQA_CASES)
def test_mlqa(language, prediction, answers, match, overlap):
    check(prediction, answers, match, overlap, language=language, rules="mlqa")
    if language != "en":
        check(prediction, answers, match, overlap, language=f"{language.upper()}-XX")


@pytest.mark.parametrize(("language", "prediction", "answers", "match", "overlap"), OTHER_LANGUAGES)
def test_languages_that_mlqa_has_no_rules_for(language, prediction, answers, match, overlap):
    check(prediction, answers, match, overlap, language=language)


@pytest.mark.parametrize("language", ["en", "es", "de", "vi", "ar", "hi", "zh"])
@pytest.mark.parametrize(("prediction", "answers", "match", "overlap"), EMPTY_CASES[:3])
def test_empty_answers_in_all_languages(language, prediction, answers, match, overlap):
    check(prediction, answers, match, overlap, language=language, rules="mlqa")


def test_unicode_forms_are_kept_apart():
    composed, decomposed = "h\u00f6he", "ho\u0308he"
    assert exact_match(composed, [decomposed], language="de") == 0


def test_rules_of_the_languages_of_xquad():
    languages = ["ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh"]
    assert [code for code in languages if rules_for(code) == "mlqa"] == ["ar", "de", "es", "hi", "vi", "zh"]
    assert rules_for(None) == rules_for("xx") == "squad"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": "f1"}, r"no such rules\. Got: f1\. Allowed: squad, mlqa"),
        ({"language": "th", "rules": "mlqa"}, r"MLQA has no rules for this language\. Got: th"),
    ],
)
def test_rules_that_do_not_exist(settings, message):
    for score in (exact_match, f1):
        with pytest.raises(ConfigurationError, match=message):
            score("a", ["b"], **settings)


def test_a_text_is_not_a_list_of_answers():
    with pytest.raises(DataError, match="not a list"):
        f1("Paris", "Paris")


def values(scores):
    return {name: float(formula.of_sums(scores.columns.sum(axis=0))) for name, formula in scores.formulas.items()}


def test_scores_are_means():
    cases = [case for case in MLQA_CASES if case[0] == "zh"]
    ids = [str(number) for number in range(len(cases))]
    scores = answer_scores(ids, [case[2] for case in cases], [case[1] for case in cases], language="zh")
    assert values(scores) == {
        "exact_match": pytest.approx(3 / 7),
        "f1": pytest.approx((0.8 + 1 + 1 + 0.75 + 2 / 3 + 0 + 1) / 7),
    }


def test_only_the_same_task_has_the_same_examples():
    def examples(ids=("1", "2"), answers=(["a b"], []), predictions=("", "c"), **settings):
        return answer_scores(ids, answers, predictions, **{"language": "en", **settings}).examples

    assert examples() == examples(predictions=["b", "d"]) == examples(rules="squad")
    assert len({examples(), examples(ids=["1", "3"]), examples(answers=[["a b"], ["c"]]), examples(rules="mlqa")}) == 4


@pytest.mark.parametrize(
    ("ids", "answers", "message"),
    [
        ([], [], "do not fit.*Got: 0, 0, 0"),
        (["1"], [["a"], ["b"]], "do not fit.*Got: 1, 2, 1"),
        (["1", "1"], [["a"], ["b"]], "same id.*such as 1"),
    ],
)
def test_bad_sets(ids, answers, message):
    with pytest.raises(DataError, match=message):
        answer_scores(ids, answers, ["a"] * len(ids), language="en")


TEXTS = st.text(st.sampled_from("ab the,ü“年代ال का"), max_size=12)


@given(TEXTS, st.lists(TEXTS, max_size=3), st.sampled_from(["en", "de", "es", "vi", "ar", "hi", "zh", "th"]))
def test_bounds(prediction, answers, language):
    match, overlap = (score(prediction, answers, language=language) for score in (exact_match, f1))
    assert match in (0, 1)
    assert match <= overlap <= 1
    right = [*answers, prediction] if normalize(prediction, language) else []
    assert exact_match(prediction, right, language=language) == 1
    if len(answers) == 1:
        assert overlap == pytest.approx(f1(answers[0], [prediction], language=language))
