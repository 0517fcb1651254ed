"""From examples to batches, losses, models and predictions, one module a task."""

from __future__ import annotations

from hf_early_ood.tasks.base import Task
from hf_early_ood.tasks.loading import task_of_model
from hf_early_ood.tasks.multiple_choice import MultipleChoice
from hf_early_ood.tasks.question_answering import QuestionAnswering
from hf_early_ood.tasks.sequence_classification import SequenceClassification
from hf_early_ood.tasks.token_classification import TokenClassification

__all__ = [
    "TASKS",
    "MultipleChoice",
    "QuestionAnswering",
    "SequenceClassification",
    "Task",
    "TokenClassification",
    "task_of_model",
]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (SequenceClassification, TokenClassification, QuestionAnswering, MultipleChoice)
}
"""As in the key ``task`` of a configuration."""
