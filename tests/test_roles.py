from __future__ import annotations

from typing import get_args

from hf_early_ood.config.parsing import type_hints
from hf_early_ood.config.schema import RunConfig
from hf_early_ood.roles import ROLES, TARGETS, columns_by_role


def test_every_task_of_a_configuration_has_roles() -> None:
    assert set(get_args(type_hints(RunConfig)["task"])) == set(ROLES) == set(TARGETS)
    assert all(ROLES[task][TARGETS[task]] for task in ROLES)


def test_order_is_that_of_the_roles() -> None:
    given = {"group": "site", "label": "gold", "choices": ("a", "b")}
    assert columns_by_role("multiple_choice", given) == {
        "text": "text",
        "choices": ("a", "b"),
        "label": "gold",
        "group": "site",
    }
