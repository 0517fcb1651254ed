"""Perturbations in a Trainer: the same as a loop by hand, nothing else moved, and what surrounds them."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from hf_early_ood import names
from hf_early_ood.callbacks import perturbing
from hf_early_ood.callbacks.dynamics import EarlyDynamicsCallback
from hf_early_ood.callbacks.generations import GenerationsCallback
from hf_early_ood.callbacks.perturbing import PerturbationCallback, chosen
from hf_early_ood.callbacks.unfreezing import GradualUnfreezingCallback
from hf_early_ood.config.perturbations import PerturbationConfig
from hf_early_ood.errors import ConfigurationError, ResumeError, UnsupportedModelError, UnsupportedSetupError
from hf_early_ood.interventions.forgetting import initial_values
from hf_early_ood.interventions.perturbations import effective_std, perturbed, seed_for
from hf_early_ood.layers import find_layer_groups
from hf_early_ood.trainer import EarlyOODArguments, EarlyOODTrainer
from tests import families
from tests.training import Recorder, Rows, StopAfter, copy_weights, differences, make_trainer, outcome, without_times

UPDATES = 5
GROUPS = ("block.1", "head")
KINDS = {
    "reset": {"kind": "reset_to_start"},
    "random": {"kind": "reset_to_random"},
    "magnitudes": {"kind": "redraw_magnitudes", "parameters": "matrices"},
    "magnitudes of the start": {"kind": "redraw_magnitudes", "source": "start", "parameters": "matrices"},
    "new magnitudes": {"kind": "redraw_magnitudes", "source": "initializer", "parameters": "matrices"},
    "signs": {"kind": "redraw_signs", "parameters": "without_norms"},
    "signs of the start": {"kind": "redraw_signs", "source": "start", "parameters": "matrices"},
    "shuffle": {"kind": "shuffle", "within": "row"},
    "shuffle all": {"kind": "shuffle", "within": "group", "keep_signs": True},
    "noise": {"kind": "noise", "std": 0.5, "parameters": "matrices"},
    "noise of a reset": {"kind": "noise", "unit": "movement"},
    "new noise": {"kind": "noise", "unit": "initializer", "parameters": "matrices"},
}


class Around(TrainerCallback):
    """Everything there is at the end of an update and right before the next one."""

    def __init__(self):
        self.at = {}

    def look(self, model, optimizer, moment):
        tensors = {f"weight/{n}": p for n, p in model.named_parameters()}
        tensors |= {f"buffer/{n}": b for n, b in model.named_buffers()}
        known = {p: n for n, p in model.named_parameters()}
        for parameter, entry in optimizer.state.items():
            tensors |= {f"optimizer/{known[parameter]}/{k}": torch.as_tensor(v) for k, v in entry.items()}
        tensors["rng"] = torch.get_rng_state()
        assert all(p.grad is None for p in model.parameters())
        self.at[moment] = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        self.look(model, optimizer, ("end", state.global_step))

    def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
        self.look(model, optimizer, ("begin", state.global_step))


def trainer_with(folder, callbacks, **arguments):
    return make_trainer(folder, callbacks, **{"max_steps": UPDATES, **arguments})


def chosen_tensors(model, settings):
    """By hand: names of the tensors of each group."""
    groups = {name: dict(find_layer_groups(model)[name].parameters) for name in GROUPS}
    which = settings.get("parameters", "all")
    if which == "matrices":
        return {group: {n: p for n, p in owned.items() if p.ndim > 1} for group, owned in groups.items()}
    if which == "without_norms":
        return {group: {n: p for n, p in owned.items() if "LayerNorm" not in n} for group, owned in groups.items()}
    return groups


@pytest.mark.sweep(keep=18)
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("at", range(UPDATES + 1))
def test_every_kind_at_every_update_is_the_loop_by_hand(tmp_path, name, at):
    settings = KINDS[name]
    if at == 0 and (name in ("reset", "magnitudes of the start", "signs of the start", "noise of a reset")):
        with pytest.raises(ConfigurationError, match="before anything has moved"):
            PerturbationCallback(at, groups=GROUPS, **settings)
        return
    first, second, plain = Around(), Around(), Recorder()
    trainer_with(tmp_path / "plain", [plain]).train()
    callback = PerturbationCallback(at, groups=GROUPS, **settings)
    trainer = trainer_with(tmp_path, [first, callback, second])
    trainer.train()

    last = at == UPDATES
    moment = ("end" if last else "begin", at)
    before, after = first.at[moment], second.at[moment]
    moved = {key.removeprefix("weight/") for key in after if not torch.equal(after[key], before[key])}
    groups = chosen_tensors(trainer.model, settings)
    assert moved <= {n for owned in groups.values() for n in owned}  # and no random number, no buffer
    gone = {key.split("/")[1] for key in before.keys() - after.keys()}
    assert gone == ({n for owned in groups.values() for n in owned} if at else set())  # of the optimizer

    stds = {}
    for group, owned in groups.items():
        now = {n: before[f"weight/{n}"] for n in owned}
        start = {n: plain.weights[0][n] for n in owned}
        draws = "new" in name or name == "random"
        initial = initial_values(trainer.model, owned, seed_for(3, group)) if draws else {}
        initial = {n: value.detach() for n, value in initial.items()}
        expected = perturbed(callback.config, now, 3, start=start, initial=initial)  # 3: of the training
        for n in owned:
            assert torch.equal(after[f"weight/{n}"], expected[n]), n
        stds[group] = effective_std(now, expected)
        assert stds[group] > 0
    (event,) = callback.records
    assert event == {"step": at, "event": "perturbation", "kind": settings["kind"], "effective_std": stds}
    lines = (tmp_path / names.DYNAMICS_FILE).read_text().splitlines()
    assert json.loads(lines[0]) == {**event, "source": "PerturbationCallback"}
    logged = [e for e in trainer.state.log_history if "early_ood/perturbation/head" in e]
    assert [(e["step"], e["early_ood/perturbation/head"]) for e in logged] == [(at, stds["head"])]

    for step in range(1, UPDATES + 1):  # before it, training is that of everybody; at other times nothing moves
        if step <= at and not (last and step == at):
            ours = {n: first.at["end", step][f"weight/{n}"] for n in plain.weights[step]}
            assert not differences(ours, plain.weights[step])
        if step != at and step < UPDATES:
            assert not differences(first.at["begin", step], second.at["begin", step])


def test_the_optimizer_may_keep_what_it_knows(tmp_path):
    first, second = Around(), Around()
    callback = PerturbationCallback(2, "shuffle", ["head"], optimizer_state="keep")
    trainer_with(tmp_path, [first, callback, second]).train()
    before, after = first.at["begin", 2], second.at["begin", 2]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("optimizer/"))


def final(folder, *, training_seed=3, **settings):
    callback = PerturbationCallback(2, "shuffle", ["block.1"], **settings)
    trainer = trainer_with(folder, [callback], seed=training_seed, data_seed=3, learning_rate=1e-12, weight_decay=0.0)
    trainer.train()
    return trainer.model.bert.encoder.layer[1].output.dense.weight.detach().clone()


def test_the_seed_is_that_of_the_training_unless_it_is_given(tmp_path):
    def same(first, second):
        return torch.allclose(first, second, atol=1e-6)

    assert same(final(tmp_path), final(tmp_path))
    assert not same(final(tmp_path), final(tmp_path, training_seed=4))
    assert same(final(tmp_path, seed=7), final(tmp_path, seed=7, training_seed=4))
    assert not same(final(tmp_path, seed=7), final(tmp_path, seed=8))


@pytest.mark.parametrize(("at", "step"), [(0.4, 2), (0.5, 2), (0.01, 1), (1.0, 5), (0.99, 4)])
def test_fractions_of_training(tmp_path, at, step):
    callback = PerturbationCallback(at, "shuffle")
    trainer_with(tmp_path, [callback]).train()
    assert [record["step"] for record in callback.records] == [step]
    assert list(callback.records[0]["effective_std"]) == ["embeddings", "block.0", "block.1", "block.2", "head"]


# Resuming.

RESUMED = {
    "reset": {"at": 3, "kind": "reset_to_start", "groups": GROUPS},
    "last": {"at": 1.0, "kind": "noise", "unit": "movement", "groups": GROUPS, "optimizer_state": "keep"},
    "random": {"at": 2, "kind": "reset_to_random"},
    "first": {"at": 0, "kind": "shuffle", "keep_signs": True},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    known = {}

    def of(name):
        if name not in known:
            callback = PerturbationCallback(**RESUMED[name])
            trainer = trainer_with(tmp_path_factory.mktemp("whole"), [callback], trainer_class=EarlyOODTrainer)
            trainer.train()
            known[name] = outcome(trainer), callback.records
        return known[name]

    return of


@pytest.mark.sweep(keep=6)
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("stop", range(1, UPDATES + 1))
@pytest.mark.parametrize("trainer_class", [EarlyOODTrainer])
def test_resume_is_bit_identical(tmp_path, whole, name, stop, trainer_class):
    kind = {"trainer_class": trainer_class}
    trainer_with(tmp_path, [PerturbationCallback(**RESUMED[name]), StopAfter(stop)], **kind).train()
    callback = PerturbationCallback(**RESUMED[name])
    second = trainer_with(tmp_path, [callback], **kind)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    expected, records = whole(name)
    assert [key for key in differences(outcome(second), expected) if key != "rng" or stop < UPDATES] == []
    assert callback.records == records
    assert len((tmp_path / names.DYNAMICS_FILE).read_text().splitlines()) == 1


@pytest.mark.parametrize("stop", [2, 3])
def test_resume_in_a_plain_trainer(tmp_path, whole, stop):
    trainer_with(tmp_path, [PerturbationCallback(**RESUMED["reset"]), StopAfter(stop)]).train()
    second = trainer_with(tmp_path, [PerturbationCallback(**RESUMED["reset"])])
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    one = trainer_with(tmp_path / "one", [PerturbationCallback(**RESUMED["reset"])])
    one.train()
    assert not differences(outcome(second), outcome(one))


def test_the_start_is_needed_until_it_was_used(tmp_path):
    def resumed(step):
        trainer = trainer_with(tmp_path, [PerturbationCallback(**RESUMED["reset"])])
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))

    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer_with(tmp_path, [PerturbationCallback(**RESUMED["reset"])], **saving).train()
    path = tmp_path / names.PERTURBATION_START_FILE
    kept = path.read_bytes()
    path.unlink()
    resumed(4)
    with pytest.raises(ResumeError, match="weights with which training began are gone"):
        resumed(3)
    other = [PerturbationCallback(**RESUMED["reset"]), StopAfter(1)]
    trainer_with(tmp_path, other, model=families.build("bert", seed=9)).train()
    with pytest.raises(ResumeError, match="are not those of this checkpoint"):
        resumed(2)
    path.write_bytes(kept)
    resumed(3)


@pytest.mark.parametrize(
    ("other", "arguments", "message"),
    [
        ({"kind": "reset_to_random"}, {}, "other settings.*reset_to_random"),
        ({"at": 4}, {}, "other settings"),
        ({}, {"seed": 4}, "other perturbation.*'seed': 4"),
        ({"at": 0.6}, {}, "other settings"),
    ],
)
def test_other_settings_are_refused(tmp_path, other, arguments, message):
    trainer_with(tmp_path, [PerturbationCallback(**RESUMED["reset"]), StopAfter(2)]).train()
    second = trainer_with(tmp_path, [PerturbationCallback(**{**RESUMED["reset"], **other})], **arguments)
    with pytest.raises(ResumeError, match=f"(?s){message}"):
        second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_length_and_a_checkpoint_without_it(tmp_path):
    trainer_with(tmp_path, [PerturbationCallback(0.6, "shuffle"), StopAfter(2)]).train()
    longer = trainer_with(tmp_path, [PerturbationCallback(0.6, "shuffle")], max_steps=10)
    with pytest.raises(ResumeError, match=r"other perturbation.*'update': 6"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    trainer_with(tmp_path / "without", [StopAfter(2)]).train()
    late = trainer_with(tmp_path / "without", [PerturbationCallback(3, "shuffle")])
    with pytest.raises(ResumeError, match="made without PerturbationCallback"):
        late.train(resume_from_checkpoint=str(tmp_path / "without" / "checkpoint-2"))


# Models.


def test_tied_weights_are_perturbed_once_and_stay_tied(tmp_path):
    class Causal(Rows):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "labels": self.ids[index]}

    model = families.build("gpt2", task="causal_lm")
    first, second = Around(), Around()
    callback = PerturbationCallback(2, "shuffle", ["embeddings"])
    trainer_with(tmp_path, [first, callback, second], model=model, dataset=Causal()).train()
    assert model.lm_head.weight is model.transformer.wte.weight
    before, after = (one.at["begin", 2]["weight/transformer.wte.weight"] for one in (first, second))
    assert sorted(before.flatten().tolist()) == sorted(after.flatten().tolist())


def test_output_units_of_gpt2_are_columns(tmp_path):
    model = families.build("gpt2")
    first, second = Around(), Around()
    callback = PerturbationCallback(2, "shuffle", ["block.0"], within="row", parameters="matrices")
    trainer_with(tmp_path, [first, callback, second], model=model).train()
    before, after = (one.at["begin", 2]["weight/transformer.h.0.mlp.c_fc.weight"] for one in (first, second))
    assert not torch.equal(before, after)
    assert torch.equal(before.sort(dim=0).values, after.sort(dim=0).values)
    assert not torch.equal(before.sort(dim=1).values, after.sort(dim=1).values)


def lora():
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return get_peft_model(families.build("bert"), config)


def test_of_lora_the_adapters_are_perturbed(tmp_path):
    model = lora()
    start, first, second = copy_weights(model), Around(), Around()
    trainer_with(tmp_path, [first, PerturbationCallback(3, "reset_to_start", ["block.1"]), second], model=model).train()
    before, after = first.at["begin", 3], second.at["begin", 3]
    moved = {key.removeprefix("weight/") for key in after if not torch.equal(after[key], before[key])}
    assert moved == {n for n, p in model.named_parameters() if ".layer.1." in n and "lora_" in n}
    assert all(torch.equal(after[f"weight/{name}"], start[name]) for name in moved)


@pytest.mark.parametrize(
    "settings",
    [{"kind": "redraw_magnitudes"}, {"kind": "redraw_signs", "source": "start"}, {"kind": "noise", "unit": "start"}],
)
def test_of_lora_b_has_nothing_to_give_at_the_start(tmp_path, settings):
    trainer = trainer_with(tmp_path, [PerturbationCallback(3, groups=["block.1"], **settings)], model=lora())
    with pytest.raises(ConfigurationError, match=r"(?s)at the start: they are constant.*lora_B"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(("pattern", "meant"), [("block.-1", ["block.2"]), (r"/block\.[01]/", ["block.0", "block.1"])])
def test_groups_may_be_named_as_in_a_schedule(pattern, meant):
    model = families.build("bert")
    found = [chosen(PerturbationConfig(1, "shuffle", groups=groups), model) for groups in ((pattern,), tuple(meant))]
    assert list(found[0]) == meant
    assert {group: list(owned) for group, owned in found[0].items()} == {
        group: list(owned) for group, owned in found[1].items()
    }
    with pytest.raises(ConfigurationError, match=r"Unknown layer group\. Got: block\.-9"):
        chosen(PerturbationConfig(1, "shuffle", groups=("block.-9",)), model)


# Measured together.


@pytest.mark.parametrize("at", [0, 2, UPDATES])
def test_measurements_are_of_the_weights_before_they_are_perturbed(tmp_path, at):
    def series(folder, reverse, **arguments):
        measuring = EarlyDynamicsCallback(["trajectory"], every=1, update_direction=True)
        callbacks = [measuring, PerturbationCallback(at, "shuffle", ["block.1"])]
        trainer_with(tmp_path / folder, callbacks[::-1] if reverse else callbacks, **arguments).train()
        return without_times(measuring.records)

    ours = {"trainer_class": EarlyOODTrainer}
    found = series("ours", True, **ours)
    assert found == series("in order", False, **ours)
    assert found[0]["value"] == 0
    for one in (found, series("plain", False)):
        steps = [record["details"]["quantities"]["update_length"]["value"] for record in one[1:]]
        assert steps == sorted(steps, reverse=True)  # as the learning rate falls: none is the perturbation
    with pytest.raises(ConfigurationError, match="PerturbationCallback before EarlyDynamicsCallback"):
        series("refused", True)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": -1}, "at is out of range. Got: -1"),
        ({"at": 0.0}, "at is out of range. Got: 0.0"),
        ({"at": 1.5}, "at is out of range. Got: 1.5"),
        ({"at": True}, "at is out of range. Got: True"),
        ({"at": "auto"}, "at is out of range. Got: 'auto'"),
        ({"kind": "resett"}, "Unknown kind. Got: resett"),
        ({"groups": "head"}, r"groups is a list of group names.*Write \['head'\]"),
        ({"groups": []}, "groups names no layer group"),
        ({"groups": ["head", "head"]}, "names a layer group twice"),
        ({"parameters": "weights"}, "Unknown parameters"),
        ({"within": "filter"}, "Unknown within"),
        ({"kind": "noise", "within": "row"}, "within has no effect with kind noise"),
        ({"std": 2.0}, "std has no effect with kind shuffle"),
        ({"unit": "absolute"}, "unit has no effect with kind shuffle"),
        ({"kind": "noise", "std": 0.0}, "std is not usable"),
        ({"kind": "noise", "std": float("nan")}, "std is not usable"),
        ({"kind": "noise", "unit": "sigma"}, "Unknown unit"),
        ({"kind": "noise", "source": "start"}, "source has no effect with kind noise"),
        ({"kind": "redraw_signs", "source": "initializer"}, "source is not one of kind redraw_signs"),
        ({"kind": "redraw_magnitudes", "source": "random"}, "source is not one of kind redraw_magnitudes"),
        ({"keep_signs": "yes"}, "keep_signs is not usable"),
        ({"seed": -1}, "seed is not usable"),
        ({"optimizer_state": "drop"}, "Unknown optimizer_state"),
        ({"kind": "reset_to_start", "at": 0}, "at comes before anything has moved"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PerturbationCallback(**{"at": 3, "kind": "shuffle", **settings})


class Unknown(nn.Module):
    """A layer that nothing initializes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.own = inner, nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        return self.inner(*inputs) * self.own


