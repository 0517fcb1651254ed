from __future__ import annotations

import pytest
import yaml

from hf_early_ood.cli import USER_ERROR, main
from hf_early_ood.config.presets import preset_names, preset_text, preset_title
from hf_early_ood.schedules import UnfreezingSchedule
from tests.tiny_project import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Blocks 0 to 2."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture
def shown(model, capsys):
    """What the command prints below the table of the layer groups, as lines."""

    def shown(*words):
        assert main(["schedule", "--model", model, *words]) == 0
        table, _, rest = capsys.readouterr().out.partition("\n\n")
        assert "embeddings" in table
        return [" ".join(line.split()) for line in rest.splitlines()]

    return shown


def test_presets_are_listed_with_their_source(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(preset_names())
    assert all(line.endswith(f"  {preset_title(line.split()[0])}") and "arXiv" in line for line in lines)


def test_a_preset_is_printed_as_it_is(capsys):
    assert main(["presets", "liu2023_fun"]) == 0
    assert capsys.readouterr().out == preset_text("liu2023_fun")


@pytest.mark.parametrize("words", [["presets", "liu2023_fum"], ["schedule", "--model", "x", "--preset", "liu2023_fum"]])
def test_unknown_preset(capsys, words):
    assert main(words) == USER_ERROR
    printed = capsys.readouterr().err
    assert "Did you mean 'liu2023_fun'?" in printed
    assert all(name in printed for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_shown(shown, name):
    assert len(shown("--preset", name)) >= 2
    lines = shown("--preset", name, "--updates", "10000")
    assert len(lines) >= 2
    assert not any("of training" in line for line in lines if not line.startswith("# Unfreezing schedule"))


def test_preset_of_gradual_unfreezing(shown):
    lines = shown("--preset", "liu2023_gu_code", "--updates", "10000")
    assert "first: 2 # intervals before the first release" in lines
    assert lines[-4:] == [
        "- [head, block.2] # from update 0",
        "- [block.1] # from update 1600",
        "- [block.0] # from update 2400",
        "- [embeddings] # from update 3200",
    ]
    assert shown("--preset", "liu2024_mnli")[-4:-2] == [
        "- [head, block.2] # from update 0",
        "- [block.1] # after 1 interval",
    ]


def test_learning_rates_by_depth(shown):
    lines = shown("--preset", "howard2018_ulmfit", "--updates", "160")
    assert "- [block.2] # from update 10" in lines
    assert lines[-6:] == [
        "learning rates, in those of the scheduler:",
        "head: 1",
        "block.2: 0.385",
        "block.1: 0.148",
        "block.0: 0.0569",
        "embeddings: 0.0219",
    ]


def test_generations(shown):
    lines = shown("--preset", "zhou2022_llf", "--updates", "100")
    assert lines == [
        "All layers train from the start.",
        "early: embeddings, block.0",
        "later: block.1, block.2, head",
        "generation updates early layers ascend later layers",
        "0 0 to 24 - -",
        "1 25 to 49 - begin anew",
        "2 50 to 74 - begin anew",
        "3 75 to 99 - begin anew",
    ]
    assert shown("--preset", "sarfi2023_seal", "--updates", "100")[-1] == "9 90 to 99 90 to 91 -"
    assert shown("--preset", "sarfi2023_seal")[-1] == "10 generations; give --updates for their table."


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("liu2024_low_to_high", "All learning rates are multiplied by 0.1 for the first 200 updates."),
        (
            "jastrzebski2021_fisher_penalty",
            "The loss of every update has 0.01 times the Fisher penalty of the batch added.",
        ),
        (
            "wortsman2022_wise_ft",
            "After training, 11 points between the weights before and after it are evaluated; the model of alpha=0.5 is"
            " kept.",
        ),
    ],
)
def test_without_a_schedule(shown, name, line):
    assert shown("--preset", name) == ["All layers train from the start.", line]


def test_lisa_and_autofreeze(shown):
    lines = shown("--preset", "pan2024_lisa")
    assert lines[:3] == [
        "# LISA: every 20 updates, 1 of 3 groups are drawn.",
        "always: [embeddings, head]",
        "drawn: # the first five times",
    ]
    assert len(lines) == 8
    assert "# AutoFreeze: every 100 updates, " in shown("--preset", "liu2021_autofreeze", "--updates", "1000")[0]


