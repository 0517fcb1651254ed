"""Ways to estimate the trace and the largest eigenvalue of the Hessian of the mean loss."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from itertools import count

import torch
from harness import Batch, Job
from peers import AS_IT_COMES, EIGENVALUE, HESSIAN, WRAPPED, Answer, Attempt, Logits, Method, without_labels
from torch import nn

from hf_early_ood.probes.curvature import hessian_top_eigenvalue, hessian_trace

TOLERANCE = 1e-3  # of the eigenvalue: of its residual for Lanczos, of its change for power iteration
MOST = 100  # products that the search for it may make


def own_trace(options: argparse.Namespace, model: nn.Module, batch: Batch, *, method: str) -> Job:
    """This package."""
    seeds = count()

    def run() -> Answer:
        found = hessian_trace(model, [batch], method=method, num_products=options.products, seed=next(seeds))
        return Answer(found.value, found.standard_error, found.num_products)

    return run


def own_eigenvalue(options: argparse.Namespace, model: nn.Module, batch: Batch) -> Job:
    """This package."""
    seeds = count()

    def run() -> Answer:
        found = hessian_top_eigenvalue(model, [batch], num_products=MOST, tolerance=TOLERANCE, seed=next(seeds))
        return Answer(found.value, None, found.num_products)

    return run


def curvlinops(options: argparse.Namespace, model: nn.Module, batch: Batch, *, method: str, wrapped: bool) -> Job:
    """curvlinops: products with the Hessian, for its own estimators or for Lanczos of SciPy."""
    from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace
    from scipy.sparse.linalg import LinearOperator, eigsh

    model.eval()
    matrix = HessianLinearOperator(
        Logits(model) if wrapped else model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(without_labels(batch), batch["labels"])],
        check_deterministic=False,
        batch_size_fn=lambda inputs: len(inputs["input_ids"]),
    )
    if method != "eigsh":
        estimate = {"hutchinson": hutchinson_trace, "hutch++": hutchpp_trace}[method]
        return lambda: Answer(float(estimate(matrix, num_matvecs=options.products)), products=options.products)
    exported = matrix.to_scipy()

    def run() -> Answer:
        products = count()

        def times(vector: object) -> object:
            next(products)
            return exported @ vector

        counted = LinearOperator(exported.shape, matvec=times, dtype=exported.dtype)
        (value,) = eigsh(counted, k=1, which="LA", tol=TOLERANCE, return_eigenvectors=False)
        return Answer(float(value), products=next(products))

    return run


def pyhessian(options: argparse.Namespace, model: nn.Module, batch: Batch, *, method: str, wrapped: bool) -> Job:
    """PyHessian: Hutchinson's estimate, or power iteration (the eigenvalue of largest magnitude)."""
    import pyhessian as library

    def run() -> Answer:
        model.zero_grad()
        inputs = batch["input_ids"] if wrapped else without_labels(batch)
        found = library.hessian(
            Logits(model) if wrapped else model,
            nn.CrossEntropyLoss(),
            data=(inputs, batch["labels"]),
            cuda=options.device != "cpu",
        )
        if method == "trace":
            # Its own rule would stop it as soon as the mean is negative.
            samples = torch.tensor(found.trace(maxIter=options.products, tol=-math.inf))
            return Answer(float(samples.mean()), float(samples.std()) / len(samples) ** 0.5, len(samples))
        (value,), _ = found.eigenvalues(maxIter=MOST, tol=TOLERANCE)
        return Answer(float(value))

    return run


def attempts(setup: Callable[..., Job], method: str) -> tuple[Attempt, ...]:
    """As it comes, wrapped, and wrapped with attention that can be differentiated twice and forward."""
    wrapped = partial(setup, method=method, wrapped=True)
    return (
        Attempt(AS_IT_COMES, partial(setup, method=method, wrapped=False)),
        Attempt(WRAPPED, wrapped),
        Attempt(f"{WRAPPED}; eager attention", wrapped, attention="eager"),
    )


METHODS = (
    *(
        Method(f"hf_early_ood {method}", HESSIAN, (Attempt(AS_IT_COMES, partial(own_trace, method=method)),))
        for method in ("hutchinson", "hutch++")
    ),
    *(
        Method(f"curvlinops {method}", HESSIAN, attempts(curvlinops, method), package="curvlinops-for-pytorch")
        for method in ("hutchinson", "hutch++")
    ),
    Method("PyHessian trace", HESSIAN, attempts(pyhessian, "trace"), package="PyHessian"),
    Method("hf_early_ood Lanczos", EIGENVALUE, (Attempt(AS_IT_COMES, own_eigenvalue),)),
    Method("curvlinops, SciPy eigsh", EIGENVALUE, attempts(curvlinops, "eigsh"), package="curvlinops-for-pytorch"),
    Method("PyHessian power iteration", EIGENVALUE, attempts(pyhessian, "power iteration"), package="PyHessian"),
)
