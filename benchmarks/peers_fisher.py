"""Ways to compute the trace of the empirical Fisher matrix: mean squared norm of the per-example gradients."""

from __future__ import annotations

import argparse
from functools import partial
from itertools import count

import torch
from harness import Batch, Job
from peers import AS_IT_COMES, FISHER, WRAPPED, Answer, Attempt, Logits, Method, loss_of, without_labels
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_early_ood.probes.fisher import fisher_trace


def loop(options: argparse.Namespace, model: nn.Module, batch: Batch, *, trim: bool) -> Job:
    """One backward pass for each example, with or without its padding."""
    rows = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(options.examples)]
    if trim:
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [
            {key: value[:, :length] if value.dim() > 1 else value for key, value in row.items()}
            for row, length in zip(rows, lengths, strict=True)
        ]

    def run() -> Answer:
        total = torch.zeros((), dtype=torch.float64, device=options.device)
        for row in rows:
            model.zero_grad()
            loss_of(model, row).backward()
            total += sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        model.zero_grad()
        return Answer(float(total) / len(rows))

    return run


def own(options: argparse.Namespace, model: nn.Module, batch: Batch, *, estimator: str) -> Job:
    """This package."""
    seeds = count()

    def run() -> Answer:
        result = fisher_trace(model, [batch], labels="empirical", estimator=estimator, seed=next(seeds))
        if result.fallbacks:
            raise RuntimeError(f"not exact: {result.fallbacks}")
        return Answer(result.total)

    return run


def functional(
    options: argparse.Namespace, model: nn.Module, batch: Batch, *, wide_mask: bool, chunk: int | None
) -> Job:
    """torch.func: per-example gradients by vmap, their squared norms inside of it."""
    model.eval()  # even a dropout of 0 is refused as random otherwise
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    mask = batch["attention_mask"]
    if wide_mask:  # (B, 1, 1, T), what is added to the attention scores
        mask = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min

    def loss(weights: dict[str, Tensor], ids: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        return cross_entropy(torch.func.functional_call(model, weights, (), inputs).logits, label[None])

    def squared_norm(*example: Tensor) -> Tensor:
        gradients = torch.func.grad(loss)(weights, *example)
        return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()

    def run() -> Answer:
        norms = torch.vmap(squared_norm, chunk_size=chunk)(batch["input_ids"], mask, batch["labels"])
        return Answer(float(norms.mean()))

    return run


def with_positions(batch: Batch) -> Batch:
    """Positions and token types given for every example: otherwise their tables are read with a batch of one."""
    ids = batch["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)
    return {**batch, "position_ids": positions, "token_type_ids": torch.zeros_like(ids)}


def opacus(options: argparse.Namespace, model: nn.Module, batch: Batch, *, ghost: bool, spelled_out: bool) -> Job:
    """Opacus: norms of ghost clipping, or full per-example gradients."""
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

    if spelled_out:
        batch = with_positions(batch)
    wrapped = GradSampleModuleFastGradientClipping(model) if ghost else GradSampleModule(model)

    def run() -> Answer:
        wrapped.zero_grad()
        loss_of(wrapped, batch).backward()
        if ghost:
            return Answer(float(wrapped.get_norm_sample().square().mean()))
        norms = torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()])
        return Answer(float(norms.sum(0).mean()))

    return run


def backpack(options: argparse.Namespace, model: nn.Module, batch: Batch, *, full: bool, prepared: str) -> Job:
    """BackPACK: squared norms, or full per-example gradients."""
    from backpack import backpack as extended
    from backpack import extend
    from backpack.extensions import BatchGrad, BatchL2Grad

    if prepared == "model":
        extend(model)
    if prepared == "positions":
        batch = with_positions(batch)
    for module in model.modules():
        if prepared in ("no padding_idx", "positions") and isinstance(module, nn.Embedding):
            module.padding_idx = None
        if prepared != "model" and isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm):
            extend(module)
    extension = BatchGrad() if full else BatchL2Grad()

    def run() -> Answer:
        model.zero_grad()
        with extended(extension):
            # The sum of the losses: those of single examples are then unscaled.
            (loss_of(model, batch) * options.examples).backward()
        norms = torch.zeros(options.examples, device=options.device)
        for parameter in model.parameters():
            if full and hasattr(parameter, "grad_batch"):
                norms += parameter.grad_batch.flatten(1).square().sum(1)
            elif hasattr(parameter, "batch_l2"):
                norms += parameter.batch_l2
        return Answer(float(norms.mean()))

    return run


