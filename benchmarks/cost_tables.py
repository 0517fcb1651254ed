"""The records of the benchmarks as tables: short ones for README.md, all rows for benchmarks/README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness import BOTH_WAYS, MEBIBYTE, STEP, STEP_WITHOUT_DROPOUT

Record = dict[str, Any]


# What README.md shows; benchmarks/README.md has every row.
SHORT = {
    "fisher": (
        "step, head only",
        "step, head + top half",
        "forward only",
        "fisher_trace exact, all parameters",
        "fisher_trace exact, head only",
        "fisher_trace rademacher, all parameters",
        STEP_WITHOUT_DROPOUT,
    ),
    "sharpness": ("average, plain, mirrored pairs", "worst case, plain, l2", "worst case, adaptive, l2"),
    "curvature": ("hessian trace, hutch++", "hessian top eigenvalue", "gauss_newton trace, hutch++"),
    "peers": ("empirical Fisher trace",),
    "scaling": ("length",),
    "ddp": ("re-wrapped, with search",),  # left out
    "interventions": ("gradual unfreezing, random", "late start", "layer-wise decay"),  # left out
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def where(record: Record) -> str:
    """Model, device and command of a record."""
    setting, environment = record["setting"], record["environment"]
    threads = environment["threads"]
    device = f"{threads} CPU thread{'s' * (threads > 1)}" if setting["device"] == "cpu" else environment["device"]
    return f"BERT of MiniLM-L6 geometry, {setting['parameters'] / 1e6:.1f} M parameters, {device}"


def batch_of(record: Record) -> str:
    """The batch that everything is measured on."""
    return f"{record['setting']['examples']} examples of up to {record['setting']['length']} tokens"


def command_of(record: Record) -> str:
    """The command that made a record."""
    return f"`{record['environment']['command']}`"


def goal_of(record: Record, *names: str) -> str:
    """The goal that these numbers have, if they have one, and whether one of them missed it."""
    goals = [goal for goal in record["goals"] if goal["what"] in names]
    return limit(goals[0], all(goal["met"] for goal in goals)) if goals else ""


def limit(goal: dict[str, Any], met: bool) -> str:
    """A goal in words."""
    return ("at least" if goal["at_least"] else "at most") + f" {goal['limit']:g}" + ("" if met else " (missed)")


def mebibytes(size: float | None) -> str:
    """MiB."""
    return "" if size is None else f"{size / MEBIBYTE:.0f}"


def fisher(record: Record, short: bool) -> str:
    """Stages of unfreezing and the Fisher trace, in full training steps."""
    rows = [
        (name, f"{row['ratio']:.2f}", goal_of(record, name))
        for name, row in record["results"].items()
        if not short or name in SHORT["fisher"]
    ]
    title = f"{where(record)}, {batch_of(record)}, in full training steps ({command_of(record)}):"
    return f"{title}\n\n" + table(("", "full training steps", "goal"), rows)


def sharpness(record: Record, short: bool) -> str:
    """Sharpness, in the passes that it is made of."""
    rows = []
    for name, row in record["results"].items():
        if row["passes"] > 1 and (not short or name in SHORT["sharpness"]):
            passes = f"{row['passes']} x {row['unit']}"
            rows.append((name, passes, f"{row['ratio']:.2f}", goal_of(record, name)))
    title = (
        f"Sharpness, in the passes over the examples that it is made of: {batch_of(record)} in batches of"
        f" {record['setting']['batch_size']} ({command_of(record)}):"
    )
    return f"{title}\n\n" + table(("", "passes", "cost / passes", "goal"), rows)


def curvature(record: Record, short: bool) -> str:
    """Curvature, in training steps for each product."""
    rows = [
        (name, str(row["products"]), f"{row['ratio_per_product']:.2f}", mebibytes(row["peak_memory_bytes"]))
        for name, row in record["results"].items()
        if not short or name in SHORT["curvature"]
    ]
    title = f"Curvature, in training steps for each product: {batch_of(record)} ({command_of(record)}):"
    return f"{title}\n\n" + table(("", "products", "steps for each", "peak MiB above the model"), rows)


def trajectory(record: Record, short: bool) -> str:
    """A measurement of the trajectory, in training steps."""
    rows = [
        (name, f"{row['ratio']:.2f}", mebibytes(row["peak_memory_bytes"]), goal_of(record, name))
        for name, row in record["results"].items()
        if not short or name != row["unit"]
    ]
    title = (
        f"A measurement of the trajectory, in training steps on {batch_of(record)}: the start weights in memory, or"
        " mapped into memory from a file; with the update, for which the weights are copied before it; and with LoRA of"
        f" rank {record['setting']['lora_rank']} on all linear layers, in steps that train LoRA. Peak memory is above"
        " the model and the start weights in memory; on disk, it is pages of the file, which the system may drop"
        f" ({command_of(record)}):"
    )
    return f"{title}\n\n" + table(("", "steps", "peak MiB", "goal"), rows)


def peers(record: Record, short: bool) -> str:
    """What computes the same, in training steps."""
    setting = record["setting"]
    methods = [row for row in record["results"]["methods"] if not short or row["quantity"] in SHORT["peers"]]
    blocks = []
    for quantity in dict.fromkeys(row["quantity"] for row in methods):
        rows = [peer(row) for row in methods if row["quantity"] == quantity]
        head = ["", "on BERT of transformers", "steps", "without dropout", "peak MiB", "error", "value"]
        if quantity in SHORT["peers"]:  # the error says it
            head, rows = head[:-1], [row[:-1] for row in rows]
        blocks.append(f"{quantity[0].upper()}{quantity[1:]}:\n\n" + table(head, rows))
    step, both = (mebibytes(setting["peak_memory_bytes"][name]) for name in (STEP_WITHOUT_DROPOUT, BOTH_WAYS))
    title = (
        f"Against what else computes it: {where(record)}, {batch_of(record)}, all parameters; in training steps, with"
        f" BERT's usual dropout and without. Peak memory is above the model; a step takes {step} MiB with the state of"
        f" AdamW, a pass forward and backward {both} MiB. The error is relative to the loop over examples; of what is"
        f" random, the standard deviation of one run is given, or the standard error that the method states"
        f" ({command_of(record)})."
    )
    goals = (
        "Goals: "
        + "; ".join(f"{goal['what']}: {goal['value']:.2f}, {limit(goal, goal['met'])}" for goal in record["goals"])
        + "."
    )
    return "\n\n".join([title, *blocks, goals, *([] if short else [failures(methods)])])


def peer(row: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table of peers."""
    if not row["runs"]:
        last = row["failures"][-1]["why"]
        return row["name"], "not installed" if last == "not installed" else "no", "", "", "", "", ""
    stated = next((error for error in row["standard_errors"] if error is not None), None)
    if row["error"] is not None and row["standard_deviation"] is None:
        error = f"{row['error']:.0e}"
    elif stated is not None:
        error = f"standard error {stated:.2g}"
    elif row["standard_deviation"] is not None:
        error = f"sd {row['standard_deviation'] / abs(row['truth'] or row['value']):.0%}"
    else:
        error = ""
    how = row["how"] if row["right"] else f"{row['how']}: **wrong number**"
    products = f" ({row['products']} products)" if row["products"] else ""
    return (
        row["name"],
        how,
        f"{row['ratio']:.2f}{products}",
        f"{row['ratio_without_dropout']:.2f}",
        mebibytes(row["peak_memory_bytes"]),
        error,
        f"{row['value']:.4g}",
    )


