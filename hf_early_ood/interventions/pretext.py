r"""Pretexts: what the first updates are trained on in place of the task. B examples, T positions, C classes.

Source: Frankle, Schwab, Morcos 2020, "The Early Phase of Neural Network Training" (arXiv 2002.10365), who ask how much
of the early phase depends on the data: a network is trained for a while on random labels, on blurred images, or on
which way an image was turned, and then on the task. **Not verified against the paper**: which of these it has, and how
it does them, is from memory. The analogues for text are ours:

* *Random labels*: the label of an example is drawn once and for all, with the frequencies of the training set, so that
  nothing but the dependence of labels on inputs is gone (where all classes are equally frequent, it is uniform).
* *Shuffled tokens*, in place of blurred images: a fixed transformation of each input that keeps its label, and what is
  in a text but not its order.
* *Masked language modeling* (Devlin et al. 2019, arXiv 1810.04805, section 3.1), in place of turned images: no labels.

**Draws.** Whatever is random about an example is drawn with a seed that is the SHA-256 of ``seed`` and of the token
ids of this example without padding (for masking, of the number of completed updates, too). So it is the same on any
rank, in any batch, with any padding, and after a resume, and no random number of the training is used up. Two examples
with the same tokens have the same draws. Ids are brought to the CPU for it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_early_ood import names
from hf_early_ood.errors import ConfigurationError, DataError
from hf_early_ood.names import LABEL, LABELS
from hf_early_ood.probes.outcomes import IGNORED
from hf_early_ood.tasks.answer_loss import END_POSITIONS, START_POSITIONS

RANDOM_LABELS, SHUFFLED_TOKENS, MASKED_LM = PRETEXTS = ("random_labels", "shuffled_tokens", "masked_lm")
TASKS_WITH_LABELS = (names.SEQUENCE_CLASSIFICATION, names.TOKEN_CLASSIFICATION, names.MULTIPLE_CHOICE)

_IDS, _MASK = "input_ids", "attention_mask"
_MASKED, _REPLACED = 0.8, 0.1  # of the tokens that are chosen, Devlin et al. 2019


@dataclass(frozen=True)
class Vocabulary:
    """What must be known of the tokens.

    Attributes:
        special: Ids of all special tokens, the unknown one too.
        structural: Those that are no words: all but the unknown one.
        mask: Id of the mask token; None: there is none.
        size: Ids are less than this.
    """

    special: tuple[int, ...]
    structural: tuple[int, ...]
    mask: int | None
    size: int

    def within(self, size: int) -> Vocabulary:
        """The part of it that has embeddings: some tokenizers know tokens that their model does not."""
        return replace(self, size=min(self.size, size))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """That of a tokenizer.

        Example:
            >>> from hf_early_ood.tasks.loading import load_tokenizer
            >>> Vocabulary.of(load_tokenizer("bundled:all-MiniLM-L6-v2"))
            Vocabulary(special=(0, 100, 101, 102, 103), structural=(0, 101, 102, 103), mask=103, size=30522)
        """
        special = set(map(int, tokenizer.all_special_ids))
        token_of: Mapping[str, Any] = tokenizer.special_tokens_map
        unknown = token_of.get("unk_token")
        others = {str(token) for key, token in token_of.items() if key != "unk_token" and isinstance(token, str)}
        # GPT-2 has one token for everything, with which its texts end.
        words = set() if unknown is None or str(unknown) in others else {tokenizer.unk_token_id}
        mask = tokenizer.mask_token_id
        return cls(tuple(sorted(special)), tuple(sorted(special - words)), mask, len(tokenizer))


def label_counts(dataset: Any, num_classes: int | None = None) -> Tensor:
    """How often a training set has each label; labels of -100 are left out.

    Args:
        dataset: Rows with ``labels`` (or ``label``): one class, or a list of classes. All are read once.
        num_classes: C; None: as many as there are.

    Returns:
        (C,), whole numbers.

    Raises:
        DataError: The set cannot be counted, or labels are no classes.

    Example:
        >>> label_counts([{"labels": 1}, {"labels": 1}, {"labels": [-100, 0]}], 3)
        tensor([1, 2, 0])
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(
            "Random labels are drawn with the frequencies of the training set, which can be read only as it comes.",
            got=type(dataset).__name__,
            fix="Give a data set with a length, or another pretext.",
        )
    found: Counter[Any] = Counter()
    for labels in _labels_of(dataset):
        found.update(torch.as_tensor(labels).flatten().tolist())
    found.pop(IGNORED, None)
    if not found:
        raise DataError("No example of the training set has a label.", fix='Keep the column "labels".')
    wrong = [label for label in found if not isinstance(label, int) or not 0 <= label < (num_classes or label + 1)]
    if wrong:
        classes = "whole numbers from 0 on" + (f", less than {num_classes}" if num_classes else "")
        raise DataError("A label of the training set is no class.", got=wrong[0], allowed=classes)
    return torch.tensor([found[label] for label in range(num_classes or max(found) + 1)])


