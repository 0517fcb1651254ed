"""Who is to be credited: for bundled data and models, and for methods. Plain text that needs no heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Attribution:
    """What a bundled source is called elsewhere, its license and what to cite.

    Attributes:
        name: What a reader calls it; of a model, its name on the Hub.
        license: Identifier as the Hub writes it.
        citation: What to cite.
        url: Where it is from.
        language: Of the texts, ISO 639-1; None: they are in several.
    """

    name: str
    license: str
    citation: str
    url: str
    language: str | None = None


VADER = Attribution(
    "VADER ICWSM-2014",
    "MIT",
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social "
    "Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14). Ann Arbor, MI, June 2014.",
    "https://github.com/cjhutto/vaderSentiment",
    "en",
)
INTENTS = Attribution(
    "Home Assistant intents",
    "Apache-2.0",
    "Home Assistant intents, version 2026.10.27. Open Home Foundation and contributors. "
    "https://github.com/OHF-Voice/intents",
    "https://github.com/OHF-Voice/intents",
)
MINILM = Attribution(
    "sentence-transformers/all-MiniLM-L6-v2",
    "Apache-2.0",
    "Reimers, N. & Gurevych, I. (2019). Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks. EMNLP 2019. "
    "arXiv 1908.10084. Model: sentence-transformers/all-MiniLM-L6-v2.",
    "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    "en",
)
BUNDLED = {
    "bundled:vader-icwsm2014": VADER,
    "bundled:home-assistant-intents": INTENTS,
    "bundled:all-MiniLM-L6-v2": MINILM,
}

# What the comparison follows, whatever the arm.
STUDY_OF_THE_EARLY_PERIOD = (
    "Liu, C.C. & Gurevych, I. (2024). Early Period of Training Impacts Adaptation for Out-of-Distribution "
    "Generalization: An Empirical Study. arXiv 2403.15210."
)
GRADUAL_UNFREEZING = (
    "Howard, J. & Ruder, S. (2018). Universal Language Model Fine-tuning for Text Classification. arXiv 1801.06146."
)
_METHODS = {
    "gradual_unfreezing": GRADUAL_UNFREEZING,
    "lisa": "Pan, R. et al. (2024). LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model "
    "Fine-Tuning. arXiv 2403.17919.",
    "autofreeze": "Liu, Y. et al. (2021). AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning. "
    "arXiv 2102.01386.",
}
_ORDERS = {
    "fisher_trace": "Liu, C.C. et al. (2024). Improving Generalization of Adapter-Based Cross-lingual Transfer with "
    "Scheduled Unfreezing. arXiv 2301.05487.",
    "relative_gradient_norm": "Lee, Y. et al. (2023). Surgical Fine-Tuning Improves Adaptation to Distribution Shifts. "
    "arXiv 2210.11466.",
}
_ORDERS["fisher_trace_batch_mean"] = _ORDERS["fisher_trace"]
_LP_FT = (
    "Kumar, A. et al. (2022). Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution. "
    "arXiv 2202.10054."
)
_SEAL = (
    "Sarfi, A.M. et al. (2023). Simulated Annealing in Early Layers Leads to Better Generalization. arXiv 2304.04858."
)
_FORGETTING = "Zhou, H. et al. (2022). Fortuitous Forgetting in Connectionist Networks. arXiv 2202.00155."
_PENALTY = (
    "Jastrzebski, S. et al. (2021). Catastrophic Fisher Explosion: Early Phase Fisher Matrix Impacts Generalization. "
    "arXiv 2012.14193."
)
_EARLY_PHASE = (
    "Frankle, J., Schwab, D.J. & Morcos, A.S. (2020). The Early Phase of Neural Network Training. arXiv 2002.10365."
)
_LAYERS_EQUAL = "Zhang, C., Bengio, S. & Singer, Y. (2019). Are All Layers Created Equal? arXiv 1902.01996."
_WISE_FT = "Wortsman, M. et al. (2022). Robust fine-tuning of zero-shot models. arXiv 2109.01903."
_LORA = "Hu, E.J. et al. (2021). LoRA: Low-Rank Adaptation of Large Language Models. arXiv 2106.09685."


def of_method(config: Mapping[str, Any]) -> list[str]:
    """What to cite for the way a run was trained.

    Args:
        config: The keys of a run; what is missing is taken for off.

    Example:
        >>> len(of_method({"intervention": {"method": "standard"}}))
        1
        >>> [text.split(" (")[0] for text in of_method({"intervention": {"method": "lisa", "fisher_penalty": {}}})]
        ['Liu, C.C. & Gurevych, I.', 'Pan, R. et al.', 'Jastrzebski, S. et al.']
    """
    intervention = config.get("intervention") or {}
    method = intervention.get("method")
    found = [STUDY_OF_THE_EARLY_PERIOD]
    if method in _METHODS:
        found.append(_METHODS[method])
    if method == "gradual_unfreezing":
        found += [_ORDERS[order] for order in [intervention.get("order")] if order in _ORDERS]
        found += [_LP_FT] if intervention.get("release") == "all_at_once" else []
    generations = intervention.get("generations")
    if generations is not None:
        found += [_SEAL] if generations.get("ascent") is not None else []
        found += [_FORGETTING] if generations.get("forget") else []
    found += [_PENALTY] if intervention.get("fisher_penalty") is not None else []
    perturbation = intervention.get("perturbation")
    if perturbation is not None:
        found.append(_LAYERS_EQUAL if str(perturbation.get("kind")).startswith("reset_to") else _EARLY_PHASE)
    found += [_WISE_FT] if intervention.get("weight_interpolation") is not None else []
    found += [_LORA] if (config.get("model") or {}).get("lora") is not None else []
    return found
