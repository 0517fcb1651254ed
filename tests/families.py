"""Tiny random models of every architecture family that the package is tested on.

``build("bert")`` makes one, ``inputs("bert", model)`` makes a batch that it takes. Notation: B examples,
T positions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

VOCAB_SIZE = 100
NUM_LABELS = 3
NUM_BLOCKS = 3
PAD, BOS, EOS = 1, 0, 2  # as roberta and bart number them
FIRST_WORD = 5

Builder = Callable[..., PreTrainedModel]

TASKS = {
    "sequence_classification": "ForSequenceClassification",
    "token_classification": "ForTokenClassification",
    "question_answering": "ForQuestionAnswering",
    "multiple_choice": "ForMultipleChoice",
    "masked_lm": "ForMaskedLM",
    "causal_lm": "ForCausalLM",
    "seq2seq_lm": "ForConditionalGeneration",
    "encoder": "Model",
}
_IRREGULAR = {
    ("GPT2", "causal_lm"): "GPT2LMHeadModel",
    ("XLM", "masked_lm"): "XLMWithLMHeadModel",
    ("Flaubert", "masked_lm"): "FlaubertWithLMHeadModel",
}

# Names of a width, a depth, ... differ from one config to the next; these are the usual ones.
_ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
_DECODER: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 1, "head_dim": 8}
_SEQ2SEQ: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": NUM_BLOCKS,
    "decoder_layers": NUM_BLOCKS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "forced_eos_token_id": EOS,
    "decoder_start_token_id": EOS,
}
_T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_heads": 2,
    "num_layers": NUM_BLOCKS,
    "num_decoder_layers": NUM_BLOCKS,
    "decoder_start_token_id": PAD,
}


def _builder(prefix: str, **defaults: Any) -> Builder:
    """Builder of the family whose classes are called ``{prefix}Config``, ``{prefix}Model`` and so on."""

    def make(*, task: str = "sequence_classification", seed: int = 0, **overrides: Any) -> PreTrainedModel:
        settings: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "num_labels": 2 if task == "question_answering" else NUM_LABELS,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            **defaults,
            **overrides,
        }
        config = getattr(transformers, f"{prefix}Config")(**settings)
        model_class = getattr(transformers, _IRREGULAR.get((prefix, task), prefix + TASKS[task]))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config)
        return model.eval()

    return make


FAMILIES: dict[str, Builder] = {
    "albert": _builder("Albert", **_ENCODER, embedding_size=8),
    "bart": _builder("Bart", **_SEQ2SEQ),
    "bert": _builder("Bert", **_ENCODER),
    "bloom": _builder("Bloom", hidden_size=16, n_layer=NUM_BLOCKS, n_head=2),
    "camembert": _builder("Camembert", **_ENCODER),
    "canine": _builder(
        "Canine",
        **{**_ENCODER, "max_position_embeddings": 64},
        downsampling_rate=4,
        num_hash_functions=4,
        num_hash_buckets=32,
        local_transformer_stride=8,
    ),
    "convbert": _builder("ConvBert", **_ENCODER, embedding_size=8, conv_kernel_size=3, head_ratio=2),
    "deberta": _builder(
        "Deberta",
        **_ENCODER,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["c2p", "p2c"],
        max_relative_positions=8,
        pooler_hidden_size=16,
    ),
    "deberta-v2": _builder(
        "DebertaV2",
        **_ENCODER,
        relative_attention=True,
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        conv_kernel_size=3,
        conv_act="gelu",
        pooler_hidden_size=16,
    ),
    "distilbert": _builder(
        "DistilBert", dim=16, n_layers=NUM_BLOCKS, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ),
    "electra": _builder("Electra", **_ENCODER, embedding_size=8),
    "flaubert": _builder("Flaubert", emb_dim=16, n_layers=NUM_BLOCKS, n_heads=2, max_position_embeddings=40),
    "funnel": _builder(
        "Funnel", block_sizes=[1, 1, 1], num_decoder_layers=2, d_model=16, n_head=2, d_head=8, d_inner=32
    ),
    "gemma2": _builder("Gemma2", **_DECODER, query_pre_attn_scalar=8, sliding_window=4),
    "gpt2": _builder("GPT2", n_embd=16, n_layer=NUM_BLOCKS, n_head=2, n_positions=40),
    "gpt_neox": _builder("GPTNeoX", **_ENCODER),
    "ibert": _builder("IBert", **_ENCODER),
    "llama": _builder("Llama", **_DECODER),
    "longformer": _builder("Longformer", **_ENCODER, attention_window=[4] * NUM_BLOCKS),
    "mbart": _builder("MBart", **_SEQ2SEQ),
    "mistral": _builder("Mistral", **_DECODER, sliding_window=4),
    "mobilebert": _builder(
        "MobileBert", **_ENCODER, embedding_size=8, intra_bottleneck_size=8, num_feedforward_networks=2
    ),
    "modernbert": _builder(
        "ModernBert",
        **_ENCODER,
        local_attention=4,
        global_attn_every_n_layers=3,
        cls_token_id=BOS,
        sep_token_id=EOS,
    ),
    "mpnet": _builder("MPNet", **_ENCODER),
    "opt": _builder(
        "OPT",
        hidden_size=16,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=2,
        ffn_dim=32,
        max_position_embeddings=40,
        word_embed_proj_dim=16,
    ),
    "qwen2": _builder("Qwen2", **_DECODER),
    "roberta": _builder("Roberta", **_ENCODER),
    "t5": _builder("T5", **_T5),
    "xlm": _builder("XLM", emb_dim=16, n_layers=NUM_BLOCKS, n_heads=2, max_position_embeddings=40),
    "xlm-roberta": _builder("XLMRoberta", **_ENCODER),
}

# Families that read the state at the EOS token: every row must have one, and as many as the others.
NEEDS_EOS = frozenset({"bart", "mbart", "t5"})
# Families that read the last position that is not padding (the input must have a pad token to find it).
DECODER_ONLY = frozenset({"bloom", "gemma2", "gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2"})
# Shortest sequences that these families take.
MIN_LENGTH = {"canine": 16, "funnel": 8}


def build(family: str, *, task: str = "sequence_classification", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Tiny random model of ``family`` in eval mode, with the dropout that its config sets by default.

    Args:
        family: A key of `FAMILIES`.
        task: A key of `TASKS`.
        seed: Of the weights. The caller's random numbers are left alone.
        overrides: Fields of the config.
    """
    return FAMILIES[family](task=task, seed=seed, **overrides)


