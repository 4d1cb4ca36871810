"""Folders to the hub: what can be refused is refused before the work, and what fails afterwards loses no file.

`upload_folder` commits a large folder in several parts, and skips what is there already when it is called again
(huggingface_hub 2 with hf_xet; without, all files are one commit). The token is huggingface_hub's own: `HF_TOKEN`, or
that of `hf auth login`. It is never shown.
"""

import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from t2l_jax.errors import UserError
from t2l_jax.io.files import PARTIAL_SUFFIX
from t2l_jax.io.locations import BAD_TOKEN, HTTP_ERROR, TOKEN, TOKENS

MOST_ENTRIES = 10_000  # of a folder in a repository: the hub wants no more


def check_push(repo: str) -> None:
    """Raise UserError if a folder cannot be pushed to the repository, as far as one can know without writing to it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--push {repo[:120]}: {error}") from error
    if repo.count("/") != 1:
        raise UserError(f"--push {repo[:120]}: write org/name, or your user name and a name")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {repo}: HF_HUB_OFFLINE is set: unset it, or leave --push out and upload later")
    token = get_token()
    if token is None:
        raise UserError(f"--push {repo}: no token: run `hf auth login`, or set HF_TOKEN to one of {TOKENS}")
    if not TOKEN.fullmatch(token):  # the HTTP library's error would show it
        raise UserError(f"--push {repo}: {BAD_TOKEN}")
    try:
        user = HfApi().whoami()
    except (HTTP_ERROR, OSError, ValueError) as error:
        raise UserError(f"--push {repo}: {_reason(error)}") from error
    _check_rights(repo, user)


def _check_rights(repo: str, user: dict[str, Any]) -> None:
    """Raise UserError if the user of a token cannot write there. What the reply does not say is left to the upload."""
    owner, name = repo.split("/")[0], user.get("name")
    owners = [name, *(one.get("name") for one in user.get("orgs") or [])]
    if name and owner.casefold() not in [str(one).casefold() for one in owners]:
        raise UserError(
            f"--push {repo}: the token is that of {name}, who is not in {owner}: give {name}/... or a token of {owner}"
        )
    token = (user.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise UserError(f"--push {repo}: the token may only read: make one that may write at {TOKENS}")


def push_folder(folder: Path, repo: str, private: bool | None = None) -> str:
    """Upload a folder to a repository of the hub, which is created if needed; return its address.

    Raises UserError that says how to go on: the folder stays as it is. With `private`, nothing is uploaded to a
    repository that exists and is public.
    """
    api = HfApi()
    try:
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        if private and not api.repo_info(repo).private:  # one that exists stays as visible as it was
            raise UserError(
                f"{repo} exists and is public: make it private on the hub, or choose another name; {folder} is complete"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Upload by t2l_jax",
            ignore_patterns=[f".*{PARTIAL_SUFFIX}", f".*{PARTIAL_SUFFIX}/*"],
        )
    except UserError:
        raise
    except Exception as error:  # of the hub's client, the HTTP library, the uploader in Rust, or the file system
        again = f"hf upload {repo} {shlex.quote(str(folder))} ." + " --private" * bool(private)
        raise UserError(
            f"not pushed to {repo}: {_reason(error)}; {folder} is complete: `{again}` tries again"
        ) from error
    return url


def _reason(error: BaseException) -> str:
    """An error of the hub's client in one line, with what to do about it."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status == 401:
        return f"the hub does not accept the token (401): run `hf auth login`, or set HF_TOKEN to one of {TOKENS}"
    if status == 403:
        return "the token has no right to write there (403): ask its owners, or choose another name"
    if status is None and isinstance(error, HTTP_ERROR):
        return f"{constants.ENDPOINT} cannot be reached ({error or type(error).__name__}): check the connection"
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # which file it was says little
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__
