from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hf_early_ood.bundled import BundledData, intents, load_bundled, load_intents
from hf_early_ood.bundled.intent_grammar import DrawnText, IntentGrammar
from hf_early_ood.duplicates import near_duplicates, normalize_text
from hf_early_ood.errors import DataError

CARD = Path(intents.__file__).with_name("home_assistant_intents.md").read_text(encoding="utf-8")
ENGLISH = (intents.TRAIN_SPLIT, intents.VALIDATION_SPLIT, intents.TEST_SPLIT)


@pytest.fixture(scope="module")
def data() -> BundledData:
    return load_bundled("home-assistant-intents")


def test_splits_and_columns(data: BundledData) -> None:
    assert tuple(data) == (*ENGLISH, "ar", "de", "es", "fr", "nl", "pl", "pt-BR", "ro", "ru", "zh-CN")
    for dataset in data.values():
        assert dataset.column_names == ["id", "text", "template", "domain", "label"]
        assert dataset.features["label"].names == list(intents.INTENTS)
    ids = [row for dataset in data.values() for row in dataset["id"][:]]
    assert len(set(ids)) == len(ids)


def test_another_process_draws_the_same_texts() -> None:
    """With other hash seeds, and with other random numbers used up before."""
    code = (
        "import random; random.seed(7); random.random()\n"
        "from hf_early_ood.bundled import intents\n"
        "rows, _ = intents._all_rows(intents.package_folder())\n"
        "print(intents.content_hash(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == intents.CONTENT_SHA256


def test_every_intent_is_in_every_split(data: BundledData) -> None:
    for split, dataset in data.items():
        counts = Counter(dataset.features["label"].int2str(dataset["label"][:]))
        assert dict(counts) == data.info.label_counts[split]
        assert set(counts) == set(intents.INTENTS)
        if split not in ENGLISH:
            assert set(counts.values()) == {intents.TEST_CAP}
    caps = (intents.TRAIN_CAP, intents.VALIDATION_CAP, intents.TEST_CAP)
    for split, cap in zip(ENGLISH, caps, strict=True):
        assert max(data.info.label_counts[split].values()) == cap


def test_no_template_is_in_two_english_splits(data: BundledData) -> None:
    templates = [set(data[split]["template"][:]) for split in ENGLISH]
    assert not any(first & second for first, second in itertools.combinations(templates, 2))


def test_nothing_leaks(data: BundledData) -> None:
    for split, kept in itertools.combinations((intents.TRAIN_SPLIT, intents.VALIDATION_SPLIT, intents.TEST_SPLIT), 2):
        assert near_duplicates(data[split]["text"][:], data[kept]["text"][:]) == [], (split, kept)
    train = data[intents.TRAIN_SPLIT]["text"][:]
    for language in intents.LANGUAGES:
        assert near_duplicates(train, data[language]["text"][:]) == [], language


def test_texts_are_distinct_up_to_numbers_and_have_one_intent(data: BundledData) -> None:
    for split, dataset in data.items():
        keys = ["".join("0" if c.isdecimal() else c for c in normalize_text(text)) for text in dataset["text"][:]]
        assert len(set(keys)) == len(keys), split
    english = {}
    for split in ENGLISH:
        for text, label in zip(data[split]["text"][:], data[split]["label"][:], strict=True):
            assert english.setdefault(normalize_text(text), label) == label


def test_texts_are_clean(data: BundledData) -> None:
    for split, dataset in data.items():
        for text in dataset["text"][:]:
            assert text
            assert text == " ".join(text.split())
            assert not set("{}<>[]()|;_") & set(text), (split, text)
    chinese = "".join(data["zh-CN"]["text"][:])
    assert " " not in chinese


def test_known_texts(data: BundledData) -> None:
    assert "pause the timer" in {text for split in ENGLISH for text in data[split]["text"][:]}
    domains = {split: set(dataset["domain"][:]) for split, dataset in data.items()}
    assert all({"", "light", "fan", "cover"} <= found for found in domains.values())


def test_data_card_has_the_same_counts(data: BundledData) -> None:
    info = data.info
    assert isinstance(info, intents.IntentsInfo)
    assert info.license == "Apache-2.0"
    for per_split in (info.label_counts, info.templates):
        for split, counts in per_split.items():
            cells = [*counts.values(), sum(counts.values())]
            assert f"| {split} | {' | '.join(map(str, cells))} |" in CARD
    removed = info.near_duplicates_removed
    assert f"{removed['en/id_validation']} texts from id_validation" in CARD
    assert f"{removed['en/train']} from train" in CARD
    assert {name: count for name, count in info.ambiguous_removed.items() if count} == {
        "en": 2,
        "ro": 1,
        "ru": 3,
        "zh-CN": 26,
    }
    assert "2 in English, 1 in ro, 3 in ru, 26 in zh-CN, 0 elsewhere" in CARD


@pytest.mark.parametrize("package", list(intents.VERSIONS))
@pytest.mark.parametrize("version", ["2026.1.1", None])
def test_other_packages_are_refused(package: str, version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def fake(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    wanted = rf"Got: .*{package} {version or 'not installed'}.*pip install \"hf-early-ood\[intents\]\""
    with pytest.raises(DataError, match=wanted):
        load_intents()


def test_a_package_whose_files_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs two packages"):
        load_intents()


def test_importing_the_package_does_not_need_the_extra() -> None:
    code = "import sys; import hf_early_ood.bundled; print('hassil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_other_texts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a change of hassil or of Python's random numbers would do."""
    rows, info = intents._all_rows(intents.package_folder())
    changed = rows | {"de": [rows["de"][0]._replace(text="anders"), *rows["de"][1:]]}
    monkeypatch.setattr(intents, "_all_rows", lambda folder: (changed, info))
    with pytest.raises(
        DataError, match=r"not the recorded ones.*pip install --force-reinstall home-assistant-intents=="
    ):
        load_intents()


def test_changing_a_loaded_set_does_not_change_the_next_one(data: BundledData) -> None:
    load_intents()["de"].set_format("numpy", columns=["label"])
    assert load_intents()["de"].format["type"] is None


def row(text: str, intent: str = "A", template: str = "t") -> DrawnText:
    return DrawnText(text, intent, "", template)


def test_texts_of_two_intents_are_left_out() -> None:
    drawn = [row("stop"), row("Stop!", "B"), row("go 5"), row("go 10"), row("wait", "B"), row("wait", "B", "u")]
    assert intents.distinct_texts(drawn) == ({"A": [row("go 5")], "B": [row("wait", "B")]}, 1)


def test_texts_are_taken_evenly_from_templates() -> None:
    rows = [row(f"a{n}", template="many") for n in range(9)] + [row("b", template="one"), row("c", template="two")]
    assert {text.template for text in intents.take_evenly(rows, 3)} == {"many", "one", "two"}
    assert [text.text for text in intents.take_evenly(rows, 99) if text.template == "many"] == [
        f"a{n}" for n in range(9)
    ]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert {text.template for text in intents.take_evenly(shuffled, 3)} == {"many", "one", "two"}


def grammar(templates: list[str], language: str = "en", **content: object) -> IntentGrammar:
    full = {"intents": {"A": {"data": [{"sentences": templates}]}}, "lists": {}, "expansion_rules": {}}
    return IntentGrammar(language, full | content)


def texts(templates: list[str], **content: object) -> set[str]:
    return {drawn.text for drawn in grammar(templates, **content).draw("A", 60)}


def test_grammar_alternatives_options_and_permutations() -> None:
    assert texts(["(on|off) [now]"]) == {"on", "off", "on now", "off now"}
    assert texts(["(the lights;up)"]) == {"the lights up", "up the lights"}


def test_grammar_rules_and_lists() -> None:
    lists = {"color": {"values": ["red", {"in": "(light|pale) blue", "out": "blue"}]}}
    rules = {"set": "(set|make) <it>", "it": "it"}
    expected = {f"{verb} it {color}" for verb in ("set", "make") for color in ("red", "light blue", "pale blue")}
    assert texts(["<set> {color:shade}"], lists=lists, expansion_rules=rules) == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"from": 1, "to": 20}, {"5", "10", "15", "20"}),
        ({"from": 0, "to": 100, "step": 20}, {"20", "40"}),
        ({"from": 1000, "to": 3000, "step": 100}, {"2000"}),
    ],
)
def test_grammar_numbers_come_from_a_short_list(bounds: dict[str, int], expected: set[str]) -> None:
    assert texts(["{n}"], lists={"n": {"range": bounds}}) == expected


