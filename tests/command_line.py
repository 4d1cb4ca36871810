"""`t2l` called in this process, and what it is called with."""

from pathlib import Path

from tiny_published import snapshot

import t2l_jax
from t2l_jax import cli

ROOT = Path(t2l_jax.__file__).parents[1]
COMMANDS = (
    *("generate", "mix", "train", "reconstruct", "evaluate", "publish"),
    *("chat", "serve", "embed", "models", "import", "export"),
)
MODEL = ("--model", "models/good")


def run(capsys, *arguments):
    """What `t2l` with these arguments ends with: (status, stdout, stderr)."""
    status = 0
    try:
        cli.main(arguments)
    except SystemExit as end:
        status = end.code or 0
    return status, *capsys.readouterr()


def assert_refused(capsys, message, *arguments):
    before = snapshot(Path())
    status, out, err = run(capsys, *arguments)
    assert err.startswith("t2l: error: "), err
    assert err.count("\n") == 1
    assert len(err) < 2000
    assert message in err
    assert (status, out) == (2, "")
    assert snapshot(Path()) == before
