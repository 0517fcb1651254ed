"""Which interventions go together: every refused pair with its reason, and the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_early_ood.callbacks.making import make_callbacks
from hf_early_ood.config import RunConfig, StudyConfig
from hf_early_ood.config.loading import load_intervention
from hf_early_ood.errors import ConfigurationError
from tests.test_config import minimal

GRADUAL = {"method": "gradual_unfreezing"}
FIXED = {"method": "gradual_unfreezing", "interval": 50}
LISA = {"method": "lisa"}
AUTOFREEZE = {"method": "autofreeze"}
STANDARD = {"method": "standard"}
SEAL = {"generations": {"ascent": 0.25}}
LLF = {"generations": {"ascent": None, "forget": True}}
RESTARTS = {"generations": {"ascent": None}}
PENALTY = {"fisher_penalty": {"alpha": 0.1}}
MASKED = {"pretext": {"kind": "masked_lm"}}
SHUFFLED = {"pretext": {"kind": "shuffled_tokens", "updates": 5}}
RANDOM = {"pretext": {"kind": "random_labels", "updates": 0.2, "seed": 3, "optimizer_state": "keep"}}
DECAY = {"learning_rates": {"layer_decay": 0.9}}
SWITCH = {"learning_rates": {"switch_factor": 0.1, "switch_at": 20}}
SWITCH_AUTO = {"learning_rates": {"switch_factor": 0.1, "switch_at": "auto"}}
RESET = {"perturbation": {"at": 0.1, "kind": "reset_to_start", "groups": ["block.0"]}}
WISE = {"weight_interpolation": {}}
FIRST_STAGE = {"weight_interpolation": {"head": "first_stage"}}


def read(*parts: dict[str, Any]) -> RunConfig:
    intervention = {key: value for part in parts for key, value in part.items()}
    return RunConfig.from_dict({**minimal(), "intervention": intervention})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((STANDARD, {"lisa": {}}), r"intervention\.lisa: is given, but intervention\.method is standard"),
        ((GRADUAL, {"lisa": {"interval": 5}}), r"intervention\.lisa: .*is gradual_unfreezing.*null, or method: lisa"),
        ((LISA, {"autofreeze": {}}), r"intervention\.autofreeze: is given, but intervention\.method is lisa"),
        ((AUTOFREEZE, {"lisa": {}}), r"intervention\.lisa: is given, but intervention\.method is autofreeze"),
        ((LISA, {"interval": 50}), r"intervention\.interval: has no effect with method lisa"),
        ((AUTOFREEZE, {"probe": {"size": 64}}), r"intervention\.probe: has no effect with method autofreeze"),
        ((GRADUAL, SEAL), r"intervention\.generations: .*it does not go with method gradual_unfreezing"),
        ((GRADUAL, LLF), r"intervention\.generations: .*it does not go with method gradual_unfreezing"),
        ((LISA, SEAL), r"intervention\.generations: .*it does not go with method lisa"),
        ((AUTOFREEZE, RESTARTS), r"intervention\.generations: .*it does not go with method autofreeze"),
        ((SEAL, PENALTY), r"intervention\.fisher_penalty: would be raised, not lowered"),
        ((GRADUAL, MASKED), r"pretext\.kind: masked_lm trains all layers but the head.*gradual_unfreezing"),
        ((LISA, MASKED), r"pretext\.kind: masked_lm trains all layers but the head, and method lisa"),
        ((SEAL, MASKED), r"intervention\.generations: is about the task, whose loss masked_lm leaves out"),
        ((PENALTY, MASKED), r"intervention\.fisher_penalty: is about the task, whose loss masked_lm leaves out"),
        ((RESET, MASKED), r"intervention\.perturbation: is about the task, whose loss masked_lm leaves out"),
        (({"pretext": {"kind": "blur"}},), r"pretext\.kind"),
        (({"pretext": {"updates": 3}},), r"pretext\.kind: this key is required and missing"),
        (
            ({"pretext": {"kind": "masked_lm", "updates": 0}},),
            r"pretext\.updates: is out of range\. Got: 0\. Allowed: a whole",
        ),
        (({"pretext": {"kind": "masked_lm", "updates": 1.5}},), r"pretext\.updates: is out of range"),
        (({"pretext": {"kind": "masked_lm", "mask_probability": 1}},), r"pretext\.mask_probability"),
        (
            ({"pretext": {"kind": "random_labels", "mask_probability": 0.3}},),
            r"mask_probability: has no effect with kind",
        ),
        ((LLF, WISE), r"intervention\.weight_interpolation: .*there is no path between"),
        ((GRADUAL, RESET), r"intervention\.perturbation: .*it does not go with method gradual_unfreezing"),
        ((LISA, RESET), r"intervention\.perturbation: .*it does not go with method lisa"),
        ((RESET, WISE), r"intervention\.weight_interpolation: .*perturbed on the way.*there is no path between"),
        ((STANDARD, FIRST_STAGE), r"weight_interpolation\.head: training does not begin with a stage"),
        ((LISA, FIRST_STAGE), r"weight_interpolation\.head: training does not begin with a stage"),
        ((FIXED, {"start": 10}, FIRST_STAGE), r"weight_interpolation\.head: training does not begin with a stage"),
        ((STANDARD, SWITCH_AUTO), r"learning_rates\.switch_at: nothing decides a moment"),
        ((LISA, SWITCH_AUTO), r"learning_rates\.switch_at: nothing decides a moment"),
        ((FIXED, SWITCH_AUTO), r"learning_rates\.switch_at: nothing decides a moment"),
    ],
)
def test_what_does_not_go_together(parts: tuple[dict[str, Any], ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)1 problem.*{message}"):
        read(*parts)


@pytest.mark.parametrize(
    ("parts", "callbacks"),
    [
        ((STANDARD,), []),
        ((LISA, {"lisa": {"interval": 5}}), ["LISA"]),
        ((LISA, DECAY, PENALTY, WISE), ["LISA", "LearningRates", "FisherPenalty"]),
        ((AUTOFREEZE, {"autofreeze": {}}), ["AutoFreeze"]),
        ((AUTOFREEZE, SWITCH, PENALTY, WISE), ["AutoFreeze", "LearningRates", "FisherPenalty"]),
        ((GRADUAL, DECAY, PENALTY, WISE), ["GradualUnfreezing", "LearningRates", "FisherPenalty"]),
        ((GRADUAL, SWITCH_AUTO, FIRST_STAGE), ["GradualUnfreezing", "LearningRates", "FirstStage"]),
        ((FIXED, SWITCH, FIRST_STAGE), ["GradualUnfreezing", "LearningRates", "FirstStage"]),
        ((FIXED, {"start": 10}, WISE), ["GradualUnfreezing"]),
        ((SEAL, DECAY, WISE), ["LearningRates", "Generations"]),
        ((LLF, PENALTY, SWITCH), ["LearningRates", "Generations", "FisherPenalty"]),
        ((RESTARTS, PENALTY, WISE), ["Generations", "FisherPenalty"]),
        (({"generations": {"ascent": 0.25, "forget": True}},), ["Generations"]),
        ((STANDARD, RESET), ["Perturbation"]),
        ((LLF, PENALTY, DECAY, RESET), ["LearningRates", "Generations", "FisherPenalty", "Perturbation"]),
        ((STANDARD, MASKED, DECAY, WISE), ["LearningRates", "Pretext"]),
        ((GRADUAL, SHUFFLED, PENALTY), ["GradualUnfreezing", "FisherPenalty", "Pretext"]),
        ((SEAL, RANDOM, RESET), ["Generations", "Perturbation", "Pretext"]),
        ((STANDARD, PENALTY, WISE, SWITCH), ["LearningRates", "FisherPenalty"]),
    ],
)
def test_what_goes_together(parts: tuple[dict[str, Any], ...], callbacks: list[str]) -> None:
    made = [type(callback).__name__.removesuffix("Callback") for callback in make_callbacks(read(*parts).intervention)]
    assert made == callbacks


def test_a_pretext_fits_the_task_and_the_length_of_training() -> None:
    def problem(message: str, **changes: Any) -> None:
        with pytest.raises(ConfigurationError, match=message):
            RunConfig.from_dict({**minimal(), **changes})

    words = {"task": "question_answering", "intervention": SHUFFLED}
    problem(r"pretext\.kind: would tear the answers apart", **words)
    long = {"intervention": {"pretext": {"kind": "masked_lm", "updates": 20}}}
    problem(r"pretext\.updates: the task would never be trained.*max_steps=20", training={"max_steps": 20}, **long)


def test_every_key_without_a_method_is_named() -> None:
    keys = {"interval": 0.1, "first": 1, "embeddings": "last", "probe": {"size": 128}, "vote": "all"}
    with pytest.raises(ConfigurationError, match="5 problems") as error:
        read(keys, {"detector": {}}, SEAL)
    for key in ("interval", "first", "embeddings", "probe", "vote"):
        assert f"intervention.{key}: has no effect without intervention.method. Got: " in str(error.value)
    assert "Allowed: method: gradual_unfreezing beside it, or method: standard" in str(error.value)
    own = {"interval": 0.1, "probe": {"size": 128}}
    assert read(own, STANDARD).intervention.interval == read(own, GRADUAL).intervention.interval == 0.1


def test_also_in_a_file_of_its_own_and_not_where_a_preset_names_the_method(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("intervention: {interval: 20, order: random}")
    with pytest.raises(ConfigurationError, match=r"(?s)2 problems.*interval: has no effect.*order: has no effect"):
        load_intervention(path)
    path.write_text("preset: liu2023_fun\nintervention: {interval: 20, order: random}")
    assert load_intervention(path).interval == 20


def test_an_arm_can_switch_off_what_the_arms_share() -> None:
    arms: dict[str, Any] = {"plain": {"intervention": STANDARD}, "gradual": {"intervention": GRADUAL}}
    shared = {**minimal(), "study": {"baseline": "plain", "seeds": [1], "arms": arms}}
    shared["intervention"] = {"interval": 0.1, "probe": {"size": 64}}
    methods = [run.intervention.method for run in StudyConfig.from_dict(shared).runs()]
    assert methods == ["standard", "gradual_unfreezing"]
    arms["plain"] = {}
    with pytest.raises(ConfigurationError, match=r"2 problems.*\n *study\.arms\.plain\.intervention\.interval: has no"):
        StudyConfig.from_dict(shared)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"alphas": []}, r"alphas: are not usable\. Got: \[\]\. Allowed: a list of different numbers from 0 to 1"),
        ({"alphas": [0.0, 1.5]}, r"alphas: are not usable\. Got: \[0\.0, 1\.5\]"),
        ({"alphas": [-0.1]}, r"alphas: are not usable"),
        ({"alphas": [0.5, 0.5]}, r"alphas: are not usable"),
        ({"alphas": [0.5, 0.5], "alpha": 0.7}, r"alphas: are not usable"),
        ({"alphas": 0.5}, r"alphas: has the wrong type"),
        ({"alphas": None}, r"alphas: has the wrong type"),
        ({"alpha": 0.55}, r"alpha: is not one of alphas\. Got: 0\.55\. Allowed: id_validation, 0\.0, 0\.1, 0\.2"),
        (
            {"alphas": [0, 1], "alpha": 0.5},
            r"alpha: is not one of alphas\. Got: 0\.5\. Allowed: id_validation, 0\.0, 1",
        ),
        ({"alpha": "ood/movie"}, r"alpha: has the wrong type\. Got: 'ood/movie'\. Allowed: id_validation, or one of"),
        ({"head": "pretrained"}, r"head: has the wrong type\. Got: 'pretrained'\. Allowed: first_stage, final"),
        ({"alpa": 0.5}, r"alpa: unknown key\. Did you mean 'intervention\.weight_interpolation\.alpha'"),
    ],
)
def test_keys_of_the_interpolation(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"1 problem.*\n.*weight_interpolation\.{message}"):
        read({"weight_interpolation": section})


@pytest.mark.parametrize("alpha", [0, 1, 0.3, "0.7", "id_validation"])
def test_an_alpha_of_the_curve(alpha: Any) -> None:
    own = read({"weight_interpolation": {"alpha": alpha}}).intervention.weight_interpolation
    assert own is not None
    assert own.alpha == (alpha if alpha == "id_validation" else float(alpha))
    assert own.alphas == tuple(step / 10 for step in range(11))
    assert own.head == "final"


def test_one_mistake_does_not_hide_another() -> None:
    with pytest.raises(ConfigurationError, match="2 problems") as error:
        read(GRADUAL, RESTARTS, {"fisher_penalty": {"alpha": 1, "every": 0}})
    assert "intervention.fisher_penalty.every: is out of range" in str(error.value)
    assert "intervention.generations: " in str(error.value)


@pytest.mark.parametrize(
    "parts",
    [
        ({"method": "gradual"}, {"lisa": {}}),
        ({"method": "gradual"}, FIRST_STAGE, SWITCH_AUTO),
        (GRADUAL, {"start": "late"}, FIRST_STAGE),
        (GRADUAL, {"interval": "often"}, SWITCH_AUTO),
        ({"generations": {"ascent": "up"}}, PENALTY),
        (SEAL, {"fisher_penalty": 3}),
        ({"generations": {"forget": "yes"}}, WISE),
        ({"weight_interpolation": {"alphas": "all", "alpha": 0.5}},),
        ({"weight_interpolation": 0.5}, LLF),
    ],
)
def test_what_cannot_be_read_is_not_compared(parts: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ConfigurationError, match="1 problem"):
        read(*parts)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"at": -1}, r"at: is out of range\. Got: -1\. Allowed: a whole number of updates >= 0"),
        ({"at": 1.2}, r"at: is out of range\. Got: 1\.2"),
        ({"at": 0}, r"at: comes before anything has moved from the start"),
        ({"at": "auto"}, r"at: has the wrong type"),
        ({"kind": "reset"}, r"kind: has the wrong type.*Allowed: reset_to_start, reset_to_random"),
        ({"groups": []}, r"groups: names no layer group"),
        ({"groups": ["head", "head"]}, r"groups: names a layer group twice\. Got: 'head'"),
        ({"within": "row"}, r"within: has no effect with kind reset_to_start"),
        ({"std": 0.5}, r"std: has no effect with kind reset_to_start"),
        ({"source": "start"}, r"source: has no effect with kind reset_to_start"),
        ({"kind": "noise", "std": 0}, r"std: is out of range"),
        ({"kind": "redraw_signs", "source": "initializer"}, r"source: is not one of kind redraw_signs"),
        ({"sigma": 1}, r"sigma: unknown key"),
    ],
)
def test_keys_of_a_perturbation(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"(?s)1 problem.*\n.*intervention\.perturbation\.{message}"):
        read({"perturbation": {"at": 5, "kind": "reset_to_start", **section}})


@pytest.mark.parametrize("at", [0, 5, 0.05, 1.0, "0.05", "1.0"])
def test_an_update_of_a_perturbation(at: Any) -> None:
    own = read({"perturbation": {"at": at, "kind": "shuffle"}}).intervention.perturbation
    assert own is not None
    assert own.at == float(at)
    assert isinstance(own.at, int) == (at in (0, 5))


def test_the_best_checkpoint_may_be_one_from_before_a_perturbation() -> None:
    run = {**minimal(), "intervention": RESET, "training": {"load_best_model_at_end": True}}
    with pytest.raises(ConfigurationError, match=r"training\.load_best_model_at_end: the best checkpoint may be"):
        RunConfig.from_dict(run)