def with_unknown_layer():
    model = families.build("bert")
    model.classifier = Unknown(model.classifier)
    return model


@pytest.mark.parametrize(
    ("callbacks", "arguments", "error", "message"),
    [
        (lambda: [PerturbationCallback(6, "shuffle")], {}, ConfigurationError, "after training ends. Got: at=6"),
        (lambda: [PerturbationCallback(3, "shuffle", ["blok.1"])], {}, ConfigurationError, r"Did you mean 'block\.1'"),
        (
            lambda: [PerturbationCallback(3, "shuffle"), GradualUnfreezingCallback(interval=2)],
            {},
            ConfigurationError,
            "must not move",
        ),
        (
            lambda: [GradualUnfreezingCallback(interval=2), PerturbationCallback(3, "shuffle")],
            {},
            ConfigurationError,
            "must not move",
        ),
        (
            lambda: [PerturbationCallback(3, "shuffle")],
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            ConfigurationError,
            "best checkpoint may be one from before",
        ),
        (
            lambda: [PerturbationCallback(3, "reset_to_random")],
            {"model": with_unknown_layer},
            UnsupportedModelError,
            "no initializer writes to them",
        ),
        (
            lambda: [PerturbationCallback(3, "redraw_magnitudes", ["head"])],
            {},
            ConfigurationError,
            r"no magnitudes at the start.*bias",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_first_update(tmp_path, callbacks, arguments, error, message):
    made = {key: value() if key == "model" else value for key, value in arguments.items()}
    trainer = trainer_with(tmp_path, callbacks(), eval_dataset=Rows(), **made)
    with pytest.raises(error, match=f"(?s){message}"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_nothing_of_a_kind_in_a_group(tmp_path):
    model = families.build("bert")
    model.classifier.weight.requires_grad_(False)
    model.bert.pooler.dense.weight.requires_grad_(False)
    trainer = trainer_with(tmp_path, [PerturbationCallback(3, "shuffle", ["head"], parameters="matrices")], model=model)
    with pytest.raises(ConfigurationError, match=r"nothing to perturb in a layer group\. Got: head"):
        trainer.train()


def test_shards_are_refused(tmp_path, monkeypatch):
    trainer = trainer_with(tmp_path, [PerturbationCallback(3, "shuffle")])
    monkeypatch.setattr(perturbing, "sharded_modules", lambda model: [model])
    with pytest.raises(UnsupportedSetupError, match="need whole weights"):
        trainer.train()


def test_one_in_a_trainer(tmp_path):
    with pytest.raises(ConfigurationError, match="two callbacks PerturbationCallback"):
        trainer_with(tmp_path, [PerturbationCallback(3, "shuffle"), PerturbationCallback(4, "shuffle")]).train()


def test_beside_generations(tmp_path):
    generations = GenerationsCallback(2, None, forget=True, boundary="head")
    callbacks = [generations, PerturbationCallback(2, "shuffle", ["block.0"])]
    trainer_with(tmp_path, callbacks, trainer_class=EarlyOODTrainer).train()
    lines = [json.loads(line) for line in (tmp_path / names.DYNAMICS_FILE).read_text().splitlines()]
    found = [(line["step"], line["event"]) for line in lines]
    assert found == [(0, "generation"), (2, "generation"), (2, "perturbation")]


def test_from_the_arguments(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("intervention: {perturbation: {at: 1.0, kind: reset_to_random, groups: [head]}}")
    start = families.build("bert")
    trainer = trainer_with(
        tmp_path, [], trainer_class=EarlyOODTrainer, arguments_class=EarlyOODArguments, intervention=str(file)
    )
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, PerturbationCallback)]
    trainer.train()
    head = find_layer_groups(trainer.model)["head"].parameters
    initial = initial_values(start, find_layer_groups(start)["head"].parameters, seed_for(3, "head"))
    assert [record["step"] for record in callback.records] == [UPDATES]
    assert all(torch.equal(parameter, initial[name]) for name, parameter in head.items())


def test_a_training_that_ends_before_says_so(tmp_path, caplog):
    logging.getLogger("transformers").propagate = True
    trainer_with(tmp_path, [PerturbationCallback(4, "shuffle"), StopAfter(2)]).train()
    assert "Training ended after 2 updates, the perturbation was due after 4." in caplog.text
