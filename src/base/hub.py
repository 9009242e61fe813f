"""The Hugging Face hub: files from it and folders to it, with errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from src.utils.checkpoints import CheckpointError

LIBRARY = "xtal-latent"


def upload_folder(
    folder: Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> str:
    """Publish a folder as a repository; see `PretrainedModule.push_to_hub`.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: if the hub refuses or cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY, library_version=version())
    with _hub_errors(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision).commit_url


def download_file(repo_id: str, name: str, revision: str | None = None, **options: Any) -> Path:
    """A file of a repository.

    Args:
        options: further keyword arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: if it cannot be downloaded; it says why.
    """
    with _hub_errors(repo_id, revision, name):
        return Path(
            hf_hub_download(
                repo_id,
                name,
                revision=revision,
                library_name=LIBRARY,
                library_version=version(),
                **options,
            )
        )


@contextmanager
def _hub_errors(repo_id: str, revision: str | None, name: str = "") -> Iterator[None]:
    """Errors of the hub's client as ours."""
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo_id} is neither a folder nor a valid name of a repository on the hub"
        ) from error
    except RepositoryNotFoundError as error:  # which a gated one is, too
        raise CheckpointError(
            f"there is no folder {repo_id}, and no repository of that name on the hub that may be "
            "read: give the token of somebody who may, or look for a mistake in the name"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repo_id}, and the hub cannot be reached to look for it there, "
            "nor has it been downloaded before"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repo_id} holds no model: it has no {name}") from error
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} cannot be had from the hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def version() -> str:
    """Of this project, as it is installed."""
    try:
        return metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:  # run from a folder without installation
        return "unknown"
