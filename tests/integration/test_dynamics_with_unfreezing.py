"""Both callbacks in one Trainer: what is measured is what trains, also where the groups hold adapters only."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model

from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from tests import families
from tests.training import make_trainer


@pytest.mark.parametrize("measures_first", [False, True])
def test_released_adapters_are_measured(tmp_path, measures_first):
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = get_peft_model(families.build("bert"), config)
    measuring = EarlyDynamicsCallback(every=1, probe_size=8, probe_batch_size=4)
    callbacks = [GradualUnfreezingCallback(interval=2), measuring]
    make_trainer(tmp_path, callbacks[::-1] if measures_first else callbacks, model=model, max_steps=6).train()
    groups = [set(record["per_group"]) for record in measuring.records]
    assert groups[0] == {"head"}
    assert "block.2" in groups[3]
    assert groups[-1] == {"block.1", "block.2", "head"}
    for record in measuring.records:
        assert set(record["per_group"]) == set(record["trainable"]), record
