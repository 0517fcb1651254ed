"""Saved models, loaded with the head that they were saved with: a new random head would make the numbers worthless."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from hf_early_ood.bundled import resolve_model
from hf_early_ood.errors import EarlyOODError, UnsupportedModelError
from hf_early_ood.layer_rules import HEAD
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.likelihood import likelihood_for
from hf_early_ood.tasks.loading import empty_model, load_model, not_loaded

# What from_pretrained raises for a file that is missing, cut off, or of another model.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)
_MOST_NAMES = 4
_ADAPTED = "base_model.model."  # what peft puts before the name of a weight
_HEADLESS = {
    name
    for names in MODEL_MAPPING_NAMES.values()
    for name in ([names] if isinstance(names, str) else names)
}  # fmt: skip
_CLASSIFIER = transformers.AutoModelForSequenceClassification
_WITH_HEAD = (
    "Give a model that was saved with its head. The start of fine-tuning a classifier is measured by hf-early-ood probe"
    " with --allow-new-head."
)
_AUTO_CLASSES = {
    "SEQ_CLS": _CLASSIFIER,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True)
class Blueprint:
    """What a saved model is, before its weights are read.

    Attributes:
        name: What was asked for, for messages.
        model_class: With the head.
        config: Of the model; of an adapter's base, with as many labels as the adapter has.
        weights: Where the weights are: of the base model, for an adapter.
        adapter: Where the adapter is; None: a full model.
        revision: On the Hub, of what was asked for.
        base_revision: On the Hub, of the base model, as the adapter says.
    """

    name: str
    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    weights: str
    adapter: str | None
    revision: str | None
    base_revision: str | None = field(default=None, kw_only=True)

    @property
    def base(self) -> str | None:
        """Where the model is that the adapter was put on; None: this is no adapter."""
        return self.weights if self.adapter is not None else None

    def empty(self) -> PreTrainedModel:
        """The architecture on the meta device, without weights: to ask what it predicts and takes."""
        return _empty(self.model_class, self.config)

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.nn.Module:
        """The model in eval mode, with every weight from the checkpoint.

        Raises:
            UnsupportedModelError: A file is missing or broken, or a weight is not in it.
        """
        model_class: Any = self.model_class
        revision = self.revision if self.adapter is None else self.base_revision
        with self._readable_weights(), _quiet():
            model, loaded = model_class.from_pretrained(
                self.weights, config=self.config, dtype=dtype, output_loading_info=True, revision=revision
            )
        missing = set(loaded["missing_keys"])
        if self.adapter is not None:
            model = self._adapted(model, self.adapter, missing)
        else:
            self._refuse(missing)
        return model.to(device).eval()

    def weights_in(self, name: str) -> dict[str, Tensor]:
        """What another saved model holds for this full one, in float32 and by name: all, or all but the head.

        Raises:
            UnsupportedModelError: It cannot be read, or lacks more than the head.
        """
        model_class: Any = self.model_class
        with _readable("model", name), _quiet():
            model, loaded = model_class.from_pretrained(
                resolve_model(name),
                config=self.config,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        lacking = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
        beyond = sorted(lacking - set(find_layer_groups(model)[HEAD].parameters) - set(dict(model.named_buffers())))
        if beyond:
            raise UnsupportedModelError(
                "This is another model than the checkpoints.",
                got=f"{name}, without {', '.join(beyond[:_MOST_NAMES])} of {self.name}",
                allowed="a saved model with the same layers and tokens; the head may be another",
                fix="Name the model that training began with.",
            )
        return {key: weight.detach() for key, weight in model.named_parameters() if key not in lacking}

    def _readable_weights(self) -> AbstractContextManager[None]:
        if self.adapter is None:
            return _readable("model", self.name)
        return _readable_base(self.name, self.weights)

    def _adapted(self, base: PreTrainedModel, adapter: str, missing: set[str]) -> PeftModel:
        """The adapter on its base model; it may bring the head that the base lacks."""
        with _readable("adapter", self.name), _quiet():
            weights = load_peft_weights(adapter, device="cpu", revision=self.revision)
            self._refuse({name for name in missing if _ADAPTED + name not in weights})
            model = PeftModel.from_pretrained(base, adapter, is_trainable=True, revision=self.revision)
            self._refuse({name for name in get_peft_model_state_dict(model) if name not in weights})
        return model

    def _refuse(self, missing: set[str]) -> None:
        if missing:
            shown = ", ".join(sorted(missing)[:_MOST_NAMES]) + (", ..." if len(missing) > _MOST_NAMES else "")
            raise UnsupportedModelError(
                "The checkpoint lacks weights: they would be random numbers, and so would what is measured.",
                got=f"{self.name}, a {self.model_class.__name__} without {shown}",
                fix=_WITH_HEAD,
            )


@dataclass(frozen=True)
class NewHead(Blueprint):
    """A classifier whose head is drawn at random where the checkpoint has none, as a recipe begins.

    Attributes:
        label_names: Label of each class.
        seed: Of the head.
    """

    label_names: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, name: str, label_names: Sequence[str], *, seed: int = 0, revision: str | None = None) -> NewHead:
        """For a pretrained encoder or decoder.

        Raises:
            UnsupportedModelError: There is no such model.
        """
        empty = empty_model(_CLASSIFIER, name, num_labels=len(label_names), revision=revision)
        empty.config.id2label = dict(enumerate(label_names))
        return cls(name, type(empty), empty.config, resolve_model(name), None, revision, tuple(label_names), seed)

    def load(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.nn.Module:
        """The classifier in eval mode; all global random numbers are seeded."""
        with _quiet():
            model, _ = load_model(
                _CLASSIFIER, self.name, self.label_names, seed=self.seed, revision=self.revision, dtype=dtype
            )
        return model.to(device).eval()  # type: ignore[arg-type]


def read_blueprint(name: str, *, revision: str | None = None) -> Blueprint:
    """Find out what a saved model is.

    Args:
        name: A folder with ``config.json`` or ``adapter_config.json``, ``bundled:all-MiniLM-L6-v2``, a Hub name.
        revision: Revision on the Hub.

    Raises:
        UnsupportedModelError: It cannot be read, or it has no head that the measures know.

    Example:
        >>> read_blueprint("bundled:all-MiniLM-L6-v2")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        hf_early_ood.errors.UnsupportedModelError: The saved model has no head, so it predicts nothing. ...
    """
    path = resolve_model(name)
    with _readable("config", name):
        if find_adapter_config_file(path, revision=revision) is not None:
            return _read_adapter(name, path, revision)
        config = AutoConfig.from_pretrained(path, revision=revision)
    blueprint = Blueprint(name, _class_named(config, name), config, path, None, revision)
    likelihood_for(blueprint.empty())
    return blueprint


def load_saved_model(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> torch.nn.Module:
    """A saved model with its own head, in eval mode, for any measure.

    The class is the one that the config names, for a PEFT adapter that of its base model. An adapter is loaded on its
    base model, and is what requires a gradient.

    Args:
        name: A folder with ``config.json`` or ``adapter_config.json``, or a name on the Hub.
        dtype: Type of the weights, whatever they were saved in: small perturbations and squared gradients need float32.
        device: Where to put it.
        revision: Revision on the Hub.

    Raises:
        UnsupportedModelError: It cannot be read, has no known head, or lacks weights.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> folder = tempfile.mkdtemp()
        >>> BertForSequenceClassification(config).save_pretrained(folder)
        >>> type(load_saved_model(folder)).__name__
        'BertForSequenceClassification'
    """
    return read_blueprint(name, revision=revision).load(dtype=dtype, device=device)


def _class_named(config: PretrainedConfig, name: str) -> type[PreTrainedModel]:
    """The class that the config says the weights are of."""
    found = next(iter(config.architectures or ()), "")
    if not found:
        raise UnsupportedModelError(
            "The config does not say which class the model is of.",
            got=f"{name} without architectures",
            fix="Save the model with save_pretrained.",
        )
    known = getattr(transformers, found, None)
    if not (isinstance(known, type) and issubclass(known, PreTrainedModel)):
        raise UnsupportedModelError(
            "The class of the saved model is not one of transformers.",
            got=f"{found} in {name}",
            allowed="models whose code is in transformers",
            fix="Load it yourself and use hf_early_ood.probing.probe_model.",
        )
    if found in _HEADLESS:
        raise UnsupportedModelError(
            "The saved model has no head, so it predicts nothing.",
            got=f"{found} in {name}",
            allowed="a model saved after fine-tuning",
            fix=_WITH_HEAD,
        )
    return known


def _read_adapter(name: str, path: str, revision: str | None) -> Blueprint:
    adapter = PeftConfig.from_pretrained(path, revision=revision)
    base = adapter.base_model_name_or_path
    if not base:
        raise UnsupportedModelError(
            "The adapter does not say which model it is for.",
            got=f"{name} without base_model_name_or_path",
            fix="Set it in adapter_config.json.",
        )
    base_revision = adapter.revision
    with _readable_base(name, base):
        config = AutoConfig.from_pretrained(base, revision=base_revision)
    if adapter.task_type in _AUTO_CLASSES:
        with torch.device("meta"):
            model_class = type(_AUTO_CLASSES[adapter.task_type].from_config(config))
    else:  # peft notes the class of the base model where it was told no task
        config.architectures = [(adapter.auto_mapping or {}).get("base_model_class", "unknown")]
        model_class = _class_named(config, name)
    weights = load_peft_weights(path, device="cpu", revision=revision)
    num_labels = _num_labels(model_class, config, weights)
    if num_labels is not None and num_labels != config.num_labels:
        config.num_labels = num_labels
    blueprint = Blueprint(name, model_class, config, base, path, revision, base_revision=base_revision)
    likelihood_for(blueprint.empty())
    return blueprint


def _num_labels(
    model_class: type[PreTrainedModel], config: PretrainedConfig, weights: Mapping[str, torch.Tensor]
) -> int | None:
    """Number of labels of the head inside an adapter, which its config does not say; None: there is no such head.

    A dimension that grows with ``num_labels`` is looked for in the architecture, and then read in the weights.
    """
    shapes = []
    for count in (2, 3):
        sized = type(config).from_dict({**config.to_dict(), "id2label": dict(enumerate(map(str, range(count))))})
        shapes.append({name: tuple(p.shape) for name, p in _empty(model_class, sized).named_parameters()})
    for name, shape in shapes[0].items():
        grows = [i for i, (two, three) in enumerate(zip(shape, shapes[1][name], strict=True)) if three == two + 1]
        if grows and _ADAPTED + name in weights:
            return weights[_ADAPTED + name].shape[grows[0]]
    return None


def _empty(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(config)


@contextmanager
def _readable(what: str, name: str) -> Iterator[None]:
    """Turn what ``from_pretrained`` raises into an error that names the model."""
    try:
        yield
    except EarlyOODError:  # some are ValueErrors, too
        raise
    except _BROKEN as error:
        raise not_loaded(what, name, error) from error


def _readable_base(adapter: str, base: str) -> AbstractContextManager[None]:
    """The same for the model that an adapter was put on, which it names as it was called where it was trained."""
    return _readable(f"base model of the adapter {adapter}", base)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the report and the bars of ``from_pretrained``: what matters in them is raised."""
    verbosity: Any = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
