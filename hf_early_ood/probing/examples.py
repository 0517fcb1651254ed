"""The probe set of saved models: from texts, or from data that is tokenized. B examples, T positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from hf_early_ood.callbacks.recording import LABEL_COLUMNS, taken_columns
from hf_early_ood.config.schema import DataConfig
from hf_early_ood.data import load_split
from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.names import LABEL, LABELS, TEXT, TEXT_PAIR
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.likelihood import (
    ClassificationLikelihood,
    QuestionAnsweringLikelihood,
    RegressionLikelihood,
    TokenLikelihood,
    likelihood_for,
)
from hf_early_ood.probes.measures import check_examples, needs_labels
from hf_early_ood.probes.outcomes import IGNORED
from hf_early_ood.probing.loading import Blueprint
from hf_early_ood.probing.request import ProbeRequest
from hf_early_ood.sources import check_columns, column_names, read_source
from hf_early_ood.tasks.encoding import check_max_length
from hf_early_ood.tasks.loading import class_names, load_tokenizer
from hf_early_ood.tasks.losses import is_single_label
from hf_early_ood.tasks.sequence_classification import data_collator

INPUT_IDS = "input_ids"
_ATTENTION_MASK = "attention_mask"
_MOST_LABELS = 10  # in a message
_ANSWER_SPAN = ("start_positions", "end_positions")


def is_tokenized(request: ProbeRequest) -> bool:
    """Whether the data is token ids rather than texts."""
    return INPUT_IDS in column_names(request.data)


def make_probe_set(request: ProbeRequest, blueprint: Blueprint, tokenizer_name: str | None) -> ProbeSet:
    """Draw the examples that all models of a series are measured on.

    Data with a column ``input_ids`` is taken as it is: the columns that the model takes, padded on the right.
    Anything else is text, for classifiers of sequences, regressions and causal language models.

    Args:
        request: What is asked for.
        blueprint: Of the model, or of any of the series.
        tokenizer_name: Where the tokenizer is; None: there is none, which texts need.

    Raises:
        DataError: A column, a label or a text is missing, or not what the model and the measures need.
        ConfigurationError: The size, the batches or ``max_length`` do not fit.
    """
    if is_tokenized(request):
        dataset: Any = _tokenized_data(request, blueprint)
        collate: Any = Padding(blueprint.config.pad_token_id or 0)
    else:
        tokenizer = _tokenizer(request, blueprint, tokenizer_name)
        dataset = _texts(request, blueprint, tokenizer)
        # What the Trainer uses, so that its callbacks measured the very same tensors.
        collate = Padding(tokenizer.pad_token_id) if _is_causal(blueprint) else data_collator(tokenizer)
    probe_set = ProbeSet.from_dataset(
        dataset, collate, size=request.size, batch_size=request.batch_size, seed=request.seed
    )
    empty = blueprint.empty()
    known = getattr(empty.get_input_embeddings(), "num_embeddings", None)
    largest = max(int(batch[INPUT_IDS].max()) for batch in probe_set)
    if known is not None and largest >= known:
        raise DataError(
            "A token is not in the vocabulary of the model: the data was tokenized for another one.",
            got=f"token id {largest}",
            allowed=f"0 to {known - 1}",
            fix="Use the tokenizer of this model.",
        )
    check_examples(likelihood_for(empty), probe_set, request.measures, request.settings)
    return probe_set


def load_texts(
    request: ProbeRequest, label: str | None, label_names: Sequence[str] | None = None, owner: str = "the model"
) -> Dataset:
    """The texts that are asked for, perhaps with their labels.

    Args:
        request: What is asked for.
        label: Column of the labels; None: without.
        label_names: Label of each class; None: as the data says.
        owner: Whose these are, for messages.

    Raises:
        DataError: Something is not there, or not usable.
    """
    text = request.text or TEXT
    wanted = [column for column in (text, request.text_pair, label) if column is not None]
    _check_columns(request, wanted)
    return load_split(
        request.data,
        text=text,
        text_pair=request.text_pair,
        label=label,
        label_names=label_names,
        label_owner=owner,
        label_fix=f"Write the labels as {owner} does, or leave these examples out, or give the label of each class, as"
        " the data writes it, with --label-names.",
    )


def _check_columns(request: ProbeRequest, wanted: Sequence[str]) -> None:
    if not request.data.is_bundled:  # that has its own
        check_columns(column_names(request.data), wanted, "Name the columns with --text, --text-pair and --label.")


def _refuse_without_effect(request: ProbeRequest, why: str, *keys: str) -> None:
    """Refuse options that would be recorded as if they had decided something.

    Raises:
        ConfigurationError: Naming those that are given.
    """
    given = {key: getattr(request, key) for key in keys if getattr(request, key) is not None}
    if given:
        options = " and ".join(f"--{key.replace('_', '-')}" for key in given)
        got = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ConfigurationError(f"{options} would have no effect: {why}.", got=got, fix="Leave it out.")


class TokenizedTexts(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts with their labels, tokenized when they are asked for: a probe set takes few of many.

    Args:
        texts: Columns text and perhaps text_pair.
        labels: One for each text; None: there are none.
        tokenizer: Of the model.
        max_length: Longest input in tokens.
        as_labels: The tokens are the labels, as in language modeling.
    """

    def __init__(
        self,
        texts: Dataset,
        labels: Sequence[int] | Sequence[float] | None,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        as_labels: bool = False,
    ) -> None:
        check_max_length(tokenizer, max_length, pair=TEXT_PAIR in texts.column_names)
        self.texts, self.labels, self.tokenizer = texts, labels, tokenizer
        self.max_length, self.as_labels = max_length, as_labels

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.texts[index]
        encoded = self.tokenizer(row[TEXT], row.get(TEXT_PAIR), truncation=True, max_length=self.max_length)
        item = dict(encoded)
        if self.as_labels:
            item[LABELS] = list(item[INPUT_IDS])
        elif self.labels is not None:
            item[LABELS] = self.labels[index]
        return item


