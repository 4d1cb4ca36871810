"""`--push org/name`, an option of the commands whose output others can use."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
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


def check(repo: str | None, entries: int = 0) -> None:
    """Before the work: raise UserError if there is a repository to push to and that will not be possible.

    `entries` is how many files and folders the output will have at its top.
    """
    if repo is not None:
        from t2l_jax.io.hub import MOST_ENTRIES, check_push

        if entries > MOST_ENTRIES:
            raise UserError(
                f"--push {repo}: {entries:,} files and folders beside each other, of which the hub takes "
                f"{MOST_ENTRIES:,}: divide the lines among several repositories"
            )
        check_push(repo)


def push(folder: Path, repo: str | None, private: bool) -> None:
    """Upload a folder, if there is a repository to push it to. Of several processes the main one does, all wait."""
    if repo is None:
        return
    from t2l_jax import distributed
    from t2l_jax.io.hub import push_folder

    def upload() -> str:
        return push_folder(folder, repo, private or None)

    if distributed.several():
        rounds = distributed.side_by_side(_in_steps(upload) if distributed.is_main() else ())
        url = [part for parts in rounds for part in parts][-1]
    else:
        url = upload()
    if distributed.is_main():
        print(f"{folder} pushed to {url}")


def _in_steps(work: Callable[[], str]) -> Iterator[str]:
    """What the work gives, last; before that a step each second, so that other processes do not wait for too long."""
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        while wait([working], timeout=1).not_done:
            yield ""
    yield working.result()
