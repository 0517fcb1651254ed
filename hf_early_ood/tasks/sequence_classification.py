"""Classification of texts and of pairs of texts: tokens, batches, loss, model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging

from hf_early_ood.bundled import BUNDLED_MODEL, resolve_model
from hf_early_ood.errors import ConfigurationError, DataError, UnsupportedModelError
from hf_early_ood.names import LABEL, LABELS, TEXT, TEXT_PAIR

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
_CHUNK = 1000  # examples tokenized at a time

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Turn texts (and pairs, if there is a column ``text_pair``) into token ids, not padded.

    Args:
        dataset: Columns text, (text_pair,) label, as ``load_split`` returns them; other columns are dropped.
        tokenizer: Tokenizer of the model.
        max_length: Longest sequence T, in tokens with special ones; longer ones are cut (of a pair, the longer text).

    Returns:
        Data set with the inputs of the model and ``labels``.

    Raises:
        DataError: If a column is not there, or there are no examples.
        ConfigurationError: If ``max_length`` is more than the tokenizer says its model takes, or leaves no text.

    Example:
        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained(resolve_model("bundled:all-MiniLM-L6-v2"))
        >>> tokenize(Dataset.from_dict({"text": ["good"], "label": [1]}), tokenizer, max_length=16)["input_ids"][0]
        [101, 2204, 102]
    """
    missing = [column for column in (TEXT, LABEL) if column not in dataset.column_names]
    if missing:
        raise DataError(
            "A column is not there.",
            got=", ".join(dataset.column_names),
            allowed="text, text_pair, label",
            fix=f"Add {', '.join(missing)}; load_split does.",
        )
    if len(dataset) == 0:
        raise DataError("There are no examples to tokenize.", fix="Leave the split out.")
    check_max_length(tokenizer, max_length, pair=TEXT_PAIR in dataset.column_names)
    # Not `Dataset.map`, whose progress bars are not quiet outside of a terminal.
    starts = tqdm(range(0, len(dataset), _CHUNK), desc="Tokenizing", disable=None, leave=False)
    chunks = [_encode(dataset[start : start + _CHUNK], tokenizer, max_length) for start in starts]
    return concatenate_datasets(chunks).add_column(LABELS, dataset[LABEL][:], feature=dataset.features[LABEL])


def check_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pair: bool = False) -> None:
    """Refuse a length that leaves no text, or that is more than the tokenizer says its model takes.

    Raises:
        ConfigurationError: With the range that is allowed.
    """
    shortest = tokenizer.num_special_tokens_to_add(pair=pair) + 1
    if not shortest <= max_length <= tokenizer.model_max_length:
        raise ConfigurationError(
            "max_length does not fit the tokenizer.",
            got=max_length,
            allowed=f"{shortest} to {tokenizer.model_max_length}",
            fix="Set max_length within this range.",
        )


