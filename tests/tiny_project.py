"""A project on disk: a tiny random model with its tokenizer, and JSONL files of an ID and two OOD sets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import families

WORDS = {
    "good": ["great", "fine", "lovely"],
    "bad": ["awful", "poor", "broken"],
    "filler": ["the", "film", "phone", "paper", "was", "is", "very", "quite", "today", "again", "and", "so"],
}


def sentences(size: int, seed: int) -> list[dict[str, str]]:
    """Texts whose label is told by one word of them; no two are the same."""
    rng, rows, seen = random.Random(seed), [], set()
    while len(rows) < size:
        label = rng.choice(["good", "bad"])
        words = rng.sample(WORDS["filler"], 6)
        words.insert(rng.randrange(6), rng.choice(WORDS[label]))
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"text": text, "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def save_model(folder: Path) -> None:
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *(w for words in WORDS.values() for w in words)])}
    vocabulary["<mask>"] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **special)
    fast.model_max_length = 40
    fast.save_pretrained(folder)
    families.build("bert", task="encoder").save_pretrained(folder)


def run_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Keys of a run on the files of :func:`make_project`; ``intervention__method="standard"`` sets a nested key."""
    settings: dict[str, Any] = {
        "name": "gradual",
        "output_dir": str(folder / "out"),
        "model": {"name": str(folder / "model")},
        "data": {
            "train": {"source": str(folder / "train.jsonl")},
            "id_validation": {"source": str(folder / "validation.jsonl")},
            "id_test": {"source": str(folder / "test.jsonl")},
            "ood": {"a": {"source": str(folder / "a.jsonl")}, "b": {"source": str(folder / "b.jsonl")}},
            "max_length": 16,
        },
        "training": {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True},
        "intervention": {
            "method": "gradual_unfreezing",
            "interval": "auto",
            "detector": {"window": 1, "tolerance": 0.5},
            "probe": {"size": 8, "batch_size": 4, "every": 1},
        },
        "evaluation": {"bootstrap_samples": 100},
    }
    for key, value in changes.items():
        node = settings
        *sections, last = key.split("__")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return settings


def study_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two arms over the same files."""
    settings = run_settings(folder, name="tiny", **changes)
    intervention = settings.pop("intervention")
    settings["study"] = {
        "baseline": "standard",
        "seeds": [1, 2],
        "arms": {"standard": {"intervention": {"method": "standard"}}, "gradual": {"intervention": intervention}},
    }
    return settings


def make_project(folder: Path) -> Path:
    """Write model and data into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "model")
    for seed, (name, size) in enumerate({"train": 64, "validation": 16, "test": 24, "a": 20, "b": 20}.items()):
        write_rows(folder / f"{name}.jsonl", sentences(size, seed))
    return folder


def write_yaml(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
