"""What a whole training costs with each intervention, as a ratio to standard fine-tuning.

    python benchmarks/bench_interventions.py [--quick] [--name NAME] [--device cuda] [--updates 60]

BERT of MiniLM-L6 geometry with random weights, trained by EarlyOODTrainer for so many updates, on the same batches in
the same order in every arm. An arm is a section ``intervention`` of a recipe (`arms`), read from a file as a user's is.
Intervals are a tenth of training, so that all of the 8 layer groups train in the last three tenths.

Time is that of the process (on a GPU, that on the wall) from on_train_begin to on_train_end: what an intervention does
before the first update and between updates is part of it, loading and evaluating is not. Every repetition trains all
arms in turn, with a standard training before every few of them, and each arm is divided by the latest of these; medians
are reported, and so is an update in each stage, in updates of standard training. The time of measurements is also told
in those. An automatic interval needs window + 1 measurements at least and a selection one for each release, however
long training is: a large share of one as short as this, and little of a long one.

WiSE-FT does nothing to training. What is timed is all of its curve but the evaluations: the copy of the weights before,
and interpolating and putting back at 11 points. Prints a table and writes benchmarks/results/NAME.json.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import Goal, bert, collate, examples, finish, parser, seconds, setting, start
from transformers import PrinterCallback, TrainerCallback

from hf_early_ood import EarlyOODArguments, EarlyOODTrainer
from hf_early_ood.interventions.interpolation_curve import ALPHAS, evaluated_at
from hf_early_ood.interventions.weight_interpolation import FINAL, copied_weights, starting_point

FREEZES, DECIDES, SELECTS, CHANGES_RATES = "freezes", "decides", "selects", "changes learning rates"
GENERATIONS, PENALIZES = "trains in generations", "penalizes"
LIMITS = {FREEZES: 1.0, DECIDES: 1.0, CHANGES_RATES: 1.05, GENERATIONS: 1.05}
"""Largest ratio that the project promises, by what an arm does; the others do more on purpose."""
STANDARD_EVERY = 3  # arms

Section = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A way of training: what it does to it, and the section ``intervention`` of a recipe."""

    does: str
    section: Section