def failures(methods: list[dict[str, Any]]) -> str:
    """What did not run, and what it said."""
    rows = [
        (row["name"], failure["how"], "`" + failure["why"].replace("|", "\\|").replace("`", "'") + "`")
        for row in methods
        for failure in row["failures"]
    ]
    return "What did not run, or was not right:\n\n" + table(("", "tried", "said"), rows)


def scaling(record: Record, short: bool) -> str:
    """The Fisher trace over lengths, batch sizes and probe sets."""
    setting, results = record["setting"], record["results"]
    lengths, sizes, sets = results["length"], results["batch size"], results["probe set"]
    jobs = ["exact", "exact, batches by length", "loop, padding cut off"]
    jobs += [] if short else ["loop", "rademacher", "rademacher, batches by length"]
    held = (STEP_WITHOUT_DROPOUT, "exact")
    rows = [
        (
            length,
            *(f"{row['ratio'][job]:.2f}" for job in jobs),
            goal_of(record, f"exact, {length} tokens", f"exact, batches by length, {length} tokens"),
            *(f"{row['ratio_without_dropout'][job]:.2f}" for job in jobs[:2]),
            goal_of(record, f"probe set, {length} tokens"),
            " / ".join(mebibytes(row["peak_memory_bytes"][job]) for job in held),
        )
        for length, row in lengths.items()
    ]
    units = ("without dropout: exact", "by length", "goal", "MiB: step / exact")
    head = ("tokens", *jobs, "goal for exact", *units)
    text = (
        f"By length, in training steps on the same batches: {setting['length']['examples']} examples, lengths from a"
        f" third to all of the tokens, in batches of {setting['length']['batch_size']} as they fall or, as a probe set"
        f" has them, by length. Dropout costs a CPU much of a step; without it, both are in steps on the batches as"
        f" they fall, as in training ({command_of(record)}):\n\n"
    ) + table(head, rows)
    if short:
        by_size = ", ".join(f"{row['ratio']['exact']:.2f}" for row in sizes.values())
        by_set = ", ".join(f"{row['ratio']['exact, batches by length']:.2f}" for row in sets.values())
        return (
            f"{text}\n\nAt {setting['batch_size']['length']} tokens, one batch of {', '.join(sizes)} examples costs"
            f" {by_size} steps; a probe set of {', '.join(sets)} examples in batches of"
            f" {setting['probe_set']['batch_size']} costs {by_set} steps for each batch."
        )
    for name, found in (("batch size", sizes), ("probe set", sets)):
        details = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in setting[name.replace(" ", "_")].items()
        )
        jobs = [job for job in next(iter(found.values()))["ratio"] if not job.startswith(STEP)]
        rows = [
            (
                size,
                *(f"{row['ratio'][job]:.2f}" for job in jobs),
                f"{row['ratio_without_dropout'][jobs[0]]:.2f}",
            )
            for size, row in found.items()
        ]
        text += f"\n\nBy {name} ({details}):\n\n" + table(
            ("examples", *jobs, f"{jobs[0]}, in steps without dropout"), rows
        )
    return text


