"""What a classifier makes of each example on the way up: one vector a layer. B examples, T positions, D width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_early_ood.checks import check_choice
from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError, UnsupportedModelError, did_you_mean
from hf_early_ood.layer_rules import EMBEDDINGS
from hf_early_ood.probes.batches import check_some, num_rows
from hf_early_ood.probes.isolation import isolated
from hf_early_ood.probes.likelihood import ClassificationLikelihood, likelihood_for
from hf_early_ood.probes.outcomes import IGNORED, full_precision, logits_of

MEAN, FIRST, LAST = POOLINGS = ("mean", "first", "last")
OUTPUT = "output"


@dataclass(frozen=True, eq=False)
class Representations:
    """One vector a layer of n examples, what the model predicts for them, and their labels.

    Attributes:
        layers: Name to vectors (n, D) in float32 or better, on the CPU, bottom first.
        predictions: Most probable class (n,).
        labels: Class ids (n,); None: the batches have none, or not for every example.
        num_classes: Classes C of the model.
        pooling: How the positions of an example became one vector.
        device: Where the model was, and where there is room to compute.
    """

    layers: dict[str, Tensor]
    predictions: Tensor
    labels: Tensor | None
    num_classes: int
    pooling: str
    device: torch.device

    def __len__(self) -> int:
        return len(self.predictions)


def represent(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    pooling: str = MEAN,
    layers: Sequence[str] | None = None,
) -> Representations:
    r"""Pool the hidden states of a classifier after every layer; the model is left as it was found.

    The layers are ``embeddings`` (what enters the first block), ``block.0``, ..., ``block.L-1`` (the hidden states that
    the model itself returns, so of some decoders the last one is after the final norm) and ``output`` (the
    probabilities of the classes).

    Args:
        model: A model of transformers that gives a sequence one of C classes, also inside PEFT, in any precision.
        batches: Batches of tensors; ``attention_mask`` (B, T) says which positions count, without one all do.
        pooling: ``mean`` over the positions that count, \sum_t m_t h_t / \sum_t m_t, or the ``first`` or the ``last``
            of them.
        layers: Names of the layers that are wanted; None: all.

    Returns:
        The vectors, in the order of the batches.

    Raises:
        UnsupportedModelError: The model is for another task, or does not return one state a position and layer.
        ConfigurationError: There is no batch, or an unknown layer or pooling.
        DataError: An example has no position that counts, or a label is not one of the classes.
        NonFiniteError: A state or a prediction is NaN or infinite.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                     intermediate_size=8, max_position_embeddings=8)
        >>> found = represent(BertForSequenceClassification(config), [{"input_ids": torch.tensor([[1, 2], [3, 4]])}])
        >>> {name: tuple(vectors.shape) for name, vectors in found.layers.items()}
        {'embeddings': (2, 8), 'block.0': (2, 8), 'block.1': (2, 8), 'output': (2, 2)}
    """
    check_choice("pooling", pooling, POOLINGS)
    likelihood = likelihood_for(model)
    if not isinstance(likelihood, ClassificationLikelihood):
        raise UnsupportedModelError(
            "The model does not give a sequence one of several classes.",
            got=type(model).__name__,
            allowed="a model for sequence classification with one label an example",
        )
    device = next(model.parameters()).device
    parts: list[dict[str, Tensor]] = []
    found: list[Tensor] = []
    given: list[Tensor | None] = []
    num_classes = 0
    with isolated(model), _nothing_added(model), torch.no_grad():
        for index, batch in enumerate(tqdm(batches, desc="Reading layers", disable=None, leave=False)):
            rows = num_rows(batch, index)
            inputs = {key: value.to(device) for key, value in likelihood.inputs(batch).items()}
            outputs = model(**inputs, output_hidden_states=True, return_dict=True)
            log_probs = likelihood.predictions(outputs)
            states = dict(zip(layer_names(outputs, rows, inputs), outputs.hidden_states, strict=True))
            # Float64 before the softmax: in float32, probabilities next to 1 would be ties.
            states[OUTPUT] = logits_of(outputs).double().softmax(-1)
            parts.append(
                {
                    name: (state if name == OUTPUT else pooled(state, inputs.get("attention_mask"), pooling)).cpu()
                    for name, state in states.items()
                    if name in _wanted(layers, states)
                }
            )
            _check_finite(parts[-1], index)
            found.append(log_probs[:, 0].argmax(-1).cpu())
            labels = likelihood.given(batch, log_probs)
            given.append(None if labels is None or bool((labels == IGNORED).any()) else labels[:, 0].cpu())
            num_classes = log_probs.shape[-1]
    check_some(parts)
    known = None if any(part is None for part in given) else torch.cat([part for part in given if part is not None])
    if known is not None and not 0 <= int(known.min()) <= int(known.max()) < num_classes:
        raise DataError(
            "A label is not one of the classes of the model.",
            got=f"{int(known.min())} to {int(known.max())}",
            allowed=f"0 to {num_classes - 1}",
        )
    together = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Representations(together, torch.cat(found), known, num_classes, pooling, device)


def layer_names(outputs: Any, rows: int, inputs: Mapping[str, Tensor]) -> list[str]:
    """Names of the hidden states in the outputs of a model.

    Raises:
        UnsupportedModelError: They are not one state (B, T, D) a layer for the T positions of each of the B examples.
    """
    states = getattr(outputs, "hidden_states", None)
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    fits = ids is not None and bool(states)
    if not fits or any(state is None or state.shape[:2] != (rows, ids.shape[1]) for state in states):  # type: ignore
        shapes = sorted({tuple(state.shape) for state in states or () if state is not None})
        raise UnsupportedModelError(
            "The model does not return one hidden state for each layer, example and position.",
            got=f"{type(outputs).__name__} with hidden states of shape {shapes}" if shapes else type(outputs).__name__,
            allowed="hidden_states, each (B, T, D): encoders and decoders, but not both in one, and no soft prompts",
        )
    return [EMBEDDINGS, *(f"block.{number}" for number in range(len(states) - 1))]  # type: ignore[arg-type]


def pooled(state: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """One vector (B, D) in float32 or better of each example.

    Args:
        state: Hidden states (B, T, D).
        mask: (B, T), not 0 where a position counts; None: all count.
        pooling: One of `POOLINGS`.

    Raises:
        DataError: An example has no position that counts, or the mask has another shape.

    Example:
        >>> states = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> [pooled(states, torch.tensor([[1, 1, 0]]), pooling).item() for pooling in ("mean", "first", "last")]
        [2.0, 1.0, 3.0]
    """
    state = full_precision(state)
    if mask is None:
        mask = state.new_ones(state.shape[:2])
    if mask.shape != state.shape[:2]:
        raise DataError(
            "The attention mask does not say which positions count.",
            got=tuple(mask.shape),
            allowed=f"{tuple(state.shape[:2])}, one number a position",
        )
    counts = mask != 0
    if not bool(counts.any(1).all()):
        raise DataError("An example has no position that counts.", got="an attention mask of zeros only")
    if pooling == MEAN:
        # Padding may hold anything, NaN too: it is replaced, not multiplied by 0.
        kept = state.masked_fill(~counts[..., None], 0.0)
        return kept.sum(1) / counts.sum(1, keepdim=True)
    positions = torch.arange(state.shape[1], device=state.device).expand_as(counts)
    one = positions.masked_fill(~counts, -1).amax(1)
    if pooling == FIRST:
        one = positions.masked_fill(~counts, state.shape[1]).amin(1)
    return state[torch.arange(len(state), device=state.device), one]


@contextmanager
def _nothing_added(model: nn.Module) -> Iterator[None]:
    """Remove the forward hooks and attributes that transformers adds when it is first asked for hidden states."""
    before = {module: (set(module.__dict__), set(module._forward_hooks)) for module in model.modules()}
    try:
        yield
    finally:
        for module, (attributes, hooks) in before.items():
            for number in set(module._forward_hooks) - hooks:
                del module._forward_hooks[number]
            for name in set(module.__dict__) - attributes:
                del module.__dict__[name]


def _wanted(layers: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The names of the layers that are wanted.

    Raises:
        ConfigurationError: One is not known, or none is wanted.
    """
    known = list(known)
    wanted = known if layers is None else list(layers)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ConfigurationError(
            "Unknown layer." if unknown else "There is no layer to look at.",
            got=", ".join(unknown) if unknown else "layers=()",
            allowed=", ".join(known),
            fix=did_you_mean(unknown[0], known) if unknown else "Leave layers= out for all.",
        )
    return wanted


def _check_finite(parts: Mapping[str, Tensor], index: int) -> None:
    broken = [name for name, vectors in parts.items() if not bool(torch.isfinite(vectors).all())]
    if broken:
        raise NonFiniteError(
            f"What the model makes of batch {index} is not finite.",
            got=", ".join(broken),
            fix="The model has diverged, or overflows in half precision: load it in float32.",
        )
