"""The head of masked language modeling of a model that has another one. D width, V vocabulary, T positions."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_early_ood.errors import DataError, UnsupportedModelError
from hf_early_ood.probes.isolation import eval_mode, random_state_kept
from hf_early_ood.probes.outcomes import IGNORED
from hf_early_ood.tasks.loading import not_loaded, quietly

CHECKPOINT, NEW, PARTLY_NEW = "checkpoint", "new", "partly new"
_FIX = "Take another pretext, random_labels or shuffled_tokens."


class LanguageHead:
    r"""What makes of the last hidden states of a model's encoder the logits of every token of its vocabulary.

    It is what ``AutoModelForMaskedLM`` puts on an encoder of this architecture. Its weights are those of the checkpoint
    that the model was made from, as far as that has them, else new, by the architecture's own initializer. Where the
    architecture ties its last matrix to the input embeddings, it *is* the model's matrix of input embeddings: the loss
    trains these through it, too. The head has no dropout.

    Args:
        model: A model with a head for another task, perhaps inside of peft; it is not changed.
        seed: Of new weights.
        weights: Whether to look for weights in the checkpoint; False: all are new, or come by `load`.

    Raises:
        UnsupportedModelError: The architecture has no masked language modeling, or not one that reads the last hidden
            states; the checkpoint cannot be read.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        ...                     intermediate_size=8, max_position_embeddings=8)
        >>> model = BertForSequenceClassification(config)
        >>> head = LanguageHead(model)
        >>> outputs = model(input_ids=torch.tensor([[1, 2, 3]]), output_hidden_states=True)
        >>> head.loss(outputs, torch.tensor([[-100, 5, -100]])).shape, head.origin
        (torch.Size([]), 'new')
    """

    def __init__(self, model: nn.Module, *, seed: int = 0, weights: bool = True) -> None:
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        check_architecture(inner)
        whole, missing = _built(inner, seed, weights)
        decoder, embeddings = whole.get_output_embeddings(), inner.get_input_embeddings()
        is_tied = decoder is not None and decoder.weight is whole.get_input_embeddings().weight
        self._given = _Given()
        setattr(whole, whole.base_model_prefix, self._given)  # the encoder that came with it is dropped
        self._module: nn.Module = whole.to(device=inner.device, dtype=inner.dtype).eval()
        if is_tied:
            if decoder.weight.shape != embeddings.weight.shape:
                raise UnsupportedModelError(
                    "The language head does not fit the embeddings of the model.",
                    got=f"{tuple(decoder.weight.shape)} and {tuple(embeddings.weight.shape)}",
                    fix="Set vocab_size of the model's configuration to the rows of its embeddings.",
                )
            decoder.weight = embeddings.weight
        of_model = {id(parameter) for parameter in inner.parameters()}
        named = self._module.named_parameters()
        self.parameters: dict[str, nn.Parameter] = {name: p for name, p in named if id(p) not in of_model}
        """Those that are not the model's, by name."""
        lacking = [name for name in self.parameters if missing is None or name in missing]
        self.origin = CHECKPOINT if not lacking else NEW if len(lacking) == len(self.parameters) else PARTLY_NEW
        """Where its weights are from: "checkpoint", "new", or "partly new"."""
        _check_reads_last(inner, self)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, V) of hidden states (T, D); each position is by itself."""
        self._given.hidden = hidden[None]
        try:
            return self._module(input_ids=None).logits[0]
        finally:
            self._given.hidden = None

    def loss(self, outputs: Mapping[str, Any], labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """Cross entropy of the tokens that were masked.

        Args:
            outputs: Of the model, which was called with ``output_hidden_states=True``.
            labels: (B, T), or whatever has as many positions: the token, or -100 where there is nothing to predict.
            num_items_in_batch: What the sum is divided by: predicted tokens of the whole update; None: of this batch.

        Returns:
            Scalar with gradient; 0 where nothing was masked.

        Raises:
            DataError: There are no labels.
            UnsupportedModelError: The model returns no hidden states, or not one for each position.
        """
        if labels is None:
            raise DataError("The batch has no labels of masked tokens.")
        states = outputs.get("hidden_states") if isinstance(outputs, Mapping) else None
        hidden = None if states is None else states[-1].flatten(0, -2)
        if hidden is None or len(hidden) != labels.numel():
            raise UnsupportedModelError(
                "The model does not return a hidden state for each position.",
                got="none" if hidden is None else f"{len(hidden)} for {labels.numel()} positions",
                fix=_FIX,
            )
        wanted = labels.flatten().to(hidden.device)
        predicted = wanted != IGNORED
        logits = self.logits(hidden[predicted])
        loss = functional.cross_entropy(logits.float(), wanted[predicted], reduction="sum")
        count = predicted.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return loss / count.to(loss.device).clamp(min=1)

    def state(self) -> dict[str, Tensor]:
        """Copies of its own parameters, by name, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of `state`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


class _Given(nn.Module):
    """Stands where the encoder was, and returns what it is given."""

    hidden: Tensor | None = None

    def forward(self, *positional: Any, **named: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.hidden)


def check_architecture(model: nn.Module) -> None:
    """Refuse a model whose architecture has no masked language modeling.

    Raises:
        UnsupportedModelError: It has none, as decoders; or it is an encoder with a decoder.
    """
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config: Any = getattr(inner, "config", None)
    kind = getattr(config, "model_type", type(inner).__name__)
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder or getattr(config, "is_decoder", 0):
        raise UnsupportedModelError(
            "This architecture has no masked language modeling.",
            got=kind,
            allowed="encoders behind AutoModelForMaskedLM, such as BERT, RoBERTa, XLM-R, DeBERTa",
            fix=_FIX,
        )


def _built(inner: PreTrainedModel, seed: int, weights: bool) -> tuple[Any, set[str] | None]:
    """A model of masked language modeling, and the names of its new parameters; None: all are."""
    config = copy.deepcopy(inner.config)
    with random_state_kept(), quietly():
        torch.manual_seed(seed)
        if not weights or not inner.name_or_path:
            return AutoModelForMaskedLM.from_config(config), None
        try:
            whole, report = AutoModelForMaskedLM.from_pretrained(
                inner.name_or_path,
                config=config,
                revision=getattr(inner.config, "_commit_hash", None),
                dtype=inner.dtype,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise not_loaded("language head", inner.name_or_path, error) from error
    return whole, set(report["missing_keys"])


def _check_reads_last(inner: Any, head: LanguageHead) -> None:
    """Refuse a head that does not read what the model returns as its last hidden states.

    Raises:
        UnsupportedModelError: A small pass shows it.
    """
    ids = torch.full((1, 4), int(inner.config.vocab_size) - 1, device=inner.device)
    try:
        with eval_mode(inner), torch.no_grad():
            outputs = inner.base_model(input_ids=ids, output_hidden_states=True)
            hidden = outputs["hidden_states"][-1]
            fits = torch.equal(hidden, outputs[0]) and head.logits(hidden[0]).shape == (4, inner.config.vocab_size)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise UnsupportedModelError(
            f"The language head of this architecture cannot be put on its last hidden states: {error}",
            got=type(inner).__name__,
            fix=_FIX,
        ) from error
    if not fits:
        raise UnsupportedModelError(
            "The language head of this architecture does not read its last hidden states.",
            got=type(inner).__name__,
            fix=_FIX,
        )