def ddp(record: Record, short: bool) -> str:
    """Stages under DistributedDataParallel."""
    setting = record["setting"]
    rows = [
        (
            row["stage"],
            row["way"],
            f"{row['ratio']:.2f}",
            f"{row['ratio_to_head_only']:.2f}",
            f"{sum(row['all_reduced_bytes'].values()) / MEBIBYTE:.1f}",
            goal_of(record, f"head, {row['way']}, of a DDP that was built for the head")
            if row["stage"] == "head"
            else "",
        )
        for row in record["results"]["rows"]
        if not short or row["way"] not in SHORT["ddp"]
    ]
    text = (
        f"Under DistributedDataParallel: {setting['processes']} processes on one machine, {setting['batch_size']}"
        f" examples of {setting['length']} tokens each; time on the wall of an update, in those of full fine-tuning and"
        f" of training the head with a DDP that was built for it ({command_of(record)}):\n\n"
    )
    return text + table(("trains", "DDP", "of full", "of head only", "MiB all-reduced", "goal"), rows)


def interventions(record: Record, short: bool) -> str:
    """A whole training with each intervention, in standard trainings."""
    setting, curve = record["setting"], record["results"]["weight_interpolation"]
    head = ["", "of standard", "measuring, in updates", "goal"]
    rows = [
        (
            name,
            f"{row['ratio']:.2f}",
            f"{row['measuring_updates']:.1f}" if row["measuring_updates"] else "",
            goal_of(record, name),
            *([] if short else [" ".join(f"{value:.2f}" for value in row["update_by_stage"].values())]),
        )
        for name, row in record["results"]["arms"].items()
        if not short or name not in SHORT["interventions"]
    ]
    head += [] if short else ["an update in each stage"]
    return (
        f"A whole training with each intervention, in the time of standard fine-tuning: {setting['updates']} updates,"
        f" {batch_of(record)}, a release every tenth of training. A measurement costs so many updates however long"
        f" training is; in one as short as this it is a large share ({command_of(record)}):\n\n"
        + table(head, rows)
        + f"\n\nWiSE-FT changes nothing in training. Its curve of {curve['alphas']} points costs as many evaluations,"
        f" and the time of {curve['updates']:.1f} updates to interpolate."
    )


TABLES: dict[str, Callable[[Record, bool], str]] = {
    "fisher": fisher,
    "peers": peers,
    "scaling": scaling,
    "sharpness": sharpness,
    "curvature": curvature,
    "trajectory": trajectory,
    "ddp": ddp,
    "interventions": interventions,
}
TITLES = {
    "fisher": "Stages and the Fisher trace",
    "peers": "Peers",
    "scaling": "Scaling of the Fisher trace",
    "sharpness": "Sharpness",
    "curvature": "Curvature",
    "trajectory": "Trajectory",
    "ddp": "DistributedDataParallel",
    "interventions": "Interventions",
}
