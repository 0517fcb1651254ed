"""How a run is cut into generations, where the groups are split, and how the learning rate restarts."""

from __future__ import annotations

import io

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler
from transformers.optimization import AdafactorSchedule

from hf_early_ood.errors import ConfigurationError, UnsupportedSetupError
from hf_early_ood.interventions.generations import Generations, restarted, split_at
from hf_early_ood.layers import find_layer_groups
from tests import families

MORE = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 3},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
}
WITH_A_STATE = ("reduce_lr_on_plateau", "greedy")


@pytest.mark.parametrize(("total", "count"), [(2, 2), (3, 2), (10, 3), (11, 3), (12, 3), (100, 7), (7, 7)])
def test_every_update_is_in_one_generation(total, count):
    plan = Generations(total, count)
    of = [plan.generation(step) for step in range(total)]
    assert of == sorted(of)
    lengths = [of.count(g) for g in range(count)]
    assert lengths == [plan.length(g) for g in range(count)]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1  # the remainder is spread
    assert [step for step in range(total) if plan.begins(step)] == [plan.start(g) for g in range(count)]
    assert plan.generation(total) == count - 1  # where a scheduler looks after the last update
    assert not any(plan.ascends(step) or plan.ends_ascent(step) for step in range(total))


@pytest.mark.parametrize(
    ("ascent", "expected"),
    [
        (2, [10, 11, 20, 21]),
        (0.25, [10, 11, 20, 21]),
        (0.01, [10, 20]),  # never less than one
        (0.3, [10, 11, 12, 20, 21, 22]),  # not 2.9999999999999996
        (9, [*range(10, 19), *range(20, 29)]),
    ],
)
def test_the_first_updates_of_later_generations_ascend(ascent, expected):
    plan = Generations(30, 3, ascent)
    assert [step for step in range(30) if plan.ascends(step)] == expected
    ends = [step for step in range(30) if plan.ends_ascent(step)]
    assert ends == [10 + len(expected) // 2, 20 + len(expected) // 2]
    assert not plan.ascends(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((10, 1, None), "generations is not usable. Got: 1.*2 or more"),
        ((10, 2.0, None), "generations is not usable. Got: 2.0"),
        ((10, True, None), "generations is not usable. Got: True"),
        ((2, 3, None), "more generations than updates. Got: generations=3, training makes 2 updates"),
        ((10, 2, 0), "ascent is not usable. Got: 0"),
        ((10, 2, 0.0), "ascent is not usable. Got: 0.0"),
        ((10, 2, 1.0), "ascent is not usable. Got: 1.0"),
        ((10, 2, -0.5), "ascent is not usable. Got: -0.5"),
        ((10, 2, float("nan")), "ascent is not usable. Got: nan"),
        ((10, 2, True), "ascent is not usable. Got: True"),
        ((10, 2, "half"), "ascent is not usable. Got: 'half'"),
        ((10, 2, 5), r"ascent is as long as a generation.*5 update\(s\)"),
        ((3, 3, 0.5), r"ascent is as long as a generation.*1 update\(s\)"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Generations(*settings)


def test_the_plain_generation_may_be_one_update():
    plan = Generations(5, 3, 0.5)
    assert [plan.length(g) for g in range(3)] == [1, 2, 2]
    assert [step for step in range(5) if plan.ascends(step)] == [1, 3]


@pytest.mark.parametrize(
    ("family", "first_later"),
    [("bert", "block.1"), ("gpt2", "block.1"), ("bart", "decoder.block.0"), ("t5", "decoder.block.0")],
)
def test_the_middle_block_is_the_first_later_one(family, first_later):
    groups = find_layer_groups(families.build(family))
    early, later = split_at(groups, None)
    assert later[0] == first_later
    assert early + later == groups.names


def test_boundaries():
    groups = find_layer_groups(families.build("bert"))
    assert split_at(groups, "head") == (groups.names[:-1], ("head",))
    assert split_at(groups, "embeddings") == ((), groups.names)
    with pytest.raises(ConfigurationError, match=r"Unknown layer group.*'block\.22'.*Did you mean 'block\.2'"):
        split_at(groups, "block.22")
    without_blocks = groups.only(set(groups["head"].parameters))
    with pytest.raises(ConfigurationError, match="no block in the middle"):
        split_at(without_blocks, None)


def make_optimizer():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}], lr=0.1)


def make_scheduler(kind, optimizer, updates):
    return get_scheduler(
        kind, optimizer, num_warmup_steps=2, num_training_steps=updates, scheduler_specific_kwargs=MORE.get(kind)
    )


def rates(optimizer, scheduler, updates):
    seen = []
    for _ in range(updates):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def restarting(kind, plan, optimizer):
    def factor_over(updates):
        return make_scheduler(kind, make_optimizer(), updates).lr_lambdas[0]

    return restarted(make_scheduler(kind, optimizer, plan.total), plan, factor_over)


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType if kind.value not in WITH_A_STATE])
def test_each_generation_has_the_rates_of_a_run_of_its_length(kind):
    optimizer, plan = make_optimizer(), Generations(23, 3)
    scheduler = restarting(kind, plan, optimizer)
    expected = []
    for generation in range(3):
        alone = make_optimizer()
        length = plan.length(generation)
        expected += rates(alone, make_scheduler(kind, alone, length), length)
    assert rates(optimizer, scheduler, 23) == expected
    resumed = make_optimizer()
    again = restarting(kind, plan, resumed)
    again.load_state_dict(torch_round_trip(scheduler.state_dict()))
    assert again.last_epoch == 23


def torch_round_trip(state):
    """As Trainer keeps it; callables with attributes would be written, and refused when read."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("kind", WITH_A_STATE)
def test_schedules_that_follow_losses_are_refused(kind):
    with pytest.raises(UnsupportedSetupError, match=r"cannot be restarted.*lr_restart=False"):
        restarting(kind, Generations(10, 2), make_optimizer())


def test_subclasses_are_refused():
    """Adafactor's own rates are shown by a LambdaLR that does not set them."""
    optimizer = make_optimizer()
    scheduler = AdafactorSchedule(optimizer)
    assert isinstance(scheduler, LambdaLR)
    with pytest.raises(UnsupportedSetupError, match="Got: AdafactorSchedule"):
        restarted(scheduler, Generations(10, 2), lambda updates: lambda step: 1.0)
