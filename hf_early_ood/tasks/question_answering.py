"""Questions whose answer is a piece of a text: windows over long texts, batches, loss, answers.

A context that does not fit is cut into windows that overlap; the question stands before each of them. A model learns
where in a window the answer starts and where it ends, and that a window without it starts and ends at its first
token, [CLS] (Devlin et al. 2019, 1810.04805, section 4.3). Where the tokenizer puts [CLS] elsewhere, as that of XLNet
does, it is there; models that have none use their first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
from transformers.utils import logging

from hf_early_ood.bundled import resolve_model
from hf_early_ood.errors import ConfigurationError, DataError, NonFiniteError
from hf_early_ood.evaluation.metrics import FloatArray
from hf_early_ood.evaluation.predictions import Predictions
from hf_early_ood.names import ANSWERS, CONTEXT, F1, GROUP, ID, QUESTION, QUESTION_ANSWERING
from hf_early_ood.probes.isolation import eval_mode
from hf_early_ood.tasks.answer_loss import END_POSITIONS, START_POSITIONS, span_logits
from hf_early_ood.tasks.answer_spans import Answer, Window, best_answers, no_answer
from hf_early_ood.tasks.answer_windows import Windows, cut_into_windows, place_of_answer, token_positions
from hf_early_ood.tasks.base import Collator, Task
from hf_early_ood.tasks.sequence_classification import check_max_length, data_collator, load_tokenizer, not_loaded

logger = logging.get_logger(__name__)

_CHUNK = 200  # questions cut into windows at a time


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """Extractive question answering, with answers that the context may lack (SQuAD 2.0) if ``no_answer`` says so.

    An answer is predicted as follows. A span of tokens scores the sum of its start and its end logit; every span of
    ``max_answer_length`` tokens or fewer in every window is looked at, and the best one is cut out of the context as it
    is written there. With ``no_answer``, the answer is "" if [CLS] as start and end scores higher in every window. Both
    are the rules of the original code of BERT, but that code looks at the best 20 starts and ends only.

    A data set has the columns question, context and answers ({"text": [...], "answer_start": [...]}, of which the first
    one is learned), and may have id and group. Without an id, questions are numbered: "0", "1" and so on.

    Attributes:
        max_length: Longest input T, in tokens with special ones. Contexts are cut to fit, questions never are.
        doc_stride: Tokens of the context that a window shares with the one before, ``stride`` of the tokenizer. (In the
            original code of BERT, the key of this name is the step from one window to the next.)
        max_answer_length: Tokens in the longest answer that is predicted.
        n_best: Answers to each question that `n_best_answers` returns. `Predictions` hold the best one only.
        no_answer: Whether there are questions without an answer.

    Raises:
        ConfigurationError: A setting is out of its range.

    Example:
        >>> task = QuestionAnswering(max_length=24, doc_stride=4)
        >>> tokenizer = load_tokenizer("bundled:all-MiniLM-L6-v2")
        >>> answers = {"text": ["Paris"], "answer_start": [3]}
        >>> rows = {"question": ["Where is it?"], "context": ["In Paris. " * 6], "answers": [answers]}
        >>> task.encode(Dataset.from_dict(rows), tokenizer)["start_positions"][:]
        [7, 0]
    """

    name: ClassVar[str] = QUESTION_ANSWERING
    metric: ClassVar[str] = F1
    roles: ClassVar[Mapping[str, bool]] = {QUESTION: True, CONTEXT: True, ANSWERS: True, ID: False, GROUP: False}

    max_length: int = 384
    doc_stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20
    no_answer: bool = False

    def __post_init__(self) -> None:
        for setting, lowest in (("max_length", 1), ("doc_stride", 0), ("max_answer_length", 1), ("n_best", 1)):
            if getattr(self, setting) < lowest:
                raise ConfigurationError(f"{setting} is too small.", got=getattr(self, setting), allowed=f">= {lowest}")
        if self.doc_stride >= self.max_length:
            raise ConfigurationError(
                "A window would share all of its tokens with the one before.",
                got=f"doc_stride={self.doc_stride}, max_length={self.max_length}",
                allowed="doc_stride < max_length, less the tokens of the question",
            )

    def load(
        self, model_name: str, label_names: Sequence[str] = (), *, seed: int = 0, revision: str | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Pretrained model with a head for starts and ends, new where the checkpoint has none, and its tokenizer.

        Args:
            model_name: ``bundled:all-MiniLM-L6-v2``, a local folder or a Hub id.
            label_names: Not used: answers are no labels.
            seed: Seed of the new head; all global random number generators are seeded.
            revision: Revision on the Hub.

        Raises:
            UnsupportedModelError: If there is no such model, or its tokenizer is a slow one.
        """
        tokenizer = load_tokenizer(model_name, revision=revision)
        set_seed(seed)
        model = AutoModelForQuestionAnswering.from_pretrained(
            resolve_model(model_name), revision=revision, dtype=torch.float32
        )
        return model, tokenizer

    def empty(self, model_name: str, *, num_labels: int = 2, revision: str | None = None) -> PreTrainedModel:
        """The architecture without weights; its two outputs are start and end, whatever ``num_labels`` is."""
        try:
            config = AutoConfig.from_pretrained(resolve_model(model_name), revision=revision, num_labels=2)
        except (OSError, ValueError) as error:
            raise not_loaded("config", model_name, error) from error
        with torch.device("meta"):
            return AutoModelForQuestionAnswering.from_config(config)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """Windows with the positions of the tokens where the answer starts and ends, not padded.

        A window that does not hold the whole answer has both at [CLS]. If no window of a question holds it (it is
        longer than what windows share, or the tokenizer drops its characters), the question is learned as one without
        an answer. Questions whose answer has no known place (``answer_start`` is -1) are left out. How many there are
        of both is logged.

        Args:
            dataset: As the class says.
            tokenizer: A fast one.

        Returns:
            Data set with the inputs of the model, start_positions and end_positions: a row for each window, those of a
            question together, in the order of the questions.

        Raises:
            DataError: If something is wrong with the data: a column, an answer that is not where it is said to be, a
                question that leaves no room for a window, one without an answer in spite of ``no_answer``.
            ConfigurationError: If ``max_length`` is more than the model takes.
            UnsupportedModelError: If the tokenizer cannot tell where its tokens are in the text.
        """
        self._check(dataset, tokenizer)
        located = [row for row, given in enumerate(dataset[ANSWERS][:]) if -1 not in given["answer_start"][:1]]
        if not located:
            raise DataError(
                "No answer has a known place.", fix="Give answer_start, the number of characters before it."
            )
        encoded, lost = [], 0
        for batch in _chunks(dataset.select(located), "Tokenizing"):
            windows = self._cut(batch, tokenizer)
            answers = map(place_of_answer, batch[ANSWERS], batch[CONTEXT])
            positions: list[tuple[int, int]] = []
            for answer, of_question in zip(answers, windows.by_question, strict=True):
                found = token_positions(of_question, answer)
                lost += answer is not None and not any(found)
                positions += [pair or (tokens.null,) * 2 for pair, tokens in zip(found, of_question, strict=True)]
            starts, ends = zip(*positions, strict=True)
            encoded.append(Dataset.from_dict({**windows.inputs, START_POSITIONS: starts, END_POSITIONS: ends}))
        if lost or len(located) < len(dataset):
            logger.warning(
                f"Of {len(dataset)} questions, {lost} have an answer that is in no window as a whole and are learned as"
                f" without one, and {len(dataset) - len(located)} have an answer without a place and are left out."
            )
        return concatenate_datasets(encoded)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads a batch to its longest window; positions move along where padding comes first."""
        return AnswerCollator(data_collator(tokenizer))

    def predict(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        *,
        batch_size: int = 64,
        language: str | None = None,
    ) -> Predictions:
        """The best answer to every question.

        ``score`` is the score of the best answer less that of [CLS]: with ``no_answer``, "" is predicted below 0. It
        orders questions by how sure the model is that there is an answer.

        Args:
            model: Any with start and end logits.
            tokenizer: Its tokenizer, a fast one.
            dataset: As the class says; where answers start does not matter.
            batch_size: Windows B in a batch.
            language: ISO 639-1 code, for the rules of scoring.

        Raises:
            DataError: As for `encode`, or no token of a context is left.
            NonFiniteError: If a logit is not finite.
        """
        found = self._answers(model, tokenizer, dataset, batch_size)
        answers, scores = [], []
        for (best, null), context in zip(found, dataset[CONTEXT][:], strict=True):
            is_left_out = self.no_answer and best[0].score < null.score
            answers.append("" if is_left_out else context[best[0].begin : best[0].end])
            scores.append(best[0].score - null.score)
        columns: dict[str, Sequence[Any]] = {
            ID: _ids(dataset),
            "label": [list(right["text"]) for right in dataset[ANSWERS][:]],
            "prediction": answers,
            "score": scores,
        }
        groups = tuple(map(str, dataset[GROUP][:])) if GROUP in dataset.column_names else None
        return Predictions(self.name, columns, language=language, groups=groups)

    def n_best_answers(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        dataset: Dataset,
        *,
        batch_size: int = 64,
    ) -> list[list[Answer]]:
        """The best answers to every question, at most ``n_best``, the best first.

        With ``no_answer``, that there is none is one of them, with ``begin == end``, if it is among the best. An
        answer reads ``context[answer.begin : answer.end]``.

        Args:
            model: As for `predict`.
            tokenizer: As for `predict`.
            dataset: As for `predict`.
            batch_size: Windows in a batch.

        Raises:
            EarlyOODError: As for `predict`.
        """
        return [
            sorted([*best, null] if self.no_answer else best, key=lambda answer: -answer.score)[: self.n_best]
            for best, null in self._answers(model, tokenizer, dataset, batch_size)
        ]

    def _answers(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, batch_size: int
    ) -> list[tuple[list[Answer], Answer]]:
        """For each question the best answers, and that there is none."""
        if batch_size < 1:
            raise ConfigurationError("The batch size is too small.", got=batch_size, allowed="1 or more")
        self._check(dataset, tokenizer)
        answers = []
        # no_grad, not inference_mode: what a model caches in its forward pass must stay usable for training.
        with eval_mode(model), torch.no_grad():
            for batch in _chunks(dataset, "Answering"):
                windows = self._cut(batch, tokenizer)
                logits = iter(_window_logits(model, tokenizer, windows.inputs, batch_size))
                for of_question, context in zip(windows.by_question, batch[CONTEXT], strict=True):
                    judged = [Window(*next(logits), tokens) for tokens in of_question]
                    best = best_answers(judged, context, max_tokens=self.max_answer_length, count=self.n_best)
                    if not best:
                        raise DataError("The tokenizer leaves nothing of a context.", got=repr(context[:80]))
                    answers.append((best, no_answer(judged)))
        return answers

    def _cut(self, batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Windows:
        return cut_into_windows(
            batch[QUESTION], batch[CONTEXT], tokenizer, max_length=self.max_length, overlap=self.doc_stride
        )

    def _check(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        check_max_length(tokenizer, self.max_length, pair=True)
        missing = [role for role, needed in self.roles.items() if needed and role not in dataset.column_names]
        if missing:
            raise DataError(
                "A column is not there.",
                got=", ".join(dataset.column_names),
                allowed=", ".join(self.roles),
                fix=f"Add {', '.join(missing)}.",
            )
        if len(dataset) == 0:
            raise DataError("There are no questions.", fix="Leave the split out.")
        rows = zip(_ids(dataset), dataset[QUESTION][:], dataset[CONTEXT][:], dataset[ANSWERS][:], strict=True)
        for name, question, context, answers in rows:
            for role, text in ((QUESTION, question), (CONTEXT, context)):
                if not isinstance(text, str) or not text.strip():
                    raise DataError(f"The {role} of question {name} is not a text.", got=repr(text), allowed="a text")
            if not self.no_answer and not answers["text"]:
                raise DataError(
                    "A question has no answer.",
                    got=f"question {name}",
                    fix="Set no_answer=True to have such questions answered by an empty text, or leave them out.",
                )


@dataclass(frozen=True)
class AnswerCollator:
    """Rows of `QuestionAnswering.encode` -> batch of tensors.

    Attributes:
        pad: Pads inputs to the longest.
    """

    pad: DataCollatorWithPadding

    def __call__(self, rows: list[dict[str, Any]]) -> Mapping[str, torch.Tensor]:
        """Pad, and move positions behind padding that comes first."""
        batch = self.pad(rows)
        if self.pad.tokenizer.padding_side == "left":
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            for key in (START_POSITIONS, END_POSITIONS):
                if key in batch:
                    batch[key] += batch["input_ids"].shape[1] - lengths
        return batch


def _chunks(dataset: Dataset, what: str) -> Iterator[dict[str, list[Any]]]:
    """Columns of some questions after the other."""
    # Not `Dataset.map`, whose progress bars are not quiet outside of a terminal.
    for start in tqdm(range(0, len(dataset), _CHUNK), desc=what, disable=None, leave=False):
        yield dataset[start : start + _CHUNK]


def _ids(dataset: Dataset) -> list[str]:
    if ID in dataset.column_names:
        return [str(name) for name in dataset[ID][:]]
    return [str(number) for number in range(len(dataset))]


def _window_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Mapping[str, list[list[int]]], batch_size: int
) -> list[tuple[FloatArray, FloatArray]]:
    """Start and end logits (T,) of each window without its padding, in float32."""
    device, pad = next(model.parameters()).device, data_collator(tokenizer)
    lengths = [len(ids) for ids in inputs["input_ids"]]
    logits: dict[int, tuple[FloatArray, FloatArray]] = {}
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])  # little is computed for padding
    for first in range(0, len(longest_first), batch_size):
        rows = longest_first[first : first + batch_size]
        batch = pad([{key: values[row] for key, values in inputs.items()} for row in rows])
        outputs = model(**{key: tensor.to(device) for key, tensor in batch.items()})
        starts, ends = (part.float().cpu().numpy() for part in span_logits(outputs))
        for row, start, end in zip(rows, starts, ends, strict=True):
            kept = slice(-lengths[row], None) if tokenizer.padding_side == "left" else slice(lengths[row])
            if not (np.isfinite(start[kept]).all() and np.isfinite(end[kept]).all()):
                raise NonFiniteError(
                    "The model's logits are not finite.",
                    fix="The model has diverged or its inputs are broken: look at the loss and the learning rate.",
                )
            logits[row] = start[kept], end[kept]
    return [logits[row] for row in range(len(lengths))]


def is_question_answering(model: nn.Module) -> bool:
    """Whether a model, or the model inside a peft wrapper, has start and end logits.

    Args:
        model: Any model.

    Returns:
        True for the classes behind ``AutoModelForQuestionAnswering`` and their subclasses.

    Example:
        >>> is_question_answering(QuestionAnswering().empty("bundled:all-MiniLM-L6-v2"))
        True
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    known = set(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values())
    return any(kind.__name__ in known for kind in type(base).__mro__)
