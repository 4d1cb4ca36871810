"""`--push org/name`, an option of the commands whose output others can use."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from t2l_jax.errors import UserError

Push = Annotated[
    str | None,
    arg(metavar="ORG/NAME", help="Also upload the output to this repository of the hub, which is created if needed."),
]
Private = Annotated[bool, arg(help="Create that repository as a private one.")]


def check_private(repo: str | None, private: bool) -> None:
    """Raise UserError if nothing is pushed that could be private."""
    if private and repo is None:
        raise UserError("--private is for --push org/name")


def check_push(repo: str | None) -> None:
    """Before the work: raise UserError if there is a repository to push to and that will not be possible."""
    if repo is not None:
        from t2l_jax.io import hub

        hub.check_push(repo)


def push(folder: Path, repo: str | None, private: bool) -> None:
    """Upload a folder, if there is a repository to push it to."""
    if repo is not None:
        from t2l_jax.io import hub

        print(f"{folder} pushed to {hub.push_folder(folder, repo, private or None)}")
