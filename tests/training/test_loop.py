"""The training loop on a tiny decoder: it learns, and stopping, even by SIGKILL, leaves no trace in its curves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_training
from tiny_training import LOOP, SPEC, curves, make_base, objective, run, sampler, validation_batch

from t2l_jax.data.batch import ROW_FIELDS, Batch
from t2l_jax.errors import Stopped, UserError
from t2l_jax.hypernet import Variables
from t2l_jax.io.checkpoint import Checkpoints
from t2l_jax.io.files import locked
from t2l_jax.training import BestConfig, LoopConfig, TrainState, make_optimizer
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.trackers import TRACKERS
from t2l_jax.training.trainees import LoraTable

METRICS = ("loss", "cross_entropy", "exact", "weight_penalty", "trainee_loss")
STEPS = (*METRICS, "grad_norm", "learning_rate", "padding")
PLAIN = SftConfig(label_smoothing=0.0, weight_l2=0.0, neftune=0.0, lora_dropout=0.0)


def stop_at(step: int, stop: Callable[[], None]) -> Callable[[int], Batch]:
    """Draw batches until a step, and then stop."""

    def draw(n: int) -> Batch:
        if n == step:
            stop()
        return sampler().draw(n)

    return draw


def assert_equal(first: Variables, second: Variables) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Variables]:
    """A run of all steps without a stop."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder, trackers=TRACKERS)