class Padding:
    """Collator of tokenized data without a tokenizer: every column is padded on the right to its longest row.

    Token ids are padded with the padding token, labels with -100, anything else with 0. Where there is no attention
    mask, one is made.

    Args:
        pad_token_id: Of the model.

    Example:
        >>> batch = Padding(9)([{"input_ids": [1, 2], "labels": [3, 4]}, {"input_ids": [5], "labels": [6]}])
        >>> {key: value.tolist() for key, value in batch.items()}
        {'input_ids': [[1, 2], [5, 9]], 'labels': [[3, 4], [6, -100]], 'attention_mask': [[1, 1], [1, 0]]}
    """

    def __init__(self, pad_token_id: int) -> None:
        self.fill = {INPUT_IDS: pad_token_id, "decoder_input_ids": pad_token_id}
        self.fill |= dict.fromkeys(LABEL_COLUMNS, IGNORED)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Tensors with the examples (B) as leading dimension."""
        columns = {key: [np.asarray(item[key]) for item in items] for key in items[0]}
        if _ATTENTION_MASK not in columns:
            columns[_ATTENTION_MASK] = [np.ones_like(ids) for ids in columns[INPUT_IDS]]
        return {key: _padded(key, rows, self.fill.get(key, 0)) for key, rows in columns.items()}


def _padded(name: str, rows: Sequence[np.ndarray], fill: int) -> Tensor:
    if len({row.ndim for row in rows}) > 1 or any(row.dtype.kind not in "biuf" for row in rows):
        raise DataError(
            f"Column {name!r} is not numbers of one shape.",
            allowed="a number, or a list of numbers, for every example",
            fix="Tokenize the data with one setting for all examples, and fill in what is missing.",
        )
    shape = [max(lengths) for lengths in zip(*(row.shape for row in rows), strict=True)]
    whole = np.full([len(rows), *shape], fill, dtype=np.result_type(*rows))
    for number, row in enumerate(rows):
        place: tuple[int | slice, ...] = (number, *map(slice, row.shape))
        whole[place] = row
    kind = torch.float32 if whole.dtype.kind == "f" else torch.long
    return torch.from_numpy(whole).to(kind)


def _tokenized_data(request: ProbeRequest, blueprint: Blueprint) -> Any:
    _refuse_without_effect(
        request,
        "the data is tokenized, and its columns have the names that the model takes",
        *("text", "text_pair", "label", "max_length", "tokenizer"),
        *([] if request.allow_new_head else ["label_names"]),
    )
    columns = taken_columns(blueprint.model_class.forward, column_names(request.data))
    likelihood = likelihood_for(blueprint.empty())
    causal = isinstance(likelihood, TokenLikelihood) and likelihood.shifted
    wanted = _ANSWER_SPAN if isinstance(likelihood, QuestionAnsweringLikelihood) else (LABELS,)
    # Only the labels of these tell what is predicted, or what the decoder reads.
    always = isinstance(likelihood, TokenLikelihood) and not causal and likelihood.mask != _ATTENTION_MASK
    there = set(columns) >= set(wanted) or (wanted == (LABELS,) and bool({*LABEL_COLUMNS} & {*columns}))
    if not there and not causal:
        _check_needed(request, wanted, columns, "Save the data with its labels.", always)
    dataset = read_source(request.data, columns)
    for column in {*LABEL_COLUMNS} & {*columns}:
        _check_label_names(dataset, column, blueprint.config)
    return dataset if there or not causal else _WithLabels(dataset)


class _WithLabels(torch.utils.data.Dataset[dict[str, Any]]):
    """Examples of causal language modeling: the tokens are their own labels, where they are not padding."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.dataset[index])
        shown = item.get(_ATTENTION_MASK, [1] * len(item[INPUT_IDS]))
        pairs = zip(item[INPUT_IDS], shown, strict=True)
        return {**item, LABELS: [token if mask else IGNORED for token, mask in pairs]}