def nngeometry(options: argparse.Namespace, model: nn.Module, batch: Batch, *, ignore: bool, embedded: bool) -> Job:
    """NNGeometry: trace of the matrix of the Jacobian of the log-likelihood of the given labels."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import PMatImplicit
    from torch.utils.data import DataLoader, TensorDataset

    inputs = batch["input_ids"]
    if embedded:
        inputs = model.get_input_embeddings()(inputs).detach()

    def log_likelihood(inputs: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        given = {"inputs_embeds" if embedded else "input_ids": inputs, "attention_mask": mask}
        return -cross_entropy(model(**given).logits, labels, reduction="none")[:, None]

    def run() -> Answer:
        data = TensorDataset(inputs, batch["attention_mask"], batch["labels"])
        layers = LayerCollection.from_model(model, ignore_unsupported_layers=ignore)
        generator = TorchHooksJacobianBackend(layer_collection=layers, model=model, function=log_likelihood)
        matrix = PMatImplicit(generator=generator, examples=DataLoader(data, batch_size=options.examples))
        return Answer(float(matrix.trace()))

    return run


def curvlinops(options: argparse.Namespace, model: nn.Module, batch: Batch, *, wrapped: bool) -> Job:
    """curvlinops: Hutchinson's estimate from products with the empirical Fisher matrix."""
    from curvlinops import EFLinearOperator, hutchinson_trace

    model.eval()
    data = [(without_labels(batch), batch["labels"])]
    matrix = EFLinearOperator(
        Logits(model) if wrapped else model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        data,
        check_deterministic=False,
        batch_size_fn=lambda inputs: len(inputs["input_ids"]),
    )

    def run() -> Answer:
        estimate = hutchinson_trace(matrix, num_matvecs=options.products)
        return Answer(float(estimate), products=options.products)

    return run


_SPELLED_OUT = "position_ids and token_type_ids (B, T) given"
LOOP = Method("loop, batches of one", FISHER, (Attempt(AS_IT_COMES, partial(loop, trim=False)),))
OWN = Method("hf_early_ood exact", FISHER, (Attempt(AS_IT_COMES, partial(own, estimator="exact")),), exact=True)
METHODS = (
    LOOP,
    Method("loop, padding cut off", FISHER, (Attempt(AS_IT_COMES, partial(loop, trim=True)),), exact=True),
    OWN,
    Method("hf_early_ood rademacher", FISHER, (Attempt(AS_IT_COMES, partial(own, estimator="rademacher")),)),
    *(
        Method(
            f"torch.func vmap(grad), {'all at once' if chunk is None else f'chunks of {chunk}'}",
            FISHER,
            (
                Attempt(AS_IT_COMES, partial(functional, wide_mask=False, chunk=chunk)),
                Attempt("additive mask (B, 1, 1, T)", partial(functional, wide_mask=True, chunk=chunk)),
            ),
            exact=True,
        )
        for chunk in (4, None)
    ),
    *(
        Method(
            f"Opacus {'ghost norms' if ghost else 'per-example gradients'}",
            FISHER,
            (
                Attempt(AS_IT_COMES, partial(opacus, ghost=ghost, spelled_out=False)),
                Attempt(_SPELLED_OUT, partial(opacus, ghost=ghost, spelled_out=True)),
            ),
            package="opacus",
            exact=True,
        )
        for ghost in (True, False)
    ),
    *(
        Method(
            f"BackPACK {'BatchGrad' if full else 'BatchL2Grad'}",
            FISHER,
            (
                Attempt(AS_IT_COMES, partial(backpack, full=full, prepared="model")),
                Attempt("layers extended one by one", partial(backpack, full=full, prepared="leaves")),
                Attempt(
                    "layers extended one by one, padding_idx=None",
                    partial(backpack, full=full, prepared="no padding_idx"),
                ),
                Attempt(
                    f"layers extended one by one (it has no LayerNorm), padding_idx=None, {_SPELLED_OUT}",
                    partial(backpack, full=full, prepared="positions"),
                ),
            ),
            package="backpack-for-pytorch",
            exact=True,
        )
        for full in (False, True)
    ),
    Method(
        "NNGeometry",
        FISHER,
        (
            Attempt(AS_IT_COMES, partial(nngeometry, ignore=False, embedded=False)),
            Attempt("unsupported layers ignored", partial(nngeometry, ignore=True, embedded=False)),
            Attempt("unsupported layers ignored, inputs_embeds given", partial(nngeometry, ignore=True, embedded=True)),
        ),
        package="nngeometry",
        exact=True,
    ),
    Method(
        "curvlinops, Hutchinson",
        FISHER,
        (
            Attempt(AS_IT_COMES, partial(curvlinops, wrapped=False)),
            Attempt(WRAPPED, partial(curvlinops, wrapped=True)),
            Attempt(f"{WRAPPED}; eager attention", partial(curvlinops, wrapped=True), attention="eager"),
        ),
        package="curvlinops-for-pytorch",
    ),
)
