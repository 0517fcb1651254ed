"""Draws, and the scores of every choice of labels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_early_ood.errors import ConfigurationError
from hf_early_ood.probes import outcomes
from hf_early_ood.probes.likelihood import ClassificationLikelihood, RegressionLikelihood, TokenLikelihood
from hf_early_ood.probes.outcomes import sample_labels, spread

B, T, C = 4, 5, 3
LIKELIHOOD = ClassificationLikelihood()


def log_probs(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (B, 1)), C, dtype=torch.float64).log_softmax(-1).requires_grad_()


def uniforms(rows: int = B) -> torch.Tensor:
    return torch.rand(rows, dtype=torch.float64)


def test_sampled_labels_follow_the_probabilities() -> None:
    p = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = sample_labels(p.log().expand(1000, -1), grid)
    assert torch.bincount(drawn, minlength=4).tolist() == [200, 0, 500, 300]


def test_extreme_uniforms_give_classes_that_exist() -> None:
    # In float32 the probabilities add up to less than the largest uniform.
    p = torch.full((2, 7), 1 / 7).log()
    assert sample_labels(p, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 6]
    assert sample_labels(torch.tensor([[-1e4, 0.0]]), torch.tensor([0.0])).tolist() == [1]


def test_streams_are_uniform_independent_and_do_not_depend_on_each_other() -> None:
    seeds = uniforms(2000)
    streams = spread(seeds, 40)
    assert torch.equal(streams[:, 0], seeds)
    for count in (1, 2, 15, 16, 17, 39):
        assert torch.equal(spread(seeds[5:9], count), streams[5:9, :count])
    assert len(streams.unique()) == streams.numel()
    assert float((streams.mean(0) - 0.5).abs().max()) < 5 / (12 * 2000) ** 0.5
    correlations = torch.corrcoef(streams.T) - torch.eye(40, dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / 2000**0.5


@pytest.mark.parametrize("chunk", [1, 1 << 23])
def test_draws_are_numbered_among_what_is_predicted(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_CHUNK", chunk)
    values, seeds = log_probs(B, T), uniforms()
    labels = torch.zeros(B, T, dtype=torch.long)
    labels[0, :2] = labels[2, 3] = -100
    (score,) = TokenLikelihood().scores(values, {"labels": labels}, "sampled", seeds)
    streams = spread(seeds, T)
    expected = []
    for i in range(B):
        kept = labels[i] != -100
        own = values[i, kept]
        drawn = sample_labels(own, streams[i, : len(own)])
        expected.append(own.gather(-1, drawn[:, None]).sum())
    torch.testing.assert_close(score, torch.stack(expected))


def test_the_scores_of_each_choice() -> None:
    values, seeds, given = log_probs(), uniforms(), torch.tensor([0, 2, 1, 1])
    rows, flat, batch = torch.arange(B), values[:, 0], {"labels": given}
    (empirical,) = LIKELIHOOD.scores(values, batch, "empirical", seeds)
    torch.testing.assert_close(empirical, flat[rows, given])
    (argmax,) = LIKELIHOOD.scores(values, {}, "argmax", seeds)
    torch.testing.assert_close(argmax, flat.max(-1).values)
    (sampled,) = LIKELIHOOD.scores(values, {}, "sampled", seeds)
    torch.testing.assert_close(sampled, flat[rows, sample_labels(flat, seeds)])
    expected = LIKELIHOOD.scores(values, {}, "expected", seeds)
    assert len(expected) == C
    (gradient,) = torch.autograd.grad(expected[1].sum(), values)
    torch.testing.assert_close(gradient[:, 0, 1], flat.exp().sqrt()[:, 1])  # the weight is held constant
    assert not gradient[:, 0, [0, 2]].any()


def test_expected_scores_leave_out_what_nobody_predicts() -> None:
    labels = torch.full((B, T), -100)
    labels[0, 1] = labels[1, 3] = 0
    values = log_probs(B, T)
    scores = TokenLikelihood().scores(values, {"labels": labels}, "expected", None)
    assert len(scores) == 2 * C
    (gradient,) = torch.autograd.grad(torch.stack(scores).sum(), values)
    assert gradient[labels != -100].all()
    assert not gradient[labels == -100].any()
    with pytest.raises(ConfigurationError, match=r"Got: 300 for a batch: 100 predictions with 3 classes each"):
        TokenLikelihood().scores(log_probs(B, 100), {}, "expected", None)


def test_gaussian_draws_have_variance_one() -> None:
    means = torch.randn(4000, 2, dtype=torch.float64).requires_grad_()
    (score,) = RegressionLikelihood().scores(means, {}, "sampled", uniforms(4000))
    (residuals,) = torch.autograd.grad(score.sum(), means)  # y - f(x)
    torch.testing.assert_close(score, -residuals.square().sum(-1) / 2)
    assert float(residuals.mean(0).abs().max()) < 4 / 4000**0.5
    assert float((residuals.var(0) - 1).abs().max()) < 4 * (2 / 4000) ** 0.5
    assert float((residuals[:, 0] * residuals[:, 1]).mean().abs()) < 4 / 4000**0.5
    (score,) = RegressionLikelihood().scores(means[:1], {}, "sampled", torch.zeros(1, dtype=torch.float64))
    assert bool(torch.isfinite(score).all())


def test_nll_of_a_gaussian() -> None:
    means, y = torch.randn(B, 2), torch.randn(B, 2)
    nll = RegressionLikelihood().nll(SimpleNamespace(logits=means), {"labels": y})
    torch.testing.assert_close(nll, (y - means).square().sum(-1) / 2)
