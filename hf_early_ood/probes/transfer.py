r"""All scores of a source for a target, from features and labels. m examples, d features, K classes, n to fine-tune on.

The target teacher is fitted to all labels at hand. What these do not tell, no measure can know: with few labels beyond
the n, the teacher is uncertain in just the directions that the n do not see. On the same features that adds the same
to the risk of every source on average, and leaves their order as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hf_early_ood.errors import ProbeError
from hf_early_ood.probes.matrices import Spectrum, checked
from hf_early_ood.probes.residual_score import relu_kernel, residual_score
from hf_early_ood.probes.similarity import FineTuningSample, fine_tuning_risk
from hf_early_ood.probes.teachers import class_codes, ridge_teacher
from hf_early_ood.similarities import FROM_SCRATCH, INFINITE_DEPTH, LINEAR, NTK, THREE_LAYERS

DEPTHS = {LINEAR: 1, THREE_LAYERS: 3, INFINITE_DEPTH: math.inf}
# Of the mean of the kernel's diagonal: two texts with the same features do not make it singular.
_KERNEL_RIDGE = 1e-3
# Where the target's teacher explains less, and the scores mean little: so that the order is still that of the risks.
_LEAST = 1e-3


@dataclass(frozen=True, eq=False)
class TransferScores:
    """What fine-tuning from a source is predicted to leave.

    Attributes:
        scores: Measure -> score, less is better. Of linear networks (`DEPTHS`) the share of the variance of the codes
            that is left, 1 being a guess by class shares: 1 - E (1 - risk / signal), where the target's own teacher has
            the variance ``signal`` and explains E of examples that are left out (ours, so that sources with features
            of their own can be compared; on the same features it is the order of the risks). ``from_scratch`` is the
            same for a start at zero. Of ``ntk`` the residual score. With a ridge there is none of more than one layer.
        cumulated: The same without ``ntk`` -> (d,), the risk in the first i directions of the target's features, as a
            share of the signal.
    """

    scores: dict[str, float]
    cumulated: dict[str, Tensor]


class LinearTask:
    """A classification task on given features: its linear teacher and, as a target, what sources are worth for it.

    Args:
        features: (m, d) of the examples.
        labels: Class of each (m,).
        num_classes: K.

    Attributes:
        features: As given, in float64.
        labels: As given.
        mean: Of the features (d,).
        centered: Features less their mean (m, d), float64.
        codes: See `hf_early_ood.probes.teachers.class_codes`.
        shares: Of the classes (K,), what the codes are centered by.
        teacher: Fitted to all examples.
        variance: Of the codes, added over classes.
        signal: Of what the teacher says of the examples, added over classes.

    Raises:
        ProbeError: All examples are of one class, or have the same features.
        NonFiniteError: A feature is NaN or infinite.

    Example:
        >>> import torch
        >>> draws = torch.Generator().manual_seed(0)
        >>> features = torch.randn(50, 8, generator=draws)
        >>> target = LinearTask(features, (features[:, 0] > 0).long(), 2)
        >>> right, wrong = target.teacher.weights, -target.teacher.weights
        >>> few = range(4)
        >>> target.score(right, few).scores["linear"] < target.score(wrong, few).scores["linear"]
        True
    """

    def __init__(self, features: Tensor, labels: Sequence[int] | Tensor, num_classes: int) -> None:
        features = checked("The features", features)
        if len(labels) != len(features):
            raise ProbeError("There are not as many labels as examples.", got=len(labels), allowed=len(features))
        self.features, self.labels = features, torch.as_tensor(labels)
        self.mean = features.mean(0)
        self.centered = features - self.mean
        self.codes = class_codes(labels, num_classes).to(features)
        self.teacher = ridge_teacher(features, self.codes)
        self.shares = torch.nn.functional.one_hot(self.labels, num_classes).to(features).mean(0)
        self.variance = float(self.codes.square().sum() / len(features))
        self.signal = float((self.centered @ self.teacher.weights).square().sum() / len(features))

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the covariance of the features."""
        return Spectrum.of_features(self.centered)

    def predict(self, features: Tensor) -> Tensor:
        """Class (n,) that the teacher gives to examples with features (n, d)."""
        return ((features.to(self.mean) - self.mean) @ self.teacher.weights + self.shares).argmax(1)

    def head(self, weight: Tensor) -> Tensor:
        """The last layer of a classifier as a source (d, K).

        Softmax does not see what all classes have in common, so it is taken out. The length, which cross-entropy leaves
        open, is such that predictions on the target vary as the codes do (ours, not the paper's; with infinite depth
        it does not matter).

        Args:
            weight: (K, d).

        Raises:
            ProbeError: It says the same of all examples.
        """
        weights = checked("The head", weight).T
        weights = weights - weights.mean(1, keepdim=True)
        spread = float((self.centered @ weights).square().sum() / len(self.centered))
        if spread == 0:
            raise ProbeError("The head says the same of all examples of the target.")
        return weights * math.sqrt(self.variance / spread)

    def score(self, source: Tensor, rows: Sequence[int], *, ridge: float = 0.0) -> TransferScores:
        """Score one source for one sample.

        Args:
            source: Weights (d, K) for the codes.
            rows: Examples of the target to fine-tune on, n of the m.
            ridge: For the linear model, in units of the mean variance of a feature; 0: none.

        Raises:
            ProbeError: See `hf_early_ood.probes.similarity.fine_tuning_risk`.
        """
        rows = list(rows)
        few = self.centered[rows]
        sample = FineTuningSample(few, ridge=ridge * float(self.spectrum.variances.mean()))
        depths = DEPTHS if ridge == 0 else {LINEAR: 1}
        risks = {
            name: fine_tuning_risk(source, self.teacher.weights, sample, self.spectrum, depth=depth)
            for name, depth in depths.items()
        }
        spectra = {name: risk.spectrum for name, risk in risks.items()} | {FROM_SCRATCH: risks[LINEAR].scratch_spectrum}
        missed = {name: parts.cumsum(0) / self.signal for name, parts in spectra.items()}
        explained = max(self.teacher.explained, _LEAST)
        left = {name: 1 - explained * (1 - float(parts[-1])) for name, parts in missed.items()}
        kernel = relu_kernel(few)
        residuals = self.codes[rows] - few @ source.to(few)
        left[NTK] = residual_score(residuals, kernel, ridge=_KERNEL_RIDGE * float(kernel.diagonal().mean()))
        return TransferScores(left, missed)