def _labels_of(dataset: Any) -> Iterator[Any]:
    # What a transform makes of rows is only known of whole ones.
    if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":
        column = next((name for name in (LABELS, LABEL) if name in dataset.column_names), None)
        yield from [] if column is None else dataset[column][:]
        return
    for number in range(len(dataset)):
        row = dataset[number]
        label = row.get(LABELS, row.get(LABEL))
        if label is not None:
            yield label


def with_random_labels(
    batch: Mapping[str, Any], counts: Tensor, *, seed: int, pad: int | None = None
) -> dict[str, Any]:
    """A batch whose labels have nothing to do with its inputs.

    Every label other than -100 is drawn from the frequencies ``counts``, independently of all others; the labels of one
    example are always the same.

    Args:
        batch: input_ids (B, T) or, of several choices each, (B, choices, T); labels (B,) or (B, T); it is not changed.
        counts: (C,) as `label_counts` has them.
        seed: Of the draws.
        pad: Id of the padding token, for a batch without attention_mask.

    Raises:
        DataError: There are no labels.

    Example:
        >>> batch = {"input_ids": torch.tensor([[5, 6], [7, 8]]), "labels": torch.tensor([0, 0])}
        >>> with_random_labels(batch, torch.tensor([0, 1]), seed=0)["labels"]
        tensor([1, 1])
    """
    if LABELS not in batch:
        raise DataError("The batch has no labels.", got=", ".join(batch), fix='Keep the column "labels".')
    ids, seen = _tokens(batch, pad)
    given: Tensor = batch[LABELS]
    drawn, reached = given.cpu().clone(), counts.cumsum(0)
    labels = drawn.view(len(drawn), -1)  # one row an example
    for row, generator in zip(labels, _generators(ids.flatten(1), seen.flatten(1), seed), strict=True):
        counted = row != IGNORED
        numbers = torch.randint(int(reached[-1]), (int(counted.sum()),), generator=generator)
        row[counted] = torch.bucketize(numbers, reached, right=True).to(row.dtype)
    return {**batch, LABELS: drawn.to(given.device)}


def with_random_spans(
    batch: Mapping[str, Any], vocabulary: Vocabulary, *, seed: int, pad: int | None = None
) -> dict[str, Any]:
    """A batch of questions whose answers are anywhere in their contexts.

    Start and end are the lower and the higher of two tokens of the context, each drawn uniformly; in every row, also
    one without an answer. The context is the last stretch of tokens between special ones, as the question comes first;
    where nothing separates the two, it is both.

    Args:
        batch: input_ids (B, T), start_positions and end_positions (B,); it is not changed.
        vocabulary: Of the tokenizer.
        seed: Of the draws.
        pad: As for `with_random_labels`.

    Example:
        >>> batch = {"input_ids": torch.tensor([[1, 5, 1, 6, 1]]), "start_positions": torch.tensor([0])}
        >>> spans = with_random_spans(batch, Vocabulary((1,), (1,), None, 9), seed=0)
        >>> spans["start_positions"], spans["end_positions"]
        (tensor([3]), tensor([3]))
    """
    ids, seen = _tokens(batch, pad)
    ends = []
    for row, mask, generator in zip(ids, seen, _generators(ids, seen, seed), strict=True):
        context = _stretches(row, mask, None, vocabulary)[-1]
        if not len(context):
            raise DataError("A row of questions has no token that could be an answer.", got=row.tolist())
        ends.append(context[torch.randint(len(context), (2,), generator=generator)].sort().values)
    starts, stops = torch.stack(ends).to(batch[_IDS].device).unbind(1)
    return {**batch, START_POSITIONS: starts, END_POSITIONS: stops}


def with_shuffled_tokens(
    batch: Mapping[str, Any], vocabulary: Vocabulary, *, seed: int, pad: int | None = None
) -> dict[str, Any]:
    """A batch whose tokens are in another order, a random one that is always the same for an example.

    Special tokens and padding stay where they are; between two of them (and within a token type, where there are some)
    tokens are permuted, each of the orders equally probable, so that the two texts of a pair are shuffled each by
    itself. (Not where a tokenizer puts nothing between them, as that of GPT-2.) Labels of tokens move with them. Of
    several choices, each is shuffled by itself, with what is before it. Pieces of words move, not words.

    Args:
        batch: input_ids (B, T) or (B, choices, T); it is not changed.
        vocabulary: Of the tokenizer.
        seed: Of the draws.
        pad: As for `with_random_labels`.

    Example:
        >>> batch = {"input_ids": torch.tensor([[1, 5, 6, 7, 1]])}
        >>> with_shuffled_tokens(batch, Vocabulary((1,), (1,), None, 9), seed=0)["input_ids"]
        tensor([[1, 6, 5, 7, 1]])
    """
    ids, seen = (part.flatten(0, -2) for part in _tokens(batch, pad))
    given: Tensor = batch[_IDS]
    length = given.shape[-1]
    kinds = batch.get("token_type_ids")
    types = [None] * len(ids) if kinds is None else kinds.cpu().view(-1, length)
    order = torch.arange(length).repeat(len(ids), 1)
    generators = _generators(ids, seen, seed)
    for row, mask, kind, places, generator in zip(ids, seen, types, order, generators, strict=True):
        for stretch in _stretches(row, mask, kind, vocabulary):
            places[stretch] = stretch[torch.randperm(len(stretch), generator=generator)]
    order = order.view(given.shape).to(given.device)
    moved = [key for key in (_IDS, LABELS) if key in batch and batch[key].shape == given.shape]
    return {**batch, **{key: batch[key].gather(-1, order) for key in moved}}