def arms(updates: int) -> dict[str, Arm]:
    """All arms by name, for a training of so many updates."""
    gradual: Section = {"method": "gradual_unfreezing", "interval": 0.1}
    later = {"generations": 3, "ascent": None, "forget": True}
    return {
        "gradual unfreezing, top_down": Arm(FREEZES, gradual),
        "gradual unfreezing, bottom_up": Arm(FREEZES, {**gradual, "order": "bottom_up"}),
        "gradual unfreezing, random": Arm(FREEZES, {**gradual, "order": "random"}),
        "LP-FT": Arm(FREEZES, {**gradual, "release": "all_at_once"}),
        "late start": Arm(FREEZES, {**gradual, "start": 0.1}),
        "LISA": Arm(FREEZES, {"method": "lisa", "lisa": {"interval": 0.1}}),
        "AutoFreeze": Arm(FREEZES, {"method": "autofreeze"}),
        "automatic interval, Fisher trace": Arm(
            DECIDES, {**gradual, "interval": "auto", "probe": {"every": max(1, updates // 30)}}
        ),
        "FUN (fisher_trace)": Arm(SELECTS, {**gradual, "order": "fisher_trace"}),
        "FUN's code (fisher_trace_batch_mean)": Arm(SELECTS, {**gradual, "order": "fisher_trace_batch_mean"}),
        "relative_gradient_norm": Arm(SELECTS, {**gradual, "order": "relative_gradient_norm"}),
        "layer-wise decay and release warm-up": Arm(
            CHANGES_RATES, {**gradual, "learning_rates": {"layer_decay": 0.9, "release_warmup": 0.05}}
        ),
        "layer-wise decay": Arm(CHANGES_RATES, {"learning_rates": {"layer_decay": 0.9}}),
        "low-to-high switch": Arm(CHANGES_RATES, {"learning_rates": {"switch_factor": 0.1, "switch_at": 0.2}}),
        "SEAL": Arm(GENERATIONS, {"generations": {"generations": 3, "ascent": 0.25}}),
        "later-layer forgetting": Arm(GENERATIONS, {"generations": later}),
        "Fisher penalty in every update": Arm(PENALIZES, {"fisher_penalty": {"alpha": 0.01}}),
        "Fisher penalty in every 10th": Arm(PENALIZES, {"fisher_penalty": {"alpha": 0.01, "every": 10}}),
    }


def main() -> None:
    """Measure, print, record."""
    options = parser(__doc__, "bench_interventions", repetitions=3, examples=16, length=64, updates=60).parse_args()
    start(options)
    logging.getLogger("hf_early_ood").setLevel(logging.ERROR)
    if options.quick:
        options.repetitions, options.updates = 1, 12
    everything = arms(options.updates)
    trained: dict[str, list[tuple[Training, Training]]] = {name: [] for name in everything}
    curves = []
    train(options)  # warm-up
    for repetition in range(options.repetitions):
        for position, (name, arm) in enumerate(everything.items()):
            if position % STANDARD_EVERY == 0:
                standard = train(options)
            training = train(options, arm.section)
            trained[name].append((training, standard))
            print(f"{repetition + 1}: {name}: {training.total / standard.total:.3f}", flush=True)
        curves.append(seconds(curve(options), options.device)[0] / standard.update)
    results = {name: summary(arm, trained[name]) for name, arm in everything.items()}
    show(results)
    interpolation = {"alphas": len(ALPHAS), "updates": statistics.median(curves), "repetitions": curves}
    print(f"WiSE-FT: {interpolation['updates']:.2f} updates for {len(ALPHAS)} points, without the evaluations")
    finish(
        options,
        setting=setting(options, examples=options.examples, length=options.length, updates=options.updates),
        results={"arms": results, "weight_interpolation": interpolation},
        goals=[Goal(name, row["ratio"], LIMITS[row["does"]]) for name, row in results.items() if row["does"] in LIMITS],
    )


@dataclass
class Training:
    """What one training took, in seconds.

    Attributes:
        total: From on_train_begin to on_train_end.
        before: Until the first update begins.
        stages: Of every update, by stage; 0 where there are no stages.
        measuring: Share of the total that was spent on measurements.
        decided: Update at which an automatic interval was decided.
    """

    total: float = 0.0
    before: float = 0.0
    stages: dict[int, list[float]] = field(default_factory=dict)
    measuring: float = 0.0
    decided: int | None = None

    @property
    def update(self) -> float:
        """One update, with its share of everything else."""
        return self.total / sum(map(len, self.stages.values()))


class Clock(TrainerCallback):
    """Times a training. It comes before the callbacks of the intervention, so that what they do is timed."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.training = Training()
        self.trainer: EarlyOODTrainer | None = None
        self._begin = self._wall = self._update = 0.0

    def now(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin, self._wall = self.now(), time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._update = self.now()
        self.training.before = self.training.before or self._update - self._begin

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        staged = self.trainer.unfreezing if self.trainer else None
        self.training.stages.setdefault(staged.stage if staged else 0, []).append(self.now() - self._update)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.training.total, wall = self.now() - self._begin, time.perf_counter() - self._wall
        staged = self.trainer.unfreezing if self.trainer else None
        if staged is not None:
            self.training.measuring = staged.probe_seconds / wall
            self.training.decided = staged.decision.step if staged.decision else None


def train(options: argparse.Namespace, section: Section | None = None) -> Training:
    """One training from the same weights; without a section, standard fine-tuning."""
    clock = Clock(options.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "intervention.yaml"
        file.write_text(yaml.safe_dump(section), encoding="utf-8")
        arguments = EarlyOODArguments(
            output_dir=folder,
            intervention="standard" if section is None else str(file),
            max_steps=options.updates,
            per_device_train_batch_size=options.examples,
            learning_rate=1e-5,
            use_cpu=options.device == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock.trainer = EarlyOODTrainer(
            model=bert(options),
            args=arguments,
            train_dataset=examples(options, options.examples * options.updates, options.length),
            data_collator=collate,
            callbacks=[clock],
        )
        clock.trainer.remove_callback(PrinterCallback)
        clock.trainer.train()
    clock.trainer = None
    gc.collect()  # the model, which holds itself; not in the middle of the next training
    return clock.training


def curve(options: argparse.Namespace) -> Any:
    """The job of drawing the curve of WiSE-FT with evaluations that do nothing."""
    model = bert(options)

    def run() -> None:
        before = copied_weights(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3)
        evaluated_at(model, starting_point(model, before, head=FINAL), lambda _: None)

    return run


def summary(arm: Arm, pairs: Iterable[tuple[Training, Training]]) -> dict[str, Any]:
    """Medians over repetitions of what an arm took, in what standard training took."""
    pairs = list(pairs)
    stages: dict[int, list[float]] = {}
    for training, standard in pairs:
        unit = statistics.median(standard.stages[0])
        for stage, times in training.stages.items():
            stages.setdefault(stage, []).append(statistics.median(times) / unit)
    ratios = [training.total / standard.total for training, standard in pairs]
    return {
        "does": arm.does,
        "section": arm.section,
        "seconds": statistics.median(training.total for training, _ in pairs),
        "seconds_before_the_first_update": statistics.median(training.before for training, _ in pairs),
        "standard_seconds": statistics.median(standard.total for _, standard in pairs),
        "ratio": statistics.median(ratios),
        "measuring_share": statistics.median(training.measuring for training, _ in pairs),
        "measuring_updates": statistics.median(
            training.measuring * training.total / standard.update for training, standard in pairs
        ),
        "update_by_stage": {str(stage): statistics.median(values) for stage, values in sorted(stages.items())},
        "decided": [training.decided for training, _ in pairs],
        "repetitions": ratios,
    }


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':38} {'s':>7} {'ratio':>7} {'measuring':>10}   an update in each stage")
    for name, row in results.items():
        stages = " ".join(f"{value:.2f}" for value in row["update_by_stage"].values())
        print(f"{name:38} {row['seconds']:7.2f} {row['ratio']:7.3f} {row['measuring_updates']:10.2f}   {stages}")


if __name__ == "__main__":
    main()
