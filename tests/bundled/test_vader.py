from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from hf_early_ood.bundled import BundledData, load_bundled, load_vader, read_domain, vader
from hf_early_ood.duplicates import near_duplicates, normalize_text
from hf_early_ood.errors import ConfigurationError, DataError

FOLDER = Path(vader.__file__).parent / "vader_icwsm2014"
LABEL_COUNTS = {
    "tweets/train": {"negative": 508, "positive": 1196},
    "tweets/id_validation": {"negative": 72, "positive": 170},
    "tweets/id_test": {"negative": 175, "positive": 371},
    "movie": {"negative": 4574, "positive": 4597},
    "amazon": {"negative": 937, "positive": 1502},
    "nyt": {"negative": 982, "positive": 553},
}


@pytest.fixture(scope="module")
def data() -> BundledData:
    return load_vader()


@pytest.mark.parametrize("domain", vader.DOMAINS)
def test_content_is_the_recorded_one(domain: str) -> None:
    assert vader.content_hash(read_domain(domain)) == vader.CONTENT_SHA256[domain]


def test_rows_are_clean() -> None:
    for domain in vader.DOMAINS:
        rows = read_domain(domain)
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert row.text
            assert row.text == row.text.strip()
            assert not re.search(r"&(amp|lt|gt|quot|#\d+);|[\ufffd\r\n\t\x80-\x9f]|Ã", row.text), row
            assert -4 <= row.rating <= 4


def test_known_texts() -> None:
    tweets = {row.id: row for row in read_domain("tweets")}
    assert tweets["4"] == vader.Row("4", "LMAO, AMAZING!", 2.857142857)
    assert tweets["3"].text.startswith("We were 17 deep last night & the love was so strong")
    assert sum("<3" in row.text for row in tweets.values()) > 0


def test_counts(data: BundledData) -> None:
    info = data.info
    assert info.rows == {"tweets": 4200, "movie": 10605, "amazon": 3708, "nyt": 5190}
    assert info.polar == {"tweets": 2667, "movie": 9173, "amazon": 2455, "nyt": 1554}
    assert info.duplicates_removed == {"tweets": 159, "movie": 2, "amazon": 16, "nyt": 19}
    assert info.near_duplicates_removed == {
        "tweets/id_validation": {"tweets/id_test": 0},
        "tweets/train": {"tweets/id_validation": 1, "tweets/id_test": 11, "movie": 0, "amazon": 3, "nyt": 1},
    }
    assert info.label_counts == LABEL_COUNTS
    assert {split: len(dataset) for split, dataset in data.items()} == {
        split: sum(counts.values()) for split, counts in LABEL_COUNTS.items()
    }


def test_data_card_has_the_same_counts() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split, counts in LABEL_COUNTS.items():
        assert f"| {split} | {counts['negative']:,} | {counts['positive']:,} | {sum(counts.values()):,} |" in card
    for domain, rows in load_bundled("vader-icwsm2014").info.rows.items():
        assert f"| {domain} | {rows:,} |" in card


def test_license_and_citation_are_beside_the_data(data: BundledData) -> None:
    assert "Copyright (c) 2016 C.J. Hutto" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "Hutto, C.J. & Gilbert, E.E. (2014)" in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "Hutto" in data.info.citation


def test_package_data_stays_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000


def test_labels_follow_ratings(data: BundledData) -> None:
    for dataset in data.values():
        assert dataset.column_names == ["id", "text", "rating", "label"]
        assert dataset.features["label"].names == ["negative", "positive"]
        for rating, label in zip(dataset["rating"][:], dataset["label"][:], strict=True):
            assert abs(rating) >= 1
            assert label == int(rating > 0)


def test_nothing_leaks_into_training(data: BundledData) -> None:
    train = data["tweets/train"]["text"][:]
    for split in data:
        if split != "tweets/train":
            assert near_duplicates(train, data[split]["text"][:]) == [], split
    assert near_duplicates(data["tweets/id_validation"]["text"][:], data["tweets/id_test"]["text"][:]) == []


def test_no_text_is_twice_in_a_split(data: BundledData) -> None:
    for dataset in data.values():
        normalized = [normalize_text(text) for text in dataset["text"][:]]
        assert len(set(normalized)) == len(normalized)


def test_tweets_are_about_70_10_20(data: BundledData) -> None:
    sizes = [len(data[split]) for split in ("tweets/train", "tweets/id_validation", "tweets/id_test")]
    assert [round(size / sum(sizes), 1) for size in sizes] == [0.7, 0.1, 0.2]
    ids = [set(data[f"tweets/{name}"]["id"][:]) for name in ("train", "id_validation", "id_test")]
    assert not any(first & second for first, second in itertools.combinations(ids, 2))


def test_another_threshold_keeps_tweets_in_their_split(data: BundledData) -> None:
    clearer = load_vader(threshold=2.0)
    assert clearer.info.polar["movie"] < data.info.polar["movie"]
    texts = {normalize_text(text) for text in data["tweets/id_test"]["text"][:]}
    assert {normalize_text(text) for text in clearer["tweets/id_test"]["text"][:]} <= texts


def test_changing_a_loaded_set_does_not_change_the_next_one(data: BundledData) -> None:
    load_bundled("vader-icwsm2014")["movie"].set_format("numpy", columns=["label"])
    assert load_bundled("vader-icwsm2014")["movie"].format["type"] is None


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"no such split.*Did you mean 'tweets/train'"):
        load_bundled("vader-icwsm2014")["tweets/trian"]
    with pytest.raises(DataError, match=r"no such domain.*Did you mean 'movie'"):
        read_domain("movies")


@pytest.mark.parametrize("threshold", [0, -1, 4, float("nan")])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ConfigurationError, match="polarity threshold is out of range"):
        load_vader(threshold=threshold)
