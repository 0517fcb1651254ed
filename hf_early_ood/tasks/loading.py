"""Pretrained models with a head for a task, and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging

from hf_early_ood import names
from hf_early_ood.bundled import BUNDLED_MODEL, resolve_model
from hf_early_ood.errors import DataError, UnsupportedModelError

logger = logging.get_logger(__name__)

_CLASSES = {
    names.SEQUENCE_CLASSIFICATION: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    names.TOKEN_CLASSIFICATION: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    names.QUESTION_ANSWERING: MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    names.MULTIPLE_CHOICE: MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
}
_TASK_OF_CLASS = {name: task for task, classes in _CLASSES.items() for name in classes.values()}


def task_of_model(model: nn.Module) -> str | None:
    """Name of the task that a model, or the model inside a peft wrapper, was built for.

    Args:
        model: Any model.

    Returns:
        A name of ``names.py`` for the classes behind ``AutoModelFor...`` of a task, and for their subclasses; None for
        others.

    Example:
        >>> from transformers import AutoModelForTokenClassification
        >>> task_of_model(empty_model(AutoModelForTokenClassification, "bundled:all-MiniLM-L6-v2"))
        'token_classification'
    """
    return task_of_class(type(model.get_base_model() if isinstance(model, PeftModel) else model))


def task_of_class(model_class: type) -> str | None:
    """As `task_of_model`, for the class of a model."""
    known = (_TASK_OF_CLASS.get(kind.__name__) for kind in model_class.__mro__)
    return next((task for task in known if task is not None), None)


def class_names(config: PretrainedConfig) -> list[str]:
    """Label of each class id, as the config of a model says.

    Example:
        >>> class_names(PretrainedConfig(num_labels=2))
        ['LABEL_0', 'LABEL_1']
    """
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def load_model(
    auto_class: Any,
    model_name: str,
    label_names: Sequence[str] | None,
    *,
    seed: int = 0,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    **model_arguments: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Pretrained encoder or decoder with a head for a task, and its tokenizer.

    All global random number generators are seeded first (``transformers.set_seed``): the new head is the same for the
    same seed. A checkpoint that has a head begins with it, each class by its name, also where the checkpoint has the
    same classes in another order; a head for another number of classes is replaced by a new one, with a warning. A
    tokenizer without a padding token (decoder-only models) gets its end-of-sequence token as one, and the model is
    told, because it classifies at the last token that is not padding.

    Args:
        auto_class: Of the task, e.g. ``AutoModelForSequenceClassification``.
        model_name: ``bundled:all-MiniLM-L6-v2``, a local folder or a Hub id.
        label_names: Label of each class id, for ``id2label`` and ``label2id``; None: the classes of the task have no
            names.
        seed: Seed of the new head.
        revision: Revision on the Hub; pin it.
        dtype: Type of the weights. The default is float32 whatever the checkpoint has: half-precision weights do not
            take the small updates of fine-tuning (use bf16=True of the Trainer for speed).
        model_arguments: Passed on to ``from_pretrained`` of the model, e.g. ``attn_implementation="eager"``.

    Returns:
        Model and tokenizer.

    Raises:
        DataError: If labels are fewer than two or repeated.
        UnsupportedModelError: If the model cannot be loaded, if the checkpoint lacks weights below the head, if nobody
            can tell which layer of its head has the classes in another order, or if the tokenizer has neither a padding
            nor an end-of-sequence token.

    Example:
        >>> from transformers import AutoModelForSequenceClassification as Auto
        >>> model, tokenizer = load_model(Auto, "bundled:all-MiniLM-L6-v2", ["negative", "positive"])
        >>> model.config.id2label
        {0: 'negative', 1: 'positive'}
    """
    if label_names is not None:
        if len(label_names) < 2 or len(set(label_names)) != len(label_names):
            raise DataError("Labels are not usable.", got=list(label_names), allowed="two or more different names")
        model_arguments["id2label"] = dict(enumerate(label_names))
        model_arguments["label2id"] = {name: index for index, name in enumerate(label_names)}
    tokenizer = load_tokenizer(model_name, revision=revision)
    set_seed(seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its load report lists the new head as a problem; what is one is raised below
    try:
        known = class_names(AutoConfig.from_pretrained(resolve_model(model_name), revision=revision))
        resized = label_names is not None and len(label_names) != len(known)
        model, loaded = auto_class.from_pretrained(
            resolve_model(model_name), revision=revision, dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=resized, **model_arguments,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise not_loaded("model", model_name, error) from error
    finally:
        logging.set_verbosity(verbosity)
    replaced = {name for name, *_ in loaded["mismatched_keys"]}
    _check_new_weights(model, model_name, {*loaded["missing_keys"], *replaced})
    if replaced:
        logger.warning(f"The head of {model_name} is for {', '.join(known)}: a new one takes its place.")
    elif label_names is not None and all(_below_head(name, model) for name in loaded["missing_keys"]):
        _order_classes(model, model_name, known, label_names)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def load_tokenizer(model_name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Tokenizer of a model; without a padding token (decoder-only models) it pads with its end-of-sequence token.

    Args:
        model_name: As for ``load_model``.
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
    lost = sorted(name for name in missing if _below_head(name, model) and "pooler" not in name)
    if lost:
        raise UnsupportedModelError(
            "The checkpoint lacks weights below the head: they would start from random numbers.",
            got=f"{len(lost)} missing in {model_name}, such as {lost[0]}",
            fix="Check that the checkpoint and its config.json belong together.",
        )
    logger.info(f"New weights of the head: {', '.join(sorted(missing)) or 'none, the checkpoint has one'}.")


def _order_classes(model: PreTrainedModel, model_name: str, known: Sequence[str], wanted: Sequence[str]) -> None:
    """Bring the rows of the checkpoint's head, which are in the order ``known``, into that of the data.

    Raises:
        UnsupportedModelError: If more or less than one layer can be the one that has a row for each class.
    """
    if list(known) == list(wanted):
        return
    if set(known) != set(wanted):
        logger.warning(
            f"The head of {model_name} is for {', '.join(known)}: {', '.join(wanted)} begin with its weights."
        )
        return
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == len(known) and not _below_head(name, model)
    ]
    if len(layers) != 1:
        raise UnsupportedModelError(
            "The checkpoint has the classes in another order, and its head does not tell where its rows are.",
            got=f"{', '.join(known)} in {model_name}, {', '.join(wanted)} in the data",
            fix="Bring the labels of the data into the order of the checkpoint, or remove its head.",
        )
    rows = torch.tensor([list(known).index(name) for name in wanted])
    with torch.no_grad():
        for parameter in layers[0].parameters():
            parameter.copy_(parameter[rows])


def _below_head(name: str, model: PreTrainedModel) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")


def empty_model(
    auto_class: Any, model_name: str, *, num_labels: int = 2, revision: str | None = None
) -> PreTrainedModel:
    """The architecture of a model with its head, without weights (on the meta device): to look at its layers.

    Args:
        auto_class: Of the task.
        model_name: As for ``load_model``.
        num_labels: Number of classes C.
        revision: Revision on the Hub.

    Returns:
        Model that cannot be run.

    Raises:
        UnsupportedModelError: If there is no such model, or it has no head for the task.

    Example:
        >>> from transformers import AutoModelForMultipleChoice
        >>> empty_model(AutoModelForMultipleChoice, "bundled:all-MiniLM-L6-v2").classifier.weight.device
        device(type='meta')
    """
    try:
        config = AutoConfig.from_pretrained(resolve_model(model_name), revision=revision, num_labels=num_labels)
        with torch.device("meta"):
            return auto_class.from_config(config)
    except (OSError, ValueError) as error:
        raise not_loaded("config", model_name, error) from error
