"""Tokenizers as BERT, XLM-R and GPT-2 have them, with their special tokens, for windows over contexts."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_early_ood.tasks.loading import load_tokenizer
from tests.tasks.tiny import rows

QUESTIONS = rows("question_answering")
_TEXTS = [row[role] for row in QUESTIONS for role in ("question", "context")]


def word_pieces():
    """BERT's: lower case, two kinds of tokens, every Chinese character alone."""
    return load_tokenizer("bundled:all-MiniLM-L6-v2")


@cache
def _pieces() -> str:
    """XLM-R's: spaces belong to the next token, and a text begins with one."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str()


def sentence_pieces():
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_pieces()),
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
    )


@cache
def _bytes() -> str:
    """GPT-2's: several tokens can share a character, and nothing marks where a text begins."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer.to_str()


def byte_pairs():
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bytes()),
        eos_token="<end>",
        pad_token="<end>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=512,
    )


KINDS = {"word pieces": word_pieces, "sentence pieces": sentence_pieces, "byte pairs": byte_pairs}