def test_metrics_hold_every_step_and_every_validation_in_order(undisturbed):
    records = curves(undisturbed[0])
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [r["step"] for r in records if "seen/loss" in r] == [5, 8]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 8]
    assert {*STEPS, "step"} == records[0].keys()
    assert {"step", *(f"seen/{metric}" for metric in METRICS)} == records[5].keys()
    first = sampler().draw(0)
    assert records[0]["padding"] == pytest.approx(np.mean(first.segments == 0))
    assert records[0]["learning_rate"] == pytest.approx(tiny_training.FAST.learning_rate)


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="run: another process is writing here"):
        run(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_the_loss_falls(tmp_path):
    """A table of LoRAs learns what each task answers; the base model is as it was."""
    base = make_base()
    loop = replace(LOOP, steps=40, validate_every=1, checkpoint_every=40)
    run(tmp_path, trainee=LoraTable(4, SPEC), loop=loop, learn=objective(PLAIN, base))
    losses = [r["seen/cross_entropy"] for r in curves(tmp_path) if "seen/cross_entropy" in r]
    assert losses[-1] < 0.75 * losses[0]
    assert_equal(base, make_base())


def test_stopped_and_resumed_is_undisturbed(undisturbed, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    for step in (4, 7):  # one after the checkpoint of 3 steps, then one after that of 6
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop_at(step, interrupt))
    assert_equal(run(tmp_path), undisturbed[1])
    assert curves(tmp_path) == curves(undisturbed[0])


def killed_run(folder: str) -> None:
    """What the subprocess of the next test does: train, and die by SIGKILL between two checkpoints."""

    def kill() -> None:
        while not (Path(folder) / "checkpoints" / "3").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    run(Path(folder), stop_at(6, kill))


def start(function: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a function of this file on a folder in a process of its own."""
    tests = Path(__file__).parents[1]
    code = f"import test_loop; test_loop.{function}({str(folder)!r})"
    path = os.pathsep.join(map(str, (Path(__file__).parent, tests, tests.parent)))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_and_resumed_is_undisturbed(undisturbed, tmp_path):
    killed = start("killed_run", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.')  # as if it had been killed while writing
    assert_equal(run(tmp_path), undisturbed[1])
    assert curves(tmp_path) == curves(undisturbed[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(undisturbed, tmp_path, number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=rf"stopped by {number.name} after step \d of 8, which is saved in ") as stopped:
        run(tmp_path, stop_at(5, lambda: os.kill(os.getpid(), number)))
    assert stopped.value.status == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    done = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 3 <= done <= 6
    assert [r["step"] for r in curves(tmp_path) if "loss" in r] == list(range(1, done + 1))
    assert_equal(run(tmp_path), undisturbed[1])
    assert curves(tmp_path) == curves(undisturbed[0])


@pytest.mark.parametrize("place", ["best", "checkpoints"])
def test_a_full_disk_stops_the_run_in_one_line_and_it_goes_on(undisturbed, tmp_path, monkeypatch, place):
    usage = shutil.disk_usage

    def full(path):
        return usage(path)._replace(free=0) if Path(path).name == place else usage(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", full)
        with pytest.raises(UserError, match=f"no space left on the disk of .*{place}: free some"):
            run(tmp_path)
    assert_equal(run(tmp_path), undisturbed[1])
    assert curves(tmp_path) == curves(undisturbed[0])


def test_a_disk_that_fills_up_while_orbax_writes_is_explained(tmp_path, monkeypatch):
    def fail(_):
        raise ValueError('RESOURCE_EXHAUSTED: Error writing local file "x"')

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail)
    with pytest.raises(UserError, match=r"no space left on the disk of .*: free some"):
        run(tmp_path)


SMALL_DISK = """
mount -t tmpfs -o size=$1k none "$2" || exit 77
"$3" -c "$4" "$2"
"""
TRAIN = """
import logging
import subprocess
import sys
from pathlib import Path
import tiny_training
from t2l_jax.errors import UserError
logging.getLogger("absl").setLevel("ERROR")  # Orbax warns where the machine is slow
folder = Path(sys.argv[1])
try:
    tiny_training.run(folder)
except UserError as error:
    print(error)
subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
tiny_training.run(folder)
print("whole")
"""


@pytest.mark.slow
def test_a_real_disk_that_is_full_is_explained_and_the_run_goes_on(tmp_path):
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", SMALL_DISK, "bash"]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [*command, "60", str(tmp_path), sys.executable, TRAIN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path(tests).parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this system gives nobody a disk of its own")
    first, second = done.stdout.splitlines()
    assert (first.startswith("no space left on the disk of "), second, done.stderr) == (True, "whole", "")


def test_a_run_can_end_before_its_schedule(undisturbed, tmp_path):
    """And go on with what it ended with. Not validated: where it ends is one more place that can be the best."""
    parts, whole = tmp_path / "parts", [r for r in curves(undisturbed[0]) if "loss" in r]
    run(parts, loop=replace(LOOP, stop_after=4), validation={})
    assert curves(parts) == whole[:4]
    assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == ["3", "4"]
    assert_equal(run(parts, validation={}), run(tmp_path / "whole", validation={}))
    assert curves(parts) == whole


def test_a_stopped_run_told_to_end_where_it_stopped_validates_and_gives_what_it_has(undisturbed, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the checkpoint after step 6 is its last, the validation that after step 5
        run(tmp_path, stop_at(7, interrupt))
    last = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    ended = replace(LOOP, stop_after=last)
    given = run(tmp_path, loop=ended)
    found = [r["step"] for r in curves(tmp_path) if "seen/loss" in r]
    assert found == [5, last]
    whole = run(tmp_path / "whole", loop=ended)
    assert_equal(given, whole)
    assert curves(tmp_path) == curves(tmp_path / "whole")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert_equal(run(tmp_path, loop=ended), given)
    assert_equal(run(tmp_path, loop=replace(LOOP, stop_after=last - 1)), given)  # it is past that already
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_is_not_trained_again(undisturbed):
    folder, variables = undisturbed
    before = (folder / "metrics.jsonl").read_bytes()

    def never(step: int) -> Batch:
        raise AssertionError(f"step {step} is drawn again")

    assert_equal(run(folder, never), variables)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_a_number_stops_the_run_before_it_is_saved(tmp_path):
    def draw(n: int) -> Batch:
        batch = sampler().draw(n)
        return batch.replace(weights=batch.weights * np.float32(np.nan)) if n == 4 else batch

    with pytest.raises(UserError, match=r"the loss of step 5 is nan: its batch is in .*/batch_of_step_5.npz; look for"):
        run(tmp_path, draw)
    assert [record["step"] for record in curves(tmp_path) if "loss" in record] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3"]
    with np.load(tmp_path / "batch_of_step_5.npz", allow_pickle=False) as saved:
        batch = draw(4)
        np.testing.assert_array_equal(saved["condition.z"], batch.condition.z)
        np.testing.assert_array_equal(saved["condition.task"], batch.condition.task)
        for name in ROW_FIELDS:
            np.testing.assert_array_equal(saved[name], getattr(batch, name))


def damage(folder: Path) -> None:
    """Cut the largest file of a checkpoint short."""
    largest = max(
        (path for path in (folder / "default").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-20])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(undisturbed, tmp_path, capfd):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at(7, interrupt))
    damage(tmp_path / "checkpoints" / "6")
    assert_equal(run(tmp_path), undisturbed[1])
    assert "checkpoints/6 is damaged (" in (said := capfd.readouterr().err)
    assert "resuming from step 3" in said
    assert curves(tmp_path) == curves(undisturbed[0])


# --- the best


def values_of(folder: Path) -> dict[int, float]:
    return {r["step"]: r["seen/cross_entropy"] for r in curves(folder) if "seen/cross_entropy" in r}


WORSE = replace(LOOP, steps=40, validate_every=2, checkpoint_every=5)
PATIENT = {"loop": WORSE, "trainee": LoraTable(4, SPEC), "learn": objective(PLAIN), "best": BestConfig(patience=3)}


def other_answers() -> dict[str, list[Batch]]:
    """A validation set whose answers are none of training's: the better the fit, the worse."""
    batch = validation_batch()
    return {"seen": [batch.replace(targets=np.where(batch.weights > 0, 50, 0).astype(np.int32))]}


@pytest.fixture(scope="module")
def given_up(tmp_path_factory) -> tuple[Path, Variables]:
    """A run that ends by its patience."""
    folder = tmp_path_factory.mktemp("given_up")
    return folder, run(folder, validation=other_answers(), **PATIENT)


def test_a_run_that_no_longer_improves_ends_and_gives_its_best(given_up, tmp_path):
    found = values_of(given_up[0])
    best = min(found, key=lambda step: found[step])
    assert max(found) == best + 3 * 2 < 40
    short = run(tmp_path, **{**PATIENT, "loop": replace(WORSE, stop_after=best)})
    assert_equal(given_up[1], short)


def test_patience_and_best_survive_a_stop(given_up, tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    end = max(values_of(given_up[0]))
    for step in (end - 4, end - 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop_at(step, interrupt), validation=other_answers(), **PATIENT)
    assert_equal(run(tmp_path, validation=other_answers(), **PATIENT), given_up[1])
    assert curves(tmp_path) == curves(given_up[0])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert_equal(run(tmp_path, validation=other_answers(), **PATIENT), given_up[1])  # and it stays ended
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("patience", [None, 1])
def test_without_validation_the_last_parameters_are_the_result(tmp_path, patience):
    found = run(tmp_path, validation={}, best=BestConfig(patience=patience))
    assert not any((tmp_path / "best").iterdir())
    fresh = tiny_training.TRAINEE.init(jax.random.key(0))["params"]
    optimizer = make_optimizer(tiny_training.FAST, tiny_training.LOOP.steps)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = checkpoints.restore_latest(TrainState(jnp.zeros((), jnp.int32), fresh, optimizer.init(fresh)))
    assert int(state.step) == 8
    assert_equal(found["params"], state.params)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (found["params"], fresh)), strict=True))