@pytest.mark.parametrize("template", ["go to {area}", "go [to {area}]", "<there>", "{place}", "<unknown>", "{wild}"])
def test_grammar_leaves_out_what_is_not_there(template: str) -> None:
    lists = {"place": {"values": ["here", "in {area}"]}, "wild": {"wildcard": True}}
    assert texts([template], lists=lists, expansion_rules={"there": "to {area}"}) == set()


def test_grammar_drops_white_space_where_it_means_nothing() -> None:
    assert texts(["\u6253\u5f00 TV set \u706f 50 %"], settings={"ignore_whitespace": True}) == {
        "\u6253\u5f00TV set\u706f50%"
    }
    assert texts(["\u6253\u5f00 \u706f"]) == {"\u6253\u5f00 \u706f"}


def test_draws_do_not_depend_on_other_templates() -> None:
    one = grammar(["(a|b|c) (d|e|f) (g|h|i)"]).draw("A", 5)
    two = grammar(["x", "(a|b|c) (d|e|f) (g|h|i)"]).draw("A", 5)
    assert two[1:] == one
    assert grammar(["(a|b|c) (d|e|f) (g|h|i)"], language="de").draw("A", 5) != one


@pytest.mark.slow
def test_intents_and_languages_follow_the_rule_of_the_data_card() -> None:
    """All but the last step, the number of speakers."""
    folder = intents.package_folder()

    def distinct(language: str, names: list[str]) -> dict[str, list[DrawnText]]:
        content = json.loads((folder / "data" / f"{language}.json").read_text(encoding="utf-8"))
        drawn = IntentGrammar(language, content)
        return intents.distinct_texts(text for name in names for text in drawn.draw(name, intents.DRAWS))[0]

    languages = sorted(file.stem for file in (folder / "data").glob("*.json"))
    names = list(json.loads((folder / "data" / "en.json").read_text(encoding="utf-8"))["intents"])
    candidates = [
        name
        for name, rows in distinct("en", names).items()
        if len({text.template for text in rows}) >= 5 and len(rows) >= intents.TEST_CAP
    ]
    assert len(candidates) == 13
    covered = {}
    for language in languages:
        if language != "en":
            rows = distinct(language, candidates)
            covered[language] = {name for name in candidates if len(rows.get(name, [])) >= intents.TEST_CAP}
    reach = {
        chosen: [language for language in covered if set(chosen) <= covered[language]]
        for size in range(11, 14)
        for chosen in itertools.combinations(candidates, size)
    }
    best = max(reach, key=lambda chosen: len(reach[chosen]))
    assert sorted(best) == sorted(intents.INTENTS)
    assert set(intents.LANGUAGES) <= set(reach[best])
    assert f"{len(reach[best])} of {len(covered)} languages" in CARD
