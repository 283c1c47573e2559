"""Puts an exported folder on the Hugging Face hub, one folder per autoencoder, as `SAE.from_pretrained` wants it."""

from pathlib import Path

from prolu_tune.errors import InputError, SurroundingsError

LOGIN_HINT = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


def check_repo_id(repo_id: str) -> None:
    """Checks the name of a repository before any work is done.

    Raises:
        InputError: if it is not USER/REPO as the hub allows it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repo_id}: {error}") from None
    if "/" not in repo_id:
        raise InputError(f"--push-to-hub {repo_id}: names no owner; give USER/REPO")


def push_folder(folder: Path, repo_id: str, *, message: str, private: bool = False) -> str:
    """Uploads a folder under its own name and returns its address; makes the repository if there is none.

    The repository's own card is the folder's, unless there is one. Where the hub is and who one is come from the
    environment, as for every program of Hugging Face (HF_ENDPOINT, HF_TOKEN).

    Raises:
        InputError: if nobody is logged in or the repository is somebody else's.
        SurroundingsError: if the hub cannot be reached or refuses; the folder stays where it is.
    """
    from huggingface_hub import HfApi

    # Which HTTP library is underneath changes with versions of huggingface_hub; its module of errors always has HTTPError.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # see above
        LocalTokenNotFoundError,
    )

    api = HfApi(library_name="prolu-tune")
    again = f"the folder {folder} is complete; give the same command with --overwrite again"
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, path_in_repo=folder.name, commit_message=message)
        if not api.file_exists(repo_id, "README.md"):
            api.upload_file(
                repo_id=repo_id,
                path_or_fileobj=folder / "README.md",
                path_in_repo="README.md",
                commit_message="Card of the first autoencoder",
            )
    except LocalTokenNotFoundError:
        raise InputError(f"--push-to-hub {repo_id}: nobody is logged in on this machine; {LOGIN_HINT}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise InputError(f"--push-to-hub {repo_id}: the hub refuses ({status}); {LOGIN_HINT}") from None
        raise SurroundingsError(f"the hub refuses ({_first_line(error)}); {again}") from error
    except (HTTPError, OSError) as error:
        raise SurroundingsError(f"the hub cannot be reached ({_first_line(error)}); {again}") from error
    return f"{repo}/tree/main/{folder.name}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
