"""The only place that changes ``requires_grad``, and that puts it back.

Two rules follow from what transformers and DDP do (measured with transformers 5.23):

* Freeze only after the optimizer and the DDP wrapper exist (``on_train_begin``). A parameter frozen before is
  in neither, and releasing it later trains nothing, or lets the ranks drift apart, without an error.
* A frozen parameter must have ``grad = None``. A gradient of zeros would let weight decay and momentum move it.

Under FSDP2 the flags are those of the shards, and gathered copies are dropped with every change (`sharding`).
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from hf_early_ood.errors import ConfigurationError, did_you_mean
from hf_early_ood.sharding import reshard


@contextmanager
def requires_grad_set(parameters: Mapping[str, nn.Parameter], trainable: Collection[str]) -> Iterator[None]:
    """Let exactly the named parameters require a gradient inside the block, and restore every flag after it.

    Args:
        parameters: Name to parameter; only these are touched.
        trainable: Names that require a gradient inside the block.

    Raises:
        ConfigurationError: A name in ``trainable`` is not in ``parameters``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with requires_grad_set(dict(layer.named_parameters()), ["bias"]):
        ...     print(layer.weight.requires_grad, layer.bias.requires_grad)
        False True
        >>> layer.weight.requires_grad
        True
    """
    wanted = set(trainable)
    unknown = sorted(wanted - set(parameters))
    if unknown:
        raise ConfigurationError("Unknown parameter name.", got=unknown[0], fix=did_you_mean(unknown[0], parameters))
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in wanted)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


# Models that are frozen by a training that has not ended, or that was interrupted.
_FROZEN: weakref.WeakKeyDictionary[nn.Module, Freezer] = weakref.WeakKeyDictionary()


def thaw(model: nn.Module) -> Freezer | None:
    """Give the flags back that an interrupted training has left changed; return what had frozen the model.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> Freezer({"all": dict(model.named_parameters())}, model).train_only(["all"])
        >>> thaw(model) is None, thaw(model) is None
        (False, True)
    """
    freezer = _FROZEN.get(model)
    if freezer is not None:
        freezer.restore()
    return freezer


def frozen_by(model: nn.Module) -> Freezer | None:
    """What freezes the model now, if anything does."""
    return _FROZEN.get(model)


class Freezer:
    """Freeze and release the parameters of layer groups, never thawing what the user froze.

    The parameters that require a gradient when the object is made are the *managed* ones. Every other parameter
    is left alone for good, so that LoRA's base weights and hand-frozen embeddings stay frozen.

    Args:
        groups: Group name to (parameter name to parameter); ``{g.name: g.parameters for g in LayerGroups}``.
        model: The model, so that :func:`thaw` finds what an interrupted training has left frozen.
        owner: Whoever freezes, for others that come upon it through :func:`frozen_by`.

    Raises:
        ConfigurationError: Nothing is trainable.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> freezer = Freezer({"body": dict(model[0].named_parameters()), "head": dict(model[1].named_parameters())})
        >>> freezer.train_only(["head"])
        >>> model[0].weight.requires_grad, freezer.num_trainable
        (False, 6)
        >>> freezer.restore()
        >>> model[0].weight.requires_grad
        True
    """

    def __init__(
        self, groups: Mapping[str, Mapping[str, nn.Parameter]], model: nn.Module | None = None, owner: object = None
    ) -> None:
        self.owner = owner
        self._model = None if model is None else weakref.ref(model)
        self._managed: dict[str, dict[str, nn.Parameter]] = {
            group: {name: p for name, p in parameters.items() if p.requires_grad}
            for group, parameters in groups.items()
        }
        self._released: frozenset[str] = frozenset(self._managed)
        if not any(self._managed.values()):
            raise ConfigurationError(
                "The model has no trainable parameter.",
                got="requires_grad is False everywhere",
                fix="Set requires_grad=True on what should be trained before Trainer.train().",
            )

    @property
    def managed(self) -> dict[str, dict[str, nn.Parameter]]:
        """Group name to the managed parameters of that group, by name."""
        return self._managed

    @property
    def num_trainable(self) -> int:
        """Number of managed scalar parameters that require a gradient now."""
        return sum(p.numel() for group in self._managed.values() for p in group.values() if p.requires_grad)

    @property
    def frozen(self) -> dict[str, nn.Parameter]:
        """The managed parameters of the groups that do not train, by name."""
        return {
            name: p
            for group, parameters in self._managed.items()
            if group not in self._released
            for name, p in parameters.items()
        }

    @property
    def in_force(self) -> bool:
        """Whether the flags are still what `train_only` made them; PEFT's ``disable_adapter`` sets its own."""
        return all(
            p.requires_grad == (group in self._released)
            for group, parameters in self._managed.items()
            for p in parameters.values()
        )

    def train_only(self, names: Collection[str]) -> None:
        """Let exactly the named groups train; the others are frozen and lose their gradients.

        Raises:
            ConfigurationError: A name is unknown, or nothing would be left to train.
        """
        unknown = sorted(set(names) - set(self._managed))
        if unknown:
            raise ConfigurationError(
                "Unknown layer group.", got=unknown[0], fix=did_you_mean(unknown[0], self._managed)
            )
        if not any(self._managed[name] for name in names):
            raise ConfigurationError(
                "A stage must train something.",
                got=f"groups {list(names)} without a trainable parameter",
                fix="Add a group with trainable parameters to the first stage.",
            )
        model = self._model() if self._model is not None else None
        if model is not None:
            _FROZEN[model] = self
            reshard(model)
        self._released = frozenset(names)
        for group, parameters in self._managed.items():
            release = group in names
            for parameter in parameters.values():
                parameter.requires_grad_(release)
                if not release:
                    parameter.grad = None

    def restore(self) -> None:
        """Give every managed parameter the flag that the user had set."""
        self._released = frozenset(self._managed)
        model = self._model() if self._model is not None else None
        if model is not None:
            _FROZEN.pop(model, None)
            reshard(model)
        for parameters in self._managed.values():
            for parameter in parameters.values():
                parameter.requires_grad_(True)
