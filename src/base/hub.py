"""Download from and upload to the Hugging Face Hub, with errors that say what to do."""

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
        The URL of the commit.

    Raises:
        CheckpointError: if the Hub refuses the upload or cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY, library_version=version())
    with _hub_errors(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision).commit_url


def download_file(repo_id: str, name: str, revision: str | None = None, **options: Any) -> Path:
    """Download a file from a repository and return its path.

    Args:
        options: further keyword arguments of `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: if it cannot be downloaded; the message says why.
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
    """Raise the errors of `huggingface_hub` as `CheckpointError`."""
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo_id} is neither a folder nor a valid repository name on the Hugging Face Hub"
        ) from error
    except RepositoryNotFoundError as error:  # also raised for a gated repository
        raise CheckpointError(
            f"there is no folder {repo_id}, and no repository of that name on the Hugging Face Hub "
            "that you can access: check the name, or give a token that has access"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repo_id}; as a repository, it was never downloaded, and the "
            "Hugging Face Hub cannot be reached"
        ) from error
    except EntryNotFoundError as error:
        raise CheckpointError(f"{repo_id} does not contain a model: it has no {name}") from error
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} cannot be downloaded or uploaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def version() -> str:
    """The installed version of this project."""
    try:
        return metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:  # run without installing it
        return "unknown"
