"""Whether all ranks hold the same weights, bit for bit, as DistributedDataParallel relies on without ever looking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_early_ood.errors import UnsupportedSetupError
from hf_early_ood.sharding import is_distributed

# Positions that are weighted at a time: what is added up stays in the cache of a CPU.
_CHUNK = 2**16
# By size of a number. Longer ones are taken apart: a product modulo 2^64 of their highest bits loses the weight.
_INTEGERS = {1: torch.uint8, 2: torch.int16}


def check_ranks_agree(groups: Mapping[str, Mapping[str, nn.Parameter]], step: int) -> None:
    """Stop on every rank if the parameters that train now are not the same, bit for bit, on all of them.

    It sees what past updates did: a difference appears with the first update of a layer whose gradients are not
    averaged. Costs one pass over these parameters and one all-reduce of two integers for each. Nothing is compared in
    a single process, nor of parameters that a rank holds a part of only.

    Args:
        groups: Layer group to (parameter name to parameter), the same names on every rank.
        step: Completed updates, for the message.

    Raises:
        UnsupportedSetupError: They differ; names the first parameter that does.
    """
    if not is_distributed() or torch.distributed.get_world_size() == 1:
        return
    from torch.distributed.tensor import DTensor

    owners = {
        name: (group, parameter)
        for group, parameters in groups.items()
        for name, parameter in parameters.items()
        if parameter.requires_grad and not isinstance(parameter, DTensor)
    }
    if not owners:
        return
    mine = bit_checksums(parameter for _, parameter in owners.values())
    # The largest c and the largest ~c, which is ~(the smallest c), in one go.
    extremes = torch.cat([mine, ~mine])
    torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
    largest, smallest = extremes[: len(mine)], ~extremes[len(mine) :]
    differ = [name for name, same in zip(owners, (largest == smallest).tolist(), strict=True) if not same]
    if differ:
        group, _ = owners[differ[0]]
        raise UnsupportedSetupError(
            f"After update {step} the ranks no longer hold the same weights: each trains a model of its own.",
            got=f"{len(differ)} of {len(owners)} trained parameters differ, first {differ[0]} of layer group {group}",
            fix="Usually these layers were frozen when DistributedDataParallel wrapped the model, which then never"
            " averages their gradients: make no layer trainable after Trainer.train() has begun, leave freezing to the"
            " callback. Otherwise look for what changes weights differently on each rank, such as another callback or"
            " an optimizer that rounds at random; if that is wanted, set check_ranks=False.",
        )


def bit_checksums(tensors: Iterable[Tensor]) -> Tensor:
    """One integer for each tensor, (P,) int64 on the device of the first one.

        c = sum_i w_i b_i  modulo 2^64

    with b_i the bits as integers of 32 or fewer, and w_i random and odd. One number that differs in any bit always
    changes c; several cancel with a chance of about 2^-32 or less.

    Args:
        tensors: Of any shape and floating or integer type; of a sharded one, the part of this rank.

    Example:
        >>> first, second = bit_checksums([torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])])
        >>> bool(first == second)
        False
    """
    sums: list[Tensor] = []
    generator = torch.Generator("cpu").manual_seed(0)
    odd = torch.randint(-(2**63), 2**63 - 1, (_CHUNK,), generator=generator, device="cpu").bitwise_or_(1)
    weights: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        tensor = tensor.detach()
        # Of a DTensor, without importing what not every build of torch has.
        flat = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).reshape(-1)
        bits = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))
        if bits.device not in weights:
            weights[bits.device] = odd.to(bits.device)
        total = torch.zeros((), dtype=torch.int64, device=bits.device)
        for number, chunk in enumerate(bits.split(_CHUNK)):
            # Each chunk with another odd factor, so that exchanged chunks are noticed.
            total += (weights[bits.device][: len(chunk)] * chunk).sum() * (2 * number + 1)
        sums.append(total)
    return torch.stack([value.to(sums[0].device) for value in sums])