def inputs(family: str, model: nn.Module, batch: int = 4, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Batch of random token ids with right padding and labels: what ``model(**inputs)`` takes.

    Row b has ``length - b % 3`` tokens; ``length`` is raised to the shortest that the family takes. The kind
    of labels follows the class of the model; a bare encoder gets none.

    Returns:
        ``input_ids`` (B, T), ``attention_mask`` (B, T) and the labels of the task.
    """
    length = max(length, MIN_LENGTH.get(family, 1))
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (batch, length), generator=generator)
    lengths = length - torch.arange(batch) % min(3, length)
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    input_ids[attention_mask == 0] = PAD
    if family in NEEDS_EOS:
        input_ids[torch.arange(batch), lengths - 1] = EOS
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask}
    num_labels = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    kind = _class_name(model)
    if kind.endswith("ForSequenceClassification"):
        tensors["labels"] = torch.randint(num_labels, (batch,), generator=generator)
    elif kind.endswith("ForTokenClassification"):
        labels = torch.randint(num_labels, (batch, length), generator=generator)
        tensors["labels"] = labels.masked_fill(attention_mask == 0, -100)
    elif kind.endswith("ForQuestionAnswering"):
        for key in ("start_positions", "end_positions"):
            tensors[key] = torch.randint(length - 2, (batch,), generator=generator)
    elif kind.endswith("ForMultipleChoice"):
        tensors = {key: value[:, None].repeat(1, 2, 1) for key, value in tensors.items()}
        tensors["labels"] = torch.randint(2, (batch,), generator=generator)
    elif kind.endswith(("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        tensors["labels"] = input_ids.masked_fill(attention_mask == 0, -100)
    return tensors


def _class_name(model: nn.Module) -> str:
    """Class of the model, under the PEFT wrapper if it has one."""
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return type(unwrapped).__name__
