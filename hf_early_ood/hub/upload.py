"""Uploads to the Hub: into a repository of our own, in one commit, with what is there already not sent again.

Tokens are found by ``huggingface_hub`` itself (``HF_TOKEN``, ``hf auth login``) and never seen here.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace as replaced
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hf_early_ood import __version__
from hf_early_ood.errors import PublishError
from hf_early_ood.hub.benchmarks import FOLDER as EVAL_RESULTS
from hf_early_ood.hub.card import MARKER as CARD_MARKER
from hf_early_ood.hub.folder import FIGURES, README, Publication
from hf_early_ood.hub.results_dataset import MARKER
from hf_early_ood.names import RESULTS_FILE

logger = logging.getLogger(__name__)

T = TypeVar("T")

MODEL, DATASET = "model", "dataset"
_PAUSES = (1.0, 2.0, 4.0)  # seconds before each further attempt
_SAME_RUN = ("arm", "seed", "config_fingerprint")
_AGAIN = "Give the same command again: what was sent is not sent twice."


def upload(
    publication: Publication, repo_id: str, *, repo_type: str = MODEL, private: bool = True, replace: bool = False
) -> str:
    """Create the repository if it is not there and commit everything at once.

    Args:
        publication: The files.
        repo_id: ``owner/name``, or a name of one's own.
        repo_type: "model" or "dataset".
        private: Of a repository that is created; one that is public already is not written into silently.
        replace: Write also into a repository that holds something else, and over a card that a person has changed.

    Returns:
        Address of the commit.

    Raises:
        PublishError: The Hub refuses, cannot be reached, or the name belongs to something else.
    """
    api = HfApi(library_name="hf-early-ood", library_version=__version__)
    with _explained(repo_id):
        repo_id = _full_name(api, repo_id)
        info = _info(api, repo_id, repo_type)
        if info is None:
            _persistently(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private))
            there: list[str] = []
        else:
            there = [file.rfilename for file in info.siblings or []]
            _check_ours(api, repo_id, repo_type, there, publication, private and not info.private, replace)
            if repo_type == MODEL and README in there and not replace:
                publication = _with_card_of_a_person(publication, _read(api, repo_id, repo_type, README), repo_id)
        commit = _persistently(lambda: api.create_commit(**_commit(publication, repo_id, repo_type, there)))
    return str(commit.commit_url)


def _full_name(api: HfApi, repo_id: str) -> str:
    """With the owner; asks the Hub who this is, before anything is made."""
    user = _persistently(api.whoami)
    return repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"


def _info(api: HfApi, repo_id: str, repo_type: str) -> Any:
    try:
        return _persistently(lambda: api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        return None


def _check_ours(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    there: list[str],
    publication: Publication,
    is_public: bool,
    replace: bool,
) -> None:
    if is_public:
        raise PublishError(
            "The repository is public, and publishing was asked to be private.",
            got=repo_id,
            fix="Add --public, or give another name.",
        )
    if replace or not set(there) - {".gitattributes"}:  # what an interrupted upload leaves is empty
        return
    if repo_type == DATASET:
        ours = README in there and MARKER in _read(api, repo_id, repo_type, README)
    else:
        ours = RESULTS_FILE in there and _same_run(
            _read(api, repo_id, repo_type, RESULTS_FILE), publication.content(RESULTS_FILE)
        )
    if not ours:
        raise PublishError(
            "The name is taken by something else.",
            got=f"{repo_id}, with {len(there)} files",
            fix="Give another name, or add --replace to write into it.",
        )


def _with_card_of_a_person(publication: Publication, card: str, repo_id: str) -> Publication:
    """The same without a card, where the one that is there was taken over by a person, as its first line offers."""
    if CARD_MARKER in card:
        return publication
    logger.warning("The card of %s was changed by a person and is kept; --replace writes it anew.", repo_id)
    return replaced(publication, files={path: file for path, file in publication.files.items() if path != README})


def _read(api: HfApi, repo_id: str, repo_type: str, path: str) -> str:
    """A file of text that is in a repository."""

    def downloaded() -> str:
        with tempfile.TemporaryDirectory() as folder:
            found = api.hf_hub_download(repo_id, path, repo_type=repo_type, local_dir=folder)
            with open(found, encoding="utf-8") as file:
                return file.read()

    return _persistently(downloaded)


def _same_run(first: str, second: bytes) -> bool:
    try:
        a, b = json.loads(first), json.loads(second)
        return all(a[key] == b[key] for key in _SAME_RUN)
    except (ValueError, KeyError, TypeError):
        return False


def _commit(publication: Publication, repo_id: str, repo_type: str, there: list[str]) -> dict[str, Any]:
    """A new commit of everything; weights, figures and scores of before that are not replaced are removed."""
    stale = [
        path
        for path in there
        if path not in publication.files
        and repo_type == MODEL
        and (path.endswith((".safetensors", ".bin")) or path.startswith((f"{FIGURES}/", f"{EVAL_RESULTS}/")))
    ]
    additions = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in publication.files.items()
    ]
    return {
        "repo_id": repo_id,
        "repo_type": repo_type,
        "operations": [*additions, *(CommitOperationDelete(path) for path in stale)],
        "commit_message": "Published with hf-early-ood",
    }


def _persistently(call: Callable[[], T]) -> T:
    """Try again what failed on the side of the Hub, or on the way there."""
    for pause in _PAUSES:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            logger.warning("The Hub answered %s; trying again in %g s.", error.response.status_code, pause)
        except HTTPError:  # no answer
            logger.warning("The connection to the Hub is broken; trying again in %g s.", pause)
        time.sleep(pause)
    return call()


_ANSWERS: Mapping[int, tuple[str, str]] = {
    401: (
        "The Hub does not accept the token.",
        "Log in anew with 'hf auth login', or correct HF_TOKEN, which goes before it.",
    ),
    403: (
        "The token may not write there.",
        "Use a token with write permission for this owner, or a name of your own.",
    ),
    409: ("The name is taken by a repository that this token cannot see.", "Give another name."),
}


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """What the Hub's client raises, in our words."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise PublishError(
            "Nobody is logged in to the Hub.", got=repo_id, fix="Give 'hf auth login', or set HF_TOKEN."
        ) from None
    except OfflineModeIsEnabled:
        raise PublishError("The Hub is switched off.", got="HF_HUB_OFFLINE is set", fix="Unset it.") from None
    except HFValidationError as error:
        raise PublishError("The name of the repository is not usable.", got=str(error)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what, fix = _ANSWERS.get(status, (f"The Hub refused with {status}.", _AGAIN))
        raise PublishError(what, got=f"{repo_id}: {error.server_message or status}", fix=fix) from error
    except PublishError:
        raise
    except (HTTPError, OSError, RuntimeError) as error:
        raise PublishError("The upload was interrupted.", got=f"{repo_id}: {error}", fix=_AGAIN) from error
    except ValueError as error:
        raise PublishError("The Hub refuses the files.", got=f"{repo_id}: {error}") from error