def with_masked_tokens(
    batch: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    probability: float,
    seed: int,
    step: int,
    pad: int | None = None,
) -> dict[str, Any]:
    """A batch of masked language modeling, with what a model needs to return what its language head reads.

    Each token that is neither special nor padding is chosen with ``probability``, independently of the others. Of the
    chosen ones 80 % become the mask token, 10 % any token of the vocabulary (each equally probable, the same one too),
    10 % stay. The label of a chosen token is what it was, that of all others is -100: as
    ``transformers.DataCollatorForLanguageModeling`` does. An example is masked anew whenever it is seen.

    Args:
        batch: input_ids (B, T) or (B, choices, T); it is not changed. Labels of the task are left out.
        vocabulary: Of the tokenizer.
        probability: Of a token to be chosen.
        seed: Of the draws.
        step: Completed updates.
        pad: As for `with_random_labels`.

    Raises:
        ConfigurationError: There is no mask token.

    Example:
        >>> words = Vocabulary(special=(1, 2), structural=(1, 2), mask=2, size=9)
        >>> batch = {"input_ids": torch.tensor([[1, 5, 6, 1]])}
        >>> with_masked_tokens(batch, words, probability=0.999, seed=0, step=0)["labels"]
        tensor([[-100,    5,    6, -100]])
    """
    if vocabulary.mask is None:
        raise no_mask()
    ids, seen = (part.flatten(0, -2) for part in _tokens(batch, pad))
    given: Tensor = batch[_IDS]
    allowed = seen & ~torch.isin(ids, torch.tensor(vocabulary.special))
    masked, labels = ids.clone(), torch.full_like(ids, IGNORED)
    generators = _generators(ids, seen, seed, step)
    for row, label, own, places, generator in zip(masked, labels, ids, allowed, generators, strict=True):
        words = places.nonzero().flatten()
        chosen = words[torch.rand(len(words), generator=generator) < probability]
        kind = torch.rand(len(chosen), generator=generator)
        any_token = torch.randint(vocabulary.size, (len(chosen),), generator=generator)
        label[chosen] = own[chosen]
        new = torch.where(kind < _MASKED, vocabulary.mask, any_token)
        row[chosen] = torch.where(kind < _MASKED + _REPLACED, new, own[chosen])
    answers = (LABELS, LABEL, START_POSITIONS, END_POSITIONS)
    rest = {key: value for key, value in batch.items() if key not in answers}
    shown = {key: part.view(given.shape).to(given.device) for key, part in ((_IDS, masked), (LABELS, labels))}
    return {**rest, **shown, "output_hidden_states": True}


def no_mask() -> ConfigurationError:
    """The error for a tokenizer that cannot mask."""
    return ConfigurationError(
        "The tokenizer has no mask token: its model was not made for masked language modeling.",
        fix=f"Take {RANDOM_LABELS} or {SHUFFLED_TOKENS}, or an encoder that was pretrained with masks.",
    )


def _tokens(batch: Mapping[str, Any], pad: int | None) -> tuple[Tensor, Tensor]:
    """Token ids, and which of them are no padding, on the CPU, of the shape of input_ids."""
    if _IDS not in batch:
        raise DataError("The batch has no token ids.", got=", ".join(batch), allowed=f"a batch with {_IDS}")
    ids = batch[_IDS].cpu().long()
    if batch.get(_MASK) is not None:
        return ids, batch[_MASK].cpu().bool()
    return ids, torch.ones_like(ids, dtype=torch.bool) if pad is None else ids != pad


def _generators(ids: Tensor, seen: Tensor, *salt: int) -> Iterator[torch.Generator]:
    """One for each row of ids (rows, T), which depends on what of it is no padding."""
    for row, mask in zip(ids, seen, strict=True):
        digest = hashlib.sha256(f"{salt} ".encode() + row[mask].numpy().tobytes()).digest()
        yield torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _stretches(ids: Tensor, seen: Tensor, types: Tensor | None, vocabulary: Vocabulary) -> list[Tensor]:
    """Positions of the words of one row (T,), stretch by stretch between special tokens; without words, one empty."""
    places = (seen & ~torch.isin(ids, torch.tensor(vocabulary.structural))).nonzero().flatten()
    breaks = places.diff() != 1
    if types is not None:
        breaks |= types[places].diff() != 0
    return list(places.tensor_split(breaks.nonzero().flatten() + 1))
