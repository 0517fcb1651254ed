from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_early_ood.data import SplitInfo
from hf_early_ood.evaluation.predictions import Predictions
from hf_early_ood.evaluation.scoring import score
from hf_early_ood.tasks.configured import predict_splits

NLI = ("entailment", "neutral", "contradiction")
PROBABILITIES = np.float32([[0.4, 0.3, 0.3], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])


class SaysTheSame:
    """A task whose model has these probabilities, whatever it is asked."""

    def predict(self, model, tokenizer, dataset, *, batch_size, language):
        columns = {"label": dataset["label"][:], "prediction": PROBABILITIES.argmax(-1), "probabilities": PROBABILITIES}
        return Predictions("sequence_classification", columns, NLI, language)


def test_labels_of_a_coarser_set_are_its_own_and_predictions_are_mapped():
    """Judged as HANS is: by the most probable of three labels, not by the larger of two sums."""
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    two = ("entailment", "non-entailment")
    info = {"id_test": SplitInfo(NLI), "ood/hans": SplitInfo(two, coarse=(0, 1, 1), language="en")}
    found = predict_splits(SaysTheSame(), None, None, dict.fromkeys(info, dataset), info)
    assert (found["id_test"].label_names, found["ood/hans"].label_names) == (NLI, two)
    hans = found["ood/hans"]
    assert list(hans.columns["label"]) == [0, 1, 0]
    assert list(hans.columns["prediction"]) == [0, 1, 1]  # the first has 0.6 for not entailing
    np.testing.assert_allclose(hans.columns["probabilities"], [[0.4, 0.6], [0.2, 0.8], [0.1, 0.9]], rtol=1e-6)
    assert hans.language == "en"
    assert score(hans).value("accuracy") == 2 / 3
    assert list(found["id_test"].columns["prediction"]) == [0, 1, 2]