def _check_needed(request: ProbeRequest, wanted: Sequence[str], columns: Sequence[str], fix: str, always: bool) -> None:
    """Refuse data without labels if a measure reads them.

    Raises:
        DataError: Naming the measures.
    """
    needing = [name for name in request.measures if always or needs_labels(name, request.settings.get(name))]
    if needing:
        without = [name for name in request.measures if name not in needing]
        raise DataError(
            f"The data has no column {' and '.join(map(repr, wanted))}, needed for {', '.join(needing)}.",
            got=f"columns {', '.join(columns)}",
            fix=fix + (f" Or measure {', '.join(without)} only." if without else ""),
        )


def _check_label_names(dataset: Dataset, column: str, config: PretrainedConfig) -> None:
    """Token ids come with labels that are numbers; where these have names, they must be those of the model."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, ClassLabel) and not _is_numbered(config) and list(feature.names) != class_names(config):
        raise DataError(
            "The labels of the tokenized data have other names than those of the model.",
            got=", ".join(feature.names),
            allowed=", ".join(class_names(config)),
            fix="Tokenize the data with the numbers that the model uses (config.label2id).",
        )


def _is_causal(blueprint: Blueprint) -> bool:
    return blueprint.model_class.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _tokenizer(request: ProbeRequest, blueprint: Blueprint, name: str | None) -> PreTrainedTokenizerBase:
    if not _is_causal(blueprint) and (
        blueprint.model_class.__name__ not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()
    ):
        raise DataError(
            f"The data is text, but {blueprint.model_class.__name__} needs tokenized data.",
            got=f"columns {', '.join(column_names(request.data))}",
            allowed=f"a save_to_disk folder or a file with {INPUT_IDS} and what else the model takes",
            fix="Save what your Trainer gets as train_dataset with save_to_disk, and give that folder.",
        )
    if name is None:
        raise DataError(
            "There is no tokenizer beside the saved model.",
            got=request.model,
            fix="Name one with --tokenizer, or give tokenized data.",
        )
    return load_tokenizer(name, revision=request.revision if name == request.model else None)


def _texts(request: ProbeRequest, blueprint: Blueprint, tokenizer: PreTrainedTokenizerBase) -> TokenizedTexts:
    spec, config = request.data, blueprint.config
    if spec.is_bundled and (request.text not in (None, TEXT) or request.label not in (None, LABEL)):
        raise DataError(
            f"{spec.source} has its own columns.",
            got=f"text={request.text or TEXT}, label={request.label or LABEL}",
            allowed=f"text={TEXT}, label={LABEL}",
            fix="Leave them out.",
        )
    columns = column_names(spec)
    max_length = request.max_length or min(DataConfig.max_length, tokenizer.model_max_length)
    label = request.label or LABEL
    if _is_causal(blueprint):
        _refuse_without_effect(request, "the labels of a language model are its tokens", "label", "label_names")
        return TokenizedTexts(load_texts(request, None), None, tokenizer, max_length, as_labels=True)
    needed = any(needs_labels(name, request.settings.get(name)) for name in request.measures)
    if label not in columns and request.label is None:
        _check_needed(request, (label,), columns, "Name the column of the labels with --label.", always=False)
    if request.label is None and not needed:
        if not request.allow_new_head:
            _refuse_without_effect(request, "no measure needs labels", "label_names")
        return TokenizedTexts(load_texts(request, None), None, tokenizer, max_length)
    likelihood = likelihood_for(blueprint.empty())
    if isinstance(likelihood, RegressionLikelihood):
        _refuse_without_effect(request, "the labels of a regression are numbers", "label_names")
        texts = load_texts(request, None)
        _check_columns(request, [label])
        return TokenizedTexts(texts, _numbers(request, label), tokenizer, max_length)
    if not isinstance(likelihood, ClassificationLikelihood):
        raise DataError(
            "From texts, labels are read for one class per text or for a regression.",
            got=f"problem_type={config.problem_type}",
            fix=f"Give tokenized data: {INPUT_IDS}, {_ATTENTION_MASK} and {LABELS}.",
        )
    _check_columns(request, [label])
    owner = "the model" if request.label_names is None else "--label-names"
    split = load_texts(request, label, _label_names(request, config, label), owner)
    return TokenizedTexts(split, split[LABEL][:], tokenizer, max_length)


def _numbers(request: ProbeRequest, column: str) -> list[float]:
    """What a regression is to predict."""
    values = read_source(request.data, [column])[column][:]
    numbers = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"Column {column!r} has an example without a number.",
                got=f"{value!r} in example {row}",
                allowed="numbers, because the model is a regression (num_labels=1)",
                fix="Remove such examples, or name another column with --label.",
            )
        numbers.append(number)
    return numbers


def _label_names(request: ProbeRequest, config: PretrainedConfig, column: str) -> list[str]:
    """Label of each class id, as the data writes it.

    A model with names is matched by name. One without (``LABEL_0``) knows numbers only: then it is the numbers of the
    data that count, those behind the names of a ``ClassLabel`` included.
    """
    known = class_names(config)
    if request.label_names is not None:
        if len(request.label_names) != config.num_labels:
            raise ConfigurationError(
                "There are not as many label names as the model has classes.",
                got=", ".join(request.label_names),
                allowed=f"{config.num_labels} names",
            )
        if set(request.label_names) == set(known) and list(request.label_names) != known:
            raise ConfigurationError(
                "The label names are those of the model in another order, which would exchange its classes.",
                got=", ".join(request.label_names),
                allowed=", ".join(known),
                fix="Leave them out: the model has names of its own.",
            )
        return list(request.label_names)
    if not _is_numbered(config):
        return known
    data = read_source(request.data, [LABEL if request.data.is_bundled else column])
    feature = data.features[data.column_names[0]]
    if isinstance(feature, ClassLabel):
        if len(feature.names) != len(known):
            raise DataError(
                "The data has not as many labels as the model has classes.",
                got=", ".join(feature.names),
                allowed=f"{len(known)} labels",
                fix="Give the label of each class of the model, in its order, with --label-names.",
            )
        return list(feature.names)
    values = {str(int(value)) if isinstance(value, bool) else str(value) for value in data[data.column_names[0]][:]}
    numbers = [str(number) for number in range(len(known))]
    if values <= {*known} or all(value.isdecimal() for value in values):
        return known if values <= {*known} else numbers
    raise DataError(
        "The model has numbers for its labels, and the data has words.",
        got=", ".join(sorted(values)[:_MOST_LABELS]),
        allowed=", ".join(numbers),
        fix="Give the label of each class of the model, in its order, with --label-names.",
    )


def _is_numbered(config: PretrainedConfig) -> bool:
    """Whether the labels of a model are those that transformers makes up."""
    return is_single_label(config) and class_names(config) == [f"LABEL_{i}" for i in range(config.num_labels or 0)]
