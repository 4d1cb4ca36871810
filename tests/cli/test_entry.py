"""Arguments become a command, and whatever ends it an exit status and at most one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, MODEL, ROOT, run

from t2l_jax.cli import entry


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"Examples:\n  t2l {command}" in out


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "t2l_jax", "models", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0
    assert "Examples:\n  t2l models" in done.stdout


def test_help_lists_the_commands_and_imports_nothing_slow():
    code = (
        "import sys, t2l_jax.cli\n"
        "try: t2l_jax.cli.main(['--help'])\n"
        "finally: print({'jax', 'torch', 'transformers', 'numpy', 'optax', 'starlette', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    "arguments", [(), ("genrate",), ("generate", "x", "--ouput", "y"), ("train", "--steps", "many")]
)
def test_arguments_that_are_not_understood_are_shown(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "t2l" in err
    assert "Traceback" not in err


def test_a_name_that_no_terminal_can_show_is_written_and_printed_escaped(capsys, place):
    status, out, err = run(capsys, "generate", "Say a.", *MODEL, "--out", os.fsdecode(b"a\xff"))
    assert (status, out, err) == (0, "adapter for org/tiny written to a\\udcff\n", "")
    assert Path(os.fsdecode(b"a\xff"), "adapter_config.json").is_file()


def test_an_interrupt_ends_quietly(capsys, place, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "parse", interrupted)
    assert run(capsys, "models") == (130, "", "")


def test_compiled_programs_are_kept_in_the_cache_folder_unless_told_otherwise(tmp_path, monkeypatch):
    names = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("T2L_CACHE", str(tmp_path))
    entry._keep_compiled()
    assert [os.environ[name] for name in names] == [str(tmp_path / "compiled"), "0.2"]
    monkeypatch.setenv(names[0], "elsewhere")
    entry._keep_compiled()
    assert os.environ[names[0]] == "elsewhere"
