"""Out of memory in a measurement: half the batch, then a clear error."""

from __future__ import annotations

import pytest
import torch

from hf_early_ood import names
from hf_early_ood.callbacks.measuring import measure_in_training
from hf_early_ood.errors import NonFiniteError, ProbeError
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.probes.batches import ProbeSet
from hf_early_ood.probes.fisher import ESTIMATORS, fisher_trace
from hf_early_ood.probes.memory import in_pieces, is_out_of_memory
from tests import families


class Small:
    """A device with room for ``most`` examples at a time."""

    def __init__(self, model: torch.nn.Module, most: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.seen: list[int] = []
        self.most, self.error = most, error
        self.handle = model.bert.encoder.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.seen.append(len(args[0]))
        if len(args[0]) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")


def batches(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    return [families.inputs("bert", model, 7, 6), families.inputs("bert", model, 2, 6, seed=1)]


@pytest.mark.sweep(keep=2)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("labels", ["sampled", "expected"])
def test_smaller_batches_give_the_same_trace(error: type[RuntimeError], labels: str) -> None:
    model = families.build("bert").double()
    expected = fisher_trace(model, batches(model), labels=labels)
    small = Small(model, 2, error)
    actual = fisher_trace(model, batches(model), labels=labels)
    assert small.seen == [1, 2, 7, 4, 2, 2, 3, 2, 1, 2]  # the survey's two, 7 in halves, the second batch
    assert actual.total == pytest.approx(expected.total, rel=1e-9)
    assert actual.standard_error == pytest.approx(expected.standard_error, rel=1e-9)


def test_signed_batches_are_halved_too() -> None:
    model = families.build("bert").double()
    small = Small(model, 1)
    trace = fisher_trace(model, batches(model), estimator="rademacher")
    # A batch of one has nothing to mix: the estimate is exact.
    small.handle.remove()
    assert trace.total == pytest.approx(fisher_trace(model, batches(model)).total, rel=1e-9)
    assert trace.num_examples == 9


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_memory_for_one_example(estimator: str) -> None:
    model = families.build("bert").train()
    Small(model, 0)
    what = r"probe batch 0" if estimator in ("loop", "rademacher") else "two short examples"
    with pytest.raises(ProbeError, match=rf"no memory to measure {what}.*Tried to allocate 2\.00 GiB\.\. To fix"):
        fisher_trace(model, batches(model), estimator=estimator)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_other_errors_are_not_taken_for_it() -> None:
    def broken(piece: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        in_pieces(broken, 4, "it")

    def not_finite(piece: slice) -> None:
        raise NonFiniteError("not finite")

    with pytest.raises(NonFiniteError, match="not finite"):
        in_pieces(not_finite, 4, "it")


def test_the_words_of_the_allocators() -> None:
    for message in (
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "MPS backend out of memory",
    ):
        assert is_out_of_memory(RuntimeError(message))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_training_goes_on_without_the_value() -> None:
    model = families.build("bert")
    rows = [{key: value[0] for key, value in families.inputs("bert", model, 1, 6, seed=s).items()} for s in range(4)]

    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    probe_set = ProbeSet.from_dataset(rows, collate, size=4, batch_size=4)
    groups = find_layer_groups(model)
    small = Small(model, 0)
    record = measure_in_training(names.FISHER_TRACE, model, probe_set, groups, seed=0)
    assert (record["value"], record["per_group"], record["num_examples"]) == (None, {}, 4)
    assert "no memory to measure" in record["details"]["error"]
    small.most = 2
    assert measure_in_training(names.FISHER_TRACE, model, probe_set, groups, seed=0)["value"] > 0