@pytest.mark.parametrize("by", ["exact", "unseen/exact", "seen/bleu"])
def test_a_metric_that_is_not_there_is_refused(tmp_path, by):
    with pytest.raises(UserError, match=f"best.by is '{by}'"):
        run(tmp_path, best=BestConfig(by=by))


# --- what a run leaves behind


def test_a_run_folder_has_everything(undisturbed):
    folder = undisturbed[0]
    names = {path.name for path in folder.iterdir()}
    assert names == {"metrics.jsonl", "tensorboard", "curves.png", "environment.json", "checkpoints", "best"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    (session, *_) = json.loads((folder / "environment.json").read_text())["sessions"]
    assert (session["start"], session["packages"]["jax"]) == (0, jax.__version__)
    assert session["devices"] == {"kind": "cpu", "platform": "cpu", "used": 1}
    assert session["seconds"] > 0


def test_a_checkpoint_holds_the_step_what_is_trained_and_the_optimiser(undisturbed):
    folder, variables = undisturbed
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / "checkpoints" / "8" / "default").item_metadata.tree
    assert saved.keys() == {"step", "params", "opt_state"}
    sizes = {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(saved[name])) for name in saved}
    trained = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sizes == {"step": 1, "params": trained, "opt_state": 2 * trained + 2}  # two moments, two counts


@pytest.mark.parametrize("field", ["steps", "log_every", "checkpoint_every"])
def test_a_loop_of_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"loop: field {field}: must be at least 1, got 0"):
        LoopConfig(**{field: 0})
