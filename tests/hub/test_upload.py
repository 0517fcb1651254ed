"""The real client of the Hub publishes to a server on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard

from tests.hub_server import READING, Repository

NAME = "jane/tiny"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def card_of(repository):
    return ModelCard(repository.files["README.md"].decode())


def test_a_run_end_to_end(hub, publish, one_run, tmp_path):
    done = publish(one_run, "--repo-id", NAME, "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert "HTTP Request" not in done.stderr
    repository = hub.model(NAME)
    assert repository.private
    assert len(repository.commits) == 2  # the first one, and one for everything
    card = card_of(repository)
    assert [entry["dataset"]["name"] for entry in card.data.to_dict()["model-index"][0]["results"]] == [
        "ID validation", "ID test", "OOD a", "OOD b",
    ]  # fmt: skip
    record = json.loads((one_run / "results.json").read_text())
    values = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert values["OOD b", "accuracy"] == record["evaluation"]["splits"]["ood/b"]["metrics"]["accuracy"]["value"]
    weights = repository.files["model.safetensors"]
    assert sha256(weights) == record["weights"]["model.safetensors"]
    assert publish(one_run, "--repo-id", NAME, "--dry-run", "--output", tmp_path / "dry").returncode == 0
    del repository.files[".gitattributes"]
    dry = {path.relative_to(tmp_path / "dry/model").as_posix(): path for path in (tmp_path / "dry/model").rglob("*")}
    assert {name: path.read_bytes() for name, path in dry.items() if path.is_file()}.keys() == repository.files.keys()
    for path in set(repository.files) - {"README.md"}:  # the license is an option
        assert dry[path].read_bytes() == repository.files[path], path


def test_the_published_model_loads_and_judges_as_before(hub, publish, one_run, environment):
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    code = (
        "import sys, torch\nfrom transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        f"for place in ({NAME!r}, sys.argv[1]):\n"
        "    model, tokenizer = M.from_pretrained(place), T.from_pretrained(place)\n"
        "    inputs = tokenizer('the film was great', return_tensors='pt')\n"
        "    print(model(**inputs).logits.tolist(), model.config.id2label)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(one_run / "model")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    there, here = done.stdout.splitlines()
    assert there == here


def test_the_same_again_sends_nothing(hub, publish, one_run):
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    sent = hub.received.copy()
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 0, done.stderr
    assert hub.received == sent
    assert len(hub.model(NAME).commits) == 2


def test_in_parts(hub, publish, one_run):
    hub.part_size = 10_000
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    weights = (one_run / "model/model.safetensors").read_bytes()
    assert hub.model(NAME).files["model.safetensors"] == weights
    assert hub.received[sha256(weights)] == -(-len(weights) // hub.part_size)


def test_an_upload_that_was_killed_is_finished_by_the_same_command(hub, publish, study, environment):
    weights = max(study.rglob("standard/seed1/model/model.safetensors")).read_bytes()
    hub.held = sha256(weights)
    words = ["publish", str(study), "--repo-id", NAME, "--results-dataset", "jane/results"]
    process = subprocess.Popen([sys.executable, "-m", "hf_early_ood", *words], env=environment)
    assert hub.halfway.wait(60)
    others = {sha256(path.read_bytes()) for path in study.glob("comparison.png")}
    while not others <= set(hub.received):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    hub.release.set()
    hub.held = None
    assert set(hub.model(NAME).files) == {".gitattributes"}
    sent = hub.received.copy()
    assert sha256(weights) not in sent
    done = publish(*words[1:])
    assert done.returncode == 0, done.stderr
    assert hub.model(NAME).files["model.safetensors"] == weights
    again = {oid for oid, count in sent.items() if hub.received[oid] > count}
    assert not again
    assert hub.received[sha256(weights)] == 1
    assert ("dataset", "jane/results") in hub.repositories


def test_a_dropped_connection_is_tried_again(hub, publish, one_run):
    weights = (one_run / "model/model.safetensors").read_bytes()
    hub.dropped[sha256(weights)] = 1
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 0, done.stderr
    assert hub.dropped[sha256(weights)] == 0
    assert hub.model(NAME).files["model.safetensors"] == weights


@pytest.mark.slow  # the client tries for half a minute
def test_a_connection_that_stays_broken_is_said_and_can_be_taken_up(hub, publish, one_run):
    weights = (one_run / "model/model.safetensors").read_bytes()
    hub.dropped[sha256(weights)] = 100
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 2
    assert "The upload was interrupted." in done.stderr
    assert "Give the same command again" in done.stderr
    hub.dropped.clear()
    assert publish(one_run, "--repo-id", NAME).returncode == 0


@pytest.mark.sweep(keep=2)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/whoami-v2"),
        ("POST", "/api/repos/create"),
        ("POST", f"/api/models/{NAME}/preupload/main"),
        ("POST", f"/api/models/{NAME}/commit/main"),
    ],
)
def test_errors_of_the_server_are_tried_again(hub, publish, one_run, method, path):
    hub.answers[method, path] = [503]
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 0, done.stderr
    assert hub.requests[method, path] == 2
    assert len(hub.model(NAME).commits) == 2


def test_a_wrong_token(hub, publish, one_run):
    wrong = "hf_someoneElsesToken9"
    done = publish(one_run, "--repo-id", NAME, HF_TOKEN=wrong)
    assert done.returncode == 2
    assert "The Hub does not accept the token." in done.stderr
    assert wrong not in done.stdout + done.stderr
    assert not hub.repositories
    assert not hub.objects


def test_no_token(hub, publish, one_run):
    done = publish(one_run, "--repo-id", NAME, HF_TOKEN="")
    assert done.returncode == 2
    assert "Nobody is logged in to the Hub." in done.stderr
    assert not hub.requests


@pytest.mark.parametrize(("name", "changes"), [("acme/tiny", {}), (NAME, {"HF_TOKEN": READING})])
def test_no_permission_to_write(hub, publish, one_run, name, changes):
    done = publish(one_run, "--repo-id", name, **changes)
    assert done.returncode == 2
    assert "The token may not write there." in done.stderr
    assert not hub.repositories


def test_someone_elses_public_repository(hub, publish, one_run):
    hub.repositories["model", "acme/tiny"] = Repository(private=False)
    done = publish(one_run, "--repo-id", "acme/tiny", "--public")
    assert done.returncode == 2
    assert "The token may not write there." in done.stderr
    assert not hub.objects


def test_a_name_that_is_taken(hub, publish, one_run):
    taken = hub.repositories["model", NAME] = Repository(private=True)
    taken.files["model.safetensors"] = b"something else"
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 2
    assert "The name is taken by something else." in done.stderr
    assert taken.files["model.safetensors"] == b"something else"
    assert publish(one_run, "--repo-id", NAME, "--replace").returncode == 0
    assert "README.md" in taken.files


def test_another_run_does_not_take_the_place_of_this_one(hub, publish, study):
    first, second = study / "standard/seed1", study / "standard/seed2"
    assert publish(first, "--repo-id", NAME).returncode == 0
    before = dict(hub.model(NAME).files)
    done = publish(second, "--repo-id", NAME)
    assert "The name is taken by something else." in done.stderr
    assert hub.model(NAME).files == before


def test_stale_weights_and_figures_go(hub, publish, one_run):
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    hub.model(NAME).files |= {"adapter_model.safetensors": b"old", "figures/old.png": b"old", "LICENSE": b"kept"}
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    assert "adapter_model.safetensors" not in hub.model(NAME).files
    assert "figures/old.png" not in hub.model(NAME).files
    assert hub.model(NAME).files["LICENSE"] == b"kept"


def test_a_card_that_a_person_took_over_is_kept(hub, publish, one_run):
    assert publish(one_run, "--repo-id", NAME).returncode == 0
    card = hub.model(NAME).files["README.md"].decode().replace("# tiny", "# My own words")
    taken_over = "\n".join(line for line in card.split("\n") if "Remove this line to keep" not in line).encode()
    hub.model(NAME).files |= {"README.md": taken_over, "results.json": hub.model(NAME).files["results.json"] + b"\n"}
    done = publish(one_run, "--repo-id", NAME)
    assert done.returncode == 0, done.stderr
    assert "was changed by a person and is kept" in done.stderr
    assert hub.model(NAME).files["README.md"] == taken_over
    assert hub.model(NAME).files["results.json"].count(b"\n\n") == 0  # the rest is published
    assert publish(one_run, "--repo-id", NAME, "--replace").returncode == 0
    assert b"# tiny" in hub.model(NAME).files["README.md"]


def test_public_only_if_asked_for(hub, publish, one_run):
    hub.repositories["model", NAME] = Repository(private=False)
    done = publish(one_run, "--repo-id", NAME)
    assert "The repository is public" in done.stderr
    assert set(hub.model(NAME).files) == {".gitattributes"}
    assert publish(one_run, "--repo-id", NAME, "--public").returncode == 0
    assert publish(one_run, "--repo-id", "jane/other", "--public").returncode == 0
    assert not hub.model("jane/other").private


def test_offline_is_said(publish, one_run, hub):
    done = publish(one_run, "--repo-id", NAME, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "The Hub is switched off." in done.stderr


def test_the_token_is_written_nowhere(hub, publish, study, environment, tmp_path):
    done = publish(study, "--repo-id", NAME, "--results-dataset", "jane/results")
    assert done.returncode == 0, done.stderr
    token = environment["HF_TOKEN"]
    assert token in hub.tokens_seen
    assert token not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]
    for repository in hub.repositories.values():
        assert not [path for path, content in repository.files.items() if token.encode() in content]


def test_a_study_with_its_results(hub, publish, finished_study):
    done = publish(finished_study, "--repo-id", NAME, "--results-dataset", "jane/results")
    assert done.returncode == 0, done.stderr
    assert "Out-of-distribution scores had no part in the choice." in done.stdout
    text = card_of(hub.model(NAME)).text
    assert "## All arms of the study" in text
    assert "| gradual |" in text
    assert "study.json" in hub.model(NAME).files
    dataset = hub.repositories["dataset", "jane/results"]
    assert dataset.private
    assert [path.split("-")[0] for path in dataset.files if path.startswith("data/")] == ["data/tiny"]
    # The same again, and another run into the same data set.
    assert publish(finished_study, "--repo-id", NAME, "--results-dataset", "jane/results").returncode == 0
    one = finished_study / "gradual/seed2"
    assert publish(one, "--repo-id", "jane/one", "--results-dataset", "jane/results").returncode == 0
    assert len([path for path in dataset.files if path.startswith("data/")]) == 2