def test_own_file_as_preset_and_options_win(shown, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "preset": "kumar2022_lpft",
                "intervention": {
                    "learning_rates": {"switch_factor": 0.5, "switch_at": "auto"},
                    "interval": "auto",
                    "fisher_penalty": {"alpha": 2.0, "every": 3, "until": 0.5},
                    "weight_interpolation": {"alphas": [0.0, 1.0]},
                },
            }
        )
    )
    lines = shown("--preset", str(file), "--release", "interval", "--initial", "head", "block.2")
    assert "- [head, block.2] # from update 0" in lines
    assert "- [block.1] # after 1 interval" in lines
    assert lines[-3:] == [
        "All learning rates are multiplied by 0.5 until the interval is decided.",
        "The loss of one of 3 updates has 2 times the Fisher penalty of the batch added, for the first 0.5 of"
        " training.",
        "After training, 2 points between the weights before and after it are evaluated; the model of ID validation is"
        " kept.",
    ]


def test_pretexts(shown, tmp_path):
    file = tmp_path / "own.yaml"

    def last(updates, *words):
        file.write_text(yaml.safe_dump({"intervention": {"pretext": {"kind": "masked_lm", "updates": updates}}}))
        return shown("--preset", str(file), *words)[-1]

    said = "For the first {} of the run, masked_lm is trained, not the task.".format
    assert last(0.1) == said("0.1 of training")
    assert last(0.1, "--updates", "108") == said("10 updates")
    assert last(7) == said("7 updates")


def test_new_options(shown, model, tmp_path, capsys):
    words = ["--interval", "10", "--first", "2", "--start", "5", "--embeddings", "with_block_0", "--release", "6"]
    lines = shown(*words)
    assert "start: 5 # updates, or fraction of training, in which all groups below train first" in lines
    assert lines[-3:] == [
        "- [block.2] # from update 25",
        "- [block.1] # from update 28",
        "- [embeddings, block.0] # from update 31",
    ]
    drawn = [shown("--interval", "10", "--order", "random", "--order-seed", seed) for seed in ("0", "0", "1", "2")]
    assert drawn[0] == drawn[1]
    assert len({tuple(lines) for lines in drawn}) > 1
    lines = shown(
        "--interval", "10", "--order", "block.0", "/block.[12]/", "embeddings", "--output", str(tmp_path / "s.yaml")
    )
    assert lines[-4:-2] == ["- [block.0] # from update 10", "- [block.1] # from update 20"]
    assert UnfreezingSchedule.from_yaml((tmp_path / "s.yaml").read_text()).starts == (0, 10, 20, 30, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--preset", "pan2024_lisa", "--order-seed", "3"],
            "--order-seed with --preset pan2024_lisa, whose method is lisa",
        ),
        (["--preset", "pan2024_lisa", "--output", "never.yaml"], "Only a schedule of gradual unfreezing can be edited"),
        (
            ["--preset", "sarfi2023_seal", "--output", "never.yaml"],
            "Only a schedule of gradual unfreezing can be edited",
        ),
        (["--file", "x.yaml", "--first", "2", "--preset", "liu2023_fun"], "--file together with --first, --preset"),
        (
            ["--preset", "{file}", "--order", "bottom_up", "--first", "2"],
            "--order, --first with --preset",
        ),
        (["--preset", "nowhere.yaml"], "There is no such configuration file"),
        (["--embeddings", "sometimes"], "sometimes"),
        (["--first", "0"], "first"),
        (["--release", "often"], "often"),
        (["--start", "5"], "A late start needs a fixed interval"),
        (["--preset", "liu2024_mnli", "--initial", "encoder"], "nothing to train in this model"),
        (["--preset", "liu2023_fun", "--updates", "100"], "longer than training allows"),
        (["--preset", "sarfi2023_seal", "--updates", "5"], "more generations than updates"),
    ],
)
def test_errors_of_schedule(model, capsys, tmp_path, words, message):
    (tmp_path / "schedule.yaml").write_text(UnfreezingSchedule(["head"], interval=5).to_yaml())
    file = tmp_path / "preset.yaml"
    own = {"method": "gradual_unfreezing", "schedule": str(tmp_path / "schedule.yaml")}
    file.write_text(yaml.safe_dump({"intervention": own}))
    assert main(["schedule", "--model", model, *(word.format(file=file) for word in words)]) == USER_ERROR
    assert message in capsys.readouterr().err
