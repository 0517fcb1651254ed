"""Low-rank adapters on a model of a task."""

from __future__ import annotations

from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.layers import find_layer_groups

ALL_LINEAR = "all-linear"


def with_lora(
    model: PreTrainedModel,
    *,
    r: int = 8,
    alpha: float = 8.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
) -> PeftModel:
    """Freeze a model and add low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685); its head trains whole.

    A layer W (out, in) computes W x + (alpha / r) B A x, with A (r, in) drawn at random and B (out, r) zero: before
    the first update, the model is the same as without. The head is the layer group of this name, with its pooler if it
    has one: what is new has to be learned, and is saved with the adapters.

    Args:
        model: Model of a task, on the CPU or a device; it is changed.
        r: Rank.
        alpha: Scale of what the adapters add, times r.
        dropout: Of the inputs of the adapters.
        target_modules: Ends of the names of the layers that get adapters, or ``["all-linear"]``; ``None``: what peft
            chooses for the architecture (queries and values of attention for BERT and XLM-R).

    Returns:
        The model with adapters.

    Raises:
        UnsupportedModelError: If peft does not know which layers to choose, or none is named so.

    Example:
        >>> from transformers import BertConfig, BertForTokenClassification
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        >>> model = with_lora(BertForTokenClassification(config), r=2)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad][-1]
        'base_model.model.classifier.modules_to_save.default.bias'
    """
    paths = [name.removeprefix(f"{model.base_model_prefix}.") for name in find_layer_groups(model)["head"].parameters]
    head = dict.fromkeys(path.split(".")[0] for path in paths)
    targets = ALL_LINEAR if target_modules is not None and list(target_modules) == [ALL_LINEAR] else target_modules
    settings = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it only
        lora_dropout=dropout,
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        modules_to_save=list(head),
    )
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        raise UnsupportedModelError(
            f"peft cannot add adapters: {error}",
            got=f"{type(model).__name__}, target_modules={target_modules}",
            fix="Name layers of the model in model.lora.target_modules.",
        ) from error
