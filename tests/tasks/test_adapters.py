from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from hf_early_ood import find_layer_groups
from hf_early_ood.errors import UnsupportedModelError
from hf_early_ood.tasks.adapters import with_lora
from tests import families

INPUTS = {"input_ids": torch.tensor([[1, 5, 6, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_adapters_change_nothing_at_first_and_only_they_and_the_head_train(family):
    model = families.build(family).eval()
    before = model(**INPUTS).logits
    head = set(find_layer_groups(model)["head"].parameters)
    targets = ["all-linear"] if family in ("distilbert", "modernbert") else None
    adapted = with_lora(model, r=2, alpha=4.0, target_modules=targets).eval()
    assert torch.equal(adapted(**INPUTS).logits, before)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    of_head = {name for name in trainable if "lora_" not in name}
    plain = {name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") for name in of_head}
    assert plain == head
    assert len(trainable) > len(of_head)


def test_the_head_and_the_adapters_are_saved(tmp_path):
    adapted = with_lora(families.build("bert"), r=2).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    wanted = adapted(**INPUTS).logits
    adapted.save_pretrained(tmp_path / "adapter")
    families.build("bert").save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=wanted.shape[-1])
    again = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(again(**INPUTS).logits, wanted)


def test_layers_that_are_not_there_are_an_error():
    with pytest.raises(
        UnsupportedModelError, match=r"peft cannot add adapters.*Name layers of the model in model\.lora"
    ):
        with_lora(families.build("bert"), target_modules=["no_such_layer"])
