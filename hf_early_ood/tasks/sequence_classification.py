"""Classification of texts and of pairs of texts: tokens, batches, predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.evaluation.predictions import Predictions
from hf_early_ood.names import BALANCED_ACCURACY, GROUP, LABEL, LABELS, SEQUENCE_CLASSIFICATION, TEXT, TEXT_PAIR
from hf_early_ood.tasks.base import Task
from hf_early_ood.tasks.encoding import (
    Encoded,
    check_columns,
    check_label_names,
    check_max_length,
    check_padding,
    chunks,
    encode_texts,
    groups_of,
    warn_about_cuts,
)
from hf_early_ood.tasks.forward import logits_of, probabilities_of
from hf_early_ood.tasks.loading import class_names
from hf_early_ood.tasks.losses import is_single_label


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(Task):
    """One label of a text, or of a pair of texts such as premise and hypothesis.

    Longer inputs than ``max_length`` are cut (of a pair, the longer text), and counted in a warning.

    Example:
        >>> task = SequenceClassification(max_length=16)
        >>> model, tokenizer = task.load("bundled:all-MiniLM-L6-v2", ["negative", "positive"])
        >>> dataset = Dataset.from_dict({"text": ["good", "so bad"], "label": [1, 0]})
        >>> task.predict(model, tokenizer, dataset).columns["probabilities"].shape
        (2, 2)
    """

    name: ClassVar[str] = SEQUENCE_CLASSIFICATION
    metric: ClassVar[str] = BALANCED_ACCURACY
    roles: ClassVar[Mapping[str, bool]] = {TEXT: True, TEXT_PAIR: False, LABEL: True, GROUP: False}
    auto_class = AutoModelForSequenceClassification

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Token ids and ``labels`` of every example; see :func:`tokenize`."""
        return tokenize(dataset, tokenizer, self.max_length)

    def check(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
        """Encode all examples, and count those that are cut."""
        return sum(sum(is_cut) for _, is_cut in _encoded(dataset, tokenizer, self.max_length))

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
        """Pads every batch to its longest sequence; see :func:`data_collator`."""
        return data_collator(tokenizer)

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        *,
        batch_size: int = 64,
        language: str | None = None,
    ) -> Predictions:
        """Label, predicted label and the probability of each label.

        Raises:
            UnsupportedModelError: If the model does not choose one of several labels.
            DataError: If the labels of the data are not those of the model.
        """
        if not is_single_label(model.config):
            raise UnsupportedModelError(
                "The model does not choose one of several labels.",
                got=f"num_labels={model.config.num_labels}, problem_type={getattr(model.config, 'problem_type', None)}",
            )
        encoded = self.encode(dataset, tokenizer)
        check_label_names(dataset.features[LABEL], model.config)
        logits = logits_of(model, self.collator(tokenizer), encoded, batch_size=batch_size)
        columns = {
            LABEL: dataset[LABEL][:],
            "prediction": logits.argmax(-1),
            "probabilities": probabilities_of(logits),
        }
        return Predictions(self.name, columns, tuple(class_names(model.config)), language, groups_of(dataset))


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
        >>> from hf_early_ood.tasks.loading import load_tokenizer
        >>> tokenizer = load_tokenizer("bundled:all-MiniLM-L6-v2")
        >>> tokenize(Dataset.from_dict({"text": ["good"], "label": [1]}), tokenizer, max_length=16)["input_ids"][0]
        [101, 2204, 102]
    """
    parts, num_cut = [], 0
    for columns, is_cut in _encoded(dataset, tokenizer, max_length):
        parts.append(Dataset.from_dict(columns))
        num_cut += sum(is_cut)
    warn_about_cuts(num_cut, len(dataset), max_length)
    return concatenate_datasets(parts).add_column(LABELS, dataset[LABEL][:], feature=dataset.features[LABEL])


def _encoded(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Encoded]:
    """See :func:`encode_texts`, some examples at a time."""
    check_columns(dataset, (TEXT, LABEL), (TEXT, TEXT_PAIR, LABEL))
    check_max_length(tokenizer, max_length, pair=TEXT_PAIR in dataset.column_names)
    for _, batch in chunks(dataset):
        yield encode_texts(tokenizer, batch[TEXT], batch.get(TEXT_PAIR), max_length)


def data_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Collator that pads every batch to its longest sequence.

    Args:
        tokenizer: Tokenizer of the model; it must have a padding token (``load_tokenizer`` sees to it).

    Returns:
        Collator: list of examples -> dictionary of tensors (B, T) and labels (B,).

    Raises:
        UnsupportedModelError: If the tokenizer has no padding token.

    Example:
        >>> from hf_early_ood.tasks.loading import load_tokenizer
        >>> collator = data_collator(load_tokenizer("bundled:all-MiniLM-L6-v2"))
        >>> batch = collator([{"input_ids": [1], "labels": 0}, {"input_ids": [1, 2], "labels": 1}])
        >>> batch["input_ids"].shape, batch["labels"]
        (torch.Size([2, 2]), tensor([0, 1]))
    """
    check_padding(tokenizer)
    return DataCollatorWithPadding(tokenizer)
