"""The tiny data set of each task, and tokenizers of three kinds that know its words in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, List, Value
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_early_ood.names import MULTIPLE_CHOICE, SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from hf_early_ood.tasks import TASKS, Task
from tests import families

DATA = Path(__file__).parent / "data"
LABELS = ["entailment", "neutral", "contradiction"]
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
KINDS = ("wordpiece", "bytes", "sentencepiece")
NAMES = (SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION, MULTIPLE_CHOICE)


def rows(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]


def dataset(task: str, size: int | None = None) -> Dataset:
    """As ``load_split`` would give it."""
    found = Dataset.from_list(rows(task)[:size])
    if task == SEQUENCE_CLASSIFICATION:
        return found.cast_column("label", ClassLabel(names=LABELS))
    if task == TOKEN_CLASSIFICATION:
        return tagged([row["tokens"] for row in rows(task)[:size]], [row["tags"] for row in rows(task)[:size]])
    return found


def tagged(tokens: list[list[str]], tags: list[list[str]]) -> Dataset:
    """Texts with tags by name; "" for none."""
    ids = [[-100 if tag == "" else TAGS.index(tag) for tag in line] for line in tags]
    found = Dataset.from_dict({"tokens": tokens, "tags": ids})
    return found.cast_column("tokens", List(Value("string"))).cast_column("tags", List(ClassLabel(names=TAGS)))


def tokenizer(kind: str = "wordpiece") -> PreTrainedTokenizerFast:
    """Of single letters and a few longer pieces, so that most words are several; wordpiece drops a zero-width space."""
    # Not trained: the tokenizers of two processes would differ.
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.jsonl")))
    if kind == "wordpiece":
        normalizer = normalizers.BertNormalizer()
        letters = sorted(set(normalizer.normalize_str(text)) - {" "})
        pieces = [
            *letters,
            *(f"##{letter}" for letter in letters),
            *["the", "##ing", "ada", "londo", "##schaft", "дети"],
        ]
        raw = Tokenizer(models.WordPiece(_numbered(pieces), unk_token="<unk>"))
        raw.normalizer, raw.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    elif kind == "bytes":
        merges = [("i", "n"), ("Ġ", "a"), ("Ġ", "in"), ("Ð", "°")]
        pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
        raw = Tokenizer(models.BPE(_numbered(pieces), merges))
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        merges = [("▁", "i"), ("▁i", "n"), ("▁", "在"), ("e", "r")]
        pieces = [*sorted({*text, "▁"} - {" "}), *map("".join, merges)]
        raw = Tokenizer(models.BPE(_numbered(pieces), merges, unk_token="<unk>"))
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=128,
    )


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}


def model(task: str, **overrides: Any) -> PreTrainedModel:
    """A model of a task that takes what the tokenizers give."""
    names = {SEQUENCE_CLASSIFICATION: LABELS, TOKEN_CLASSIFICATION: TAGS}.get(task)
    if names is not None:
        overrides |= {"id2label": dict(enumerate(names)), "num_labels": len(names)}
    return families.build("bert", task=task, vocab_size=600, max_position_embeddings=128, **overrides)


def task_of(name: str, max_length: int = 32) -> Task:
    return TASKS[name](max_length=max_length)