def _encode(batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    encoded = tokenizer(batch[TEXT], batch.get(TEXT_PAIR), truncation=True, max_length=max_length)
    return Dataset.from_dict(dict(encoded))


def data_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Collator that pads every batch to its longest sequence.

    Args:
        tokenizer: Tokenizer of the model; it must have a padding token (``load_classifier`` sees to it).

    Returns:
        Collator: list of examples -> dictionary of tensors (B, T) and labels (B,).

    Raises:
        UnsupportedModelError: If the tokenizer has no padding token.

    Example:
        >>> from transformers import AutoTokenizer
        >>> tokenizer = AutoTokenizer.from_pretrained(resolve_model("bundled:all-MiniLM-L6-v2"))
        >>> batch = data_collator(tokenizer)([{"input_ids": [1], "labels": 0}, {"input_ids": [1, 2], "labels": 1}])
        >>> batch["input_ids"].shape, batch["labels"]
        (torch.Size([2, 2]), tensor([0, 1]))
    """
    if tokenizer.pad_token_id is None:
        raise UnsupportedModelError(
            "The tokenizer has no padding token.", got=type(tokenizer).__name__, fix="Set tokenizer.pad_token."
        )
    return DataCollatorWithPadding(tokenizer)


class SequenceClassificationLoss:
    r"""Loss of sequence classification that is right under gradient accumulation and on several processes.

    Without ``num_items_in_batch`` it has the value of the model's own loss: the mean over the labels of this batch.
    With it, it is the sum over the labels of this batch, divided by the number of labels of the whole update
    (all micro-batches, all processes). These add up to the mean over the update however uneven the parts are; the mean
    of means does not. Pass it to ``Trainer(compute_loss_func=...)``, which counts the labels.

    The kind of loss is chosen as ``transformers`` does: by ``config.problem_type``, and if that is ``None`` by the
    number and type of labels: one output is regression (mean squared error), integer labels are single-label (cross
    entropy), others multi-label (binary cross entropy). Unlike there, ``config`` is not changed by the choice.

    With label smoothing e, the cross entropy of C classes is (1 - e) (-log p_y) - (e / C) \sum_c log p_c, the formula
    of transformers' ``LabelSmoother``.

    Args:
        config: Configuration of the model: ``num_labels`` (C) and ``problem_type``.
        label_smoothing: e in [0, 1); single-label classification only.

    Raises:
        ConfigurationError: If ``problem_type`` or ``label_smoothing`` is not usable.

    Example:
        >>> loss = SequenceClassificationLoss(PretrainedConfig(num_labels=2))
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 1, 0])
        >>> whole = loss({"logits": logits}, labels)
        >>> parts = [loss({"logits": logits[i]}, labels[i], 3) for i in (slice(2), slice(2, 3))]
        >>> torch.allclose(whole, sum(parts))
        True
    """

    def __init__(self, config: PretrainedConfig, *, label_smoothing: float = 0.0) -> None:
        if not config.num_labels:
            raise ConfigurationError("The configuration does not say how many labels there are.", got=config.num_labels)
        self.num_labels: int = config.num_labels
        self.problem_type: str | None = getattr(config, "problem_type", None)
        self.label_smoothing = label_smoothing
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigurationError(
                "Unknown problem type.", got=self.problem_type, allowed=", ".join(PROBLEM_TYPES) + " or nothing"
            )
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError("Label smoothing is out of range.", got=label_smoothing, allowed="0 <= e < 1")
        if label_smoothing and (self.problem_type in (MULTI_LABEL, REGRESSION) or self.num_labels == 1):
            raise ConfigurationError(
                "Label smoothing is only for single-label classification.",
                got=f"problem_type={self.problem_type}, num_labels={self.num_labels}",
                fix="Set label_smoothing=0.",
            )

    def __call__(
        self,
        outputs: Mapping[str, Any] | Sequence[Any],
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss of one (micro-)batch.

        Args:
            outputs: Model output with ``logits`` (B, C), or a tuple with them first (the model was called without
                labels).
            labels: (B,) class ids, -100 for examples to leave out; (B, C) for multi-label; floats for regression.
            num_items_in_batch: Number of labels of the whole update, or ``None`` for the mean over this batch.

        Returns:
            Scalar with gradient. NaN if there is not one label to average over.

        Raises:
            DataError: If there are no labels, or they do not fit the logits.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if labels is None:
            raise DataError("The batch has no labels.", fix='Keep the column "labels" in the training set.')
        labels = labels.to(logits.device)
        problem_type = self._problem_type(labels)
        reduction = "mean" if num_items_in_batch is None else "sum"

        if problem_type == SINGLE_LABEL:
            loss = functional.cross_entropy(
                logits.view(-1, self.num_labels),
                labels.view(-1),
                ignore_index=IGNORED_LABEL,
                label_smoothing=self.label_smoothing,
                reduction=reduction,
            )
        else:
            if self.num_labels == 1:
                logits, labels = logits.view(-1), labels.view(-1)
            if logits.shape != labels.shape:  # mse_loss would broadcast
                raise DataError("Labels do not fit the logits.", got=tuple(labels.shape), allowed=tuple(logits.shape))
            elementwise = (
                functional.mse_loss if problem_type == REGRESSION else functional.binary_cross_entropy_with_logits
            )
            loss = elementwise(logits, labels.to(logits.dtype), reduction=reduction)
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def _problem_type(self, labels: torch.Tensor) -> str:
        if self.problem_type is not None:
            return self.problem_type
        if self.num_labels == 1:
            return REGRESSION
        if labels.dtype in (torch.long, torch.int):
            return SINGLE_LABEL
        if self.label_smoothing:
            raise DataError("Label smoothing needs integer labels.", got=labels.dtype)
        return MULTI_LABEL


def load_classifier(
    model_name: str,
    label_names: Sequence[str],
    *,
    seed: int = 0,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    **model_arguments: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Pretrained encoder or decoder with a classification head, and its tokenizer.

    All global random number generators are seeded first (``transformers.set_seed``): the new head is the same for the
    same seed. A tokenizer without a padding token (decoder-only models) gets its end-of-sequence token as one, and
    the model is told, because it classifies at the last token that is not padding.

    Args:
        model_name: ``bundled:all-MiniLM-L6-v2``, a local folder or a Hub id.
        label_names: Label of each class id, for ``id2label`` and ``label2id``.
        seed: Seed of the new head.
        revision: Revision on the Hub; pin it.
        dtype: Type of the weights. The default is float32 whatever the checkpoint has: half-precision weights do not
            take the small updates of fine-tuning (use bf16=True of the Trainer for speed).
        model_arguments: Passed on to ``from_pretrained`` of the model, e.g. ``attn_implementation="eager"``.

    Returns:
        Model and tokenizer.

    Raises:
        DataError: If labels are fewer than two or repeated.
        UnsupportedModelError: If the model cannot be loaded, if the checkpoint lacks weights below the head, or if the
            tokenizer has neither a padding nor an end-of-sequence token.

    Example:
        >>> model, tokenizer = load_classifier("bundled:all-MiniLM-L6-v2", ["negative", "positive"])
        >>> model.config.id2label
        {0: 'negative', 1: 'positive'}
    """
    if len(label_names) < 2 or len(set(label_names)) != len(label_names):
        raise DataError("Labels are not usable.", got=list(label_names), allowed="two or more different names")
    path = resolve_model(model_name)
    tokenizer = load_tokenizer(model_name, revision=revision)
    set_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its load report lists the new head as a problem; what is one is raised below
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            id2label=dict(enumerate(label_names)),
            label2id={name: index for index, name in enumerate(label_names)},
            output_loading_info=True,
            **model_arguments,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise not_loaded("model", model_name, error) from error
    finally:
        logging.set_verbosity(verbosity)
    _check_new_weights(model, model_name, loaded["missing_keys"])
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def load_tokenizer(model_name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a model; without a padding token (decoder-only models) it pads with its end-of-sequence token.

    Args:
        model_name: As for ``load_classifier``.
        revision: Revision on the Hub.

    Raises:
        UnsupportedModelError: If there is none, or if it has neither a padding nor an end-of-sequence token.

    Example:
        >>> load_tokenizer("bundled:all-MiniLM-L6-v2").pad_token
        '[PAD]'
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(model_name), revision=revision)
    except (OSError, ValueError) as error:
        raise not_loaded("tokenizer", model_name, error) from error
    folder = Path(resolve_model(model_name))
    files = {"tokenizer.json", "tokenizer_config.json", *tokenizer.vocab_files_names.values()}
    if folder.is_dir() and not any((folder / name).is_file() for name in files):
        # transformers makes one of special tokens only, to which every word is unknown.
        raise UnsupportedModelError(
            "The folder holds no tokenizer.",
            got=folder,
            allowed=f"a folder with one of {', '.join(sorted(files))}",
            fix="Save the tokenizer beside the model (the Trainer does if it gets processing_class=tokenizer).",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UnsupportedModelError(
                "The tokenizer has neither a padding nor an end-of-sequence token.",
                got=model_name,
                fix="Save a tokenizer with a padding token beside the model.",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def not_loaded(what: str, model_name: str, error: Exception) -> UnsupportedModelError:
    """The error for what ``from_pretrained`` could not load."""
    if Path(resolve_model(model_name)).is_dir():  # nothing is wrong with the name
        return UnsupportedModelError(
            f"The {what} cannot be loaded: {error}",
            got=model_name,
            allowed="a folder that save_pretrained or the Trainer has written to its end",
            fix="A file in the folder is missing or broken: save it again, or use another checkpoint.",
        )
    return UnsupportedModelError(
        f"The {what} cannot be loaded: {error}",
        got=model_name,
        allowed=f"{BUNDLED_MODEL}, a folder with config.json, or a name on the Hub",
        fix="Check the name; without a network, give a folder.",
    )


def _check_new_weights(model: PreTrainedModel, model_name: str, missing: Iterable[str]) -> None:
    """A new head (and pooler) is what fine-tuning is about; new weights below it mean the wrong checkpoint.

    Raises:
        UnsupportedModelError: If weights below the head are not in the checkpoint.
    """
    body = f"{model.base_model_prefix}."
    lost = sorted(name for name in missing if name.startswith(body) and "pooler" not in name)
    if lost:
        raise UnsupportedModelError(
            "The checkpoint lacks weights below the head: they would start from random numbers.",
            got=f"{len(lost)} missing in {model_name}, such as {lost[0]}",
            fix="Check that the checkpoint and its config.json belong together.",
        )
    logger.info(f"New weights of the head: {', '.join(sorted(missing)) or 'none, the checkpoint has one'}.")


def empty_classifier(model_name: str, *, num_labels: int = 2, revision: str | None = None) -> PreTrainedModel:
    """The architecture of a classifier, without weights (on the meta device): to look at its layers.

    Args:
        model_name: As for ``load_classifier``.
        num_labels: Number of classes C.
        revision: Revision on the Hub.

    Returns:
        Model that cannot be run.

    Raises:
        UnsupportedModelError: If there is no such model.

    Example:
        >>> empty_classifier("bundled:all-MiniLM-L6-v2").classifier.weight.device
        device(type='meta')
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(model_name), revision=revision, num_labels=num_labels)
    except (OSError, ValueError) as error:
        raise not_loaded("config", model_name, error) from error
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def is_single_label(config: PretrainedConfig) -> bool:
    """Whether a classifier chooses one of several labels, as far as its configuration says.

    Example:
        >>> is_single_label(PretrainedConfig(num_labels=3)), is_single_label(PretrainedConfig(num_labels=1))
        (True, False)
    """
    return (config.num_labels or 0) > 1 and getattr(config, "problem_type", None) in (None, SINGLE_LABEL)


def is_sequence_classification(model: nn.Module) -> bool:
    """Whether a model, or the model inside a peft wrapper, classifies sequences.

    Args:
        model: Any model.

    Returns:
        True for the classes behind ``AutoModelForSequenceClassification`` and their subclasses.

    Example:
        >>> is_sequence_classification(empty_classifier("bundled:all-MiniLM-L6-v2"))
        True
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    known = set(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values())
    return any(kind.__name__ in known for kind in type(base).__mro__)
