"""Small classifiers that use their parameters in ways that the architecture families do not."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_early_ood.layers import LayerGroup, LayerGroups

WIDTH, CLASSES, WORDS = 6, 3, 11


class ToyForSequenceClassification(nn.Module):
    """Embedding, a body that subclasses choose, mean over positions, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_labels=CLASSES, problem_type=None)
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(self.embedding(input_ids)).mean(1)))


class TiedTwice(ToyForSequenceClassification):
    """The embedding table is also the weight of a linear layer, and ``dense`` is used twice."""

    def body(self, hidden: Tensor) -> Tensor:
        hidden = self.dense(torch.tanh(self.dense(hidden)))
        return F.linear(F.linear(hidden, self.embedding.weight).softmax(-1), self.embedding.weight.t())


class Flattened(ToyForSequenceClassification):
    """``dense`` sees (B * T, D): one example after the other, or one position after the other."""

    def __init__(self, position_major: bool) -> None:
        super().__init__()
        self.position_major = position_major

    def body(self, hidden: Tensor) -> Tensor:
        if self.position_major:
            turned = hidden.transpose(0, 1)
            return torch.tanh(self.dense(turned.flatten(0, 1))).view(turned.shape).transpose(0, 1)
        return torch.tanh(self.dense(hidden.flatten(0, 1))).view(hidden.shape)


class GatedFlattened(ToyForSequenceClassification):
    """``dense`` sees (T * B, D); an example of padding only has no influence on it."""

    def body(self, hidden: Tensor) -> Tensor:
        turned = hidden.transpose(0, 1)
        out = torch.tanh(self.dense(turned.flatten(0, 1))).view(turned.shape).transpose(0, 1)
        return out * hidden.square().sum((1, 2), keepdim=True)


class HalfSeen(ToyForSequenceClassification):
    """``dense`` is used once by its module, and once in a way that no rule knows."""

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden)) @ self.dense.weight


class PositionFirst(ToyForSequenceClassification):
    """``dense`` sees (T, B, D)."""

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden.transpose(0, 1))).transpose(0, 1)


class Interacting(ToyForSequenceClassification):
    """An example sees the mean of its batch."""

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden)) - hidden.mean(0, keepdim=True)


class Peeking(ToyForSequenceClassification):
    """Examples differ in nothing that a forward pass of one of them shows, but their gradients mix."""

    def body(self, hidden: Tensor) -> Tensor:
        own = self.dense(hidden)
        return torch.tanh(own + own.roll(1, 0) - own.roll(1, 0).detach())


class SharedPositions(ToyForSequenceClassification):
    """Position embeddings with one leading entry for all examples, used by more than a plain sum."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(20, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def body(self, hidden: Tensor) -> Tensor:
        place = self.mix(self.positions(torch.arange(hidden.shape[1])[None]))
        return torch.tanh(self.dense(hidden + place) * place)


class FirstRowOnly(SharedPositions):
    """Takes entry 0 of the broadcast dimension, so that expanding it would give all to the first example."""

    def body(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden + self.positions(torch.arange(hidden.shape[1])[None])[0]))


class InPlace(ToyForSequenceClassification):
    """Writes into its activations."""

    def body(self, hidden: Tensor) -> Tensor:
        hidden += 1
        out = self.dense(hidden)
        out.mul_(2)
        return torch.tanh(out)


class Sometimes(ToyForSequenceClassification):
    """``extra`` is used only where word 10 occurs."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.extra = nn.Linear(WIDTH, WIDTH)
        self.functional = functional

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        hidden = self.body(self.embedding(input_ids))
        if bool((input_ids == 10).any()):
            hidden = hidden + (hidden @ self.extra.weight.t() if self.functional else self.extra(hidden))
        return SimpleNamespace(logits=self.head(hidden.mean(1)))


class Renormalized(ToyForSequenceClassification):
    """Its table changes in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, max_norm=0.1)


def make(kind: type[ToyForSequenceClassification], *args: bool) -> ToyForSequenceClassification:
    """A toy in float64, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(*args).double().eval()


def one_group(model: nn.Module) -> LayerGroups:
    """All parameters in one group."""
    return LayerGroups([LayerGroup("all", dict(model.named_parameters()))])


def words(rows: int = 5, length: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Batch of random words below 10; some are padding (0)."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 10, (rows, length), generator=generator)}
