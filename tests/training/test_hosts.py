"""Two processes of four devices each train as one process of eight does, stop together, and go on exactly."""

import json
import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import hosts
import jax
import numpy as np
import pytest
import several
from tiny_training import curves

from t2l_jax import load
from t2l_jax.sharding import make_mesh

pytestmark = pytest.mark.slow


def start(function: str, folder: Path) -> list[subprocess.Popen]:
    """Two processes that run a function of hosts.py."""
    return several.start(folder, function, "hosts.py", function, str(folder), "{port}")


def said(function: str, folder: Path) -> list[str]:
    return several.said(folder, function)


def line(output: str, word: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(word))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    """The run on eight devices of this process; half of it is in half and of_eight."""
    half = hosts.replace(hosts.tiny_training.LOOP, stop_after=4)
    hosts.train(folder / "half", make_mesh(fsdp=2), loop=half, validation={})
    shutil.copytree(folder / "half", folder / "of_eight")
    hosts.train(folder / "alone", make_mesh(fsdp=2))
    return folder / "alone"


@pytest.fixture(scope="module")
def first(folder, alone) -> list[str]:
    """What the two processes print that train without a stop, and then are stopped."""
    statuses = [process.wait(300) for process in start("undisturbed", folder)]
    output = said("undisturbed", folder)
    assert statuses == [128 + signal.SIGTERM] * 2, "\n".join(output)
    return output


@pytest.fixture(scope="module")
def second(folder) -> tuple[list[str], list[dict]]:
    """What two processes print that train a recipe and then another run, of which one is killed; the recipe's log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2L_CACHE", str(folder / "cache"))
        hosts.run(hosts.make_material(folder / "material"), folder / "recipe_alone")
    survivor, victim = start("killed", folder)
    status = victim.wait(300)
    survivor.kill()  # it would end after distributed.HEARTBEAT_LIMIT
    survivor.wait()
    output = said("killed", folder)
    assert status == -signal.SIGKILL, "\n".join(output)
    return output, steps_of(folder / "recipe_alone")


def steps_of(folder: Path) -> list[dict]:
    return [record for record in curves(folder) if "loss" in record]


def assert_close(own: list[dict], wanted: list[dict], tolerance: float) -> None:
    """Losses are the same but for the last bits, which Adam makes larger in gradients; and so are batches."""
    assert [record["step"] for record in own] == [record["step"] for record in wanted]
    for one, other in zip(own, wanted, strict=True):
        assert one.keys() == other.keys()
        assert one["padding"] == pytest.approx(other["padding"], rel=1e-12)
        assert one["learning_rate"] == other["learning_rate"]
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_two_processes_train_as_one(folder, first, alone):
    assert_close(steps_of(folder / "whole"), steps_of(alone), 1e-6)
    own, wanted = ([record for record in curves(path) if "seen/loss" in record] for path in (folder / "whole", alone))
    assert [record["step"] for record in own] == [5, 8]
    np.testing.assert_allclose([r["seen/loss"] for r in own], [r["seen/loss"] for r in wanted], rtol=1e-5)
    assert [line(output, "slots") for output in first] == ["slots: [0, 1, 2, 3]", "slots: [4, 5, 6, 7]"]
    sessions = json.loads((folder / "whole" / "environment.json").read_text())["sessions"]
    assert [session["devices"]["used"] for session in sessions] == [8]


def test_hosts_with_different_recipes_are_refused(folder, first):
    for output in first:
        assert re.match(r"refused: loop.seed is 1 on host 1 \(.*\), 0 on host 0 ", line(output, "refused"))
    assert not (folder / "refused").exists()


def test_sigterm_to_one_process_saves_on_both(folder, first):
    """They stop after the same step, which is the newest checkpoint."""
    stops = {line(output, "stopped") for output in first}
    (stopped,) = stops
    step = int(re.match(r"stopped: stopped by SIGTERM after step (\d+) of 1000", stopped)[1])
    assert [int(path.name) for path in (folder / "stopped" / "checkpoints").iterdir()] == [step]
    assert [record["step"] for record in steps_of(folder / "stopped")] == list(range(1, step + 1))


@pytest.mark.parametrize("devices", [4, 1])
def test_a_run_of_eight_devices_goes_on_on_fewer(alone, tmp_path, devices):
    shutil.copytree(alone.parent / "half", tmp_path / "run")
    hosts.train(tmp_path / "run", make_mesh(devices=jax.devices()[:devices]), validation={})
    assert_close(steps_of(tmp_path / "run"), steps_of(alone), 1e-5)


def test_a_run_of_eight_devices_goes_on_on_two_processes_of_two(folder, first, alone):
    assert_close(steps_of(folder / "of_eight"), steps_of(alone), 1e-5)


@pytest.mark.long
def test_a_recipe_is_trained_and_published_by_two_processes(folder, second):
    """Its base LLM's weights are divided."""
    output, wanted = second
    assert_close(steps_of(folder / "recipe"), wanted, 1e-5)
    assert {line(own, "published") for own in output} == {f"published: {folder / 'recipe' / 'model'}"}
    own, other = (load(folder / name / "model").variables for name in ("recipe", "recipe_alone"))
    close = partial(np.testing.assert_allclose, atol=0.02)  # a learning rate of 0.01 for three steps
    jax.tree.map(close, own, other)


@pytest.mark.long
def test_after_the_death_of_one_both_go_on_exactly(folder, second, first):
    """Bit for bit as on the same devices without a stop."""
    statuses = [process.wait(300) for process in start("resumed", folder)]
    assert statuses == [0, 0], "\n".join(said("resumed", folder))
    assert curves(folder / "killed") == curves(folder / "whole")
    for output in said("resumed", folder):  # each process holds half of the tasks, or all
        placed = [line for line in output.splitlines() if line.endswith(": placed")]
        assert placed == [
            "tensor4: placed",
            "tensor8: placed",
        ]
