"""What a run writes down, read back by other means: tensorboardX's own protocol buffers, a stand-in for wandb."""

import math
import signal
import struct
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tiny_training import LOOP, curves, objective, run, sampler

from t2l_jax.errors import Stopped, UserError
from t2l_jax.training.log import RunLog
from t2l_jax.training.trackers import TRACKERS, WeightsAndBiases, read_records

OBJECTIVE = objective()
WITH_WANDB = (partial(WeightsAndBiases, "words"), *TRACKERS)
METRICS = {"loss": jnp.asarray(1.5), "grad_norm": jnp.asarray(2.0)}


def test_lines_past_the_checkpoint_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 2, "lo')
    with RunLog(tmp_path, 2, OBJECTIVE) as log:
        log.add(3, METRICS, 0.1, sampler().draw(0))
        assert log.flush().startswith("loss 1.500, ")
    assert [(r["step"], r["loss"]) for r in curves(tmp_path)] == [(1, 3.0), (2, 2.0), (3, 1.5)]


def test_rates_count_tokens_supervised_ones_and_padding(tmp_path):
    batch = sampler().draw(0)
    with RunLog(tmp_path, 0, OBJECTIVE) as log:
        log.add(1, METRICS, 0.1, batch)
        log.add(2, METRICS, 0.1, batch)
        log.flush()
    (first, second) = read_records(tmp_path / "metrics.jsonl")
    assert first["tokens_per_second"] == second["tokens_per_second"]
    ratio = first["supervised_per_second"] / first["tokens_per_second"]
    assert ratio == pytest.approx((batch.weights > 0).sum() / (batch.segments > 0).sum(), rel=1e-2)
    assert first["padding"] == pytest.approx(np.mean(batch.segments == 0))


@pytest.mark.parametrize(
    "line", ["{}", '{"step": "1"}', '{"step": -1}', '{"step": 1, "loss": "low"}', '{"step": 1, "loss": {}}', "[1]", "x"]
)
def test_a_line_that_is_no_record_is_refused_and_half_a_line_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null, "exact": 0}\n{"step": 2, "lo')
    assert read_records(path) == [{"step": 1, "loss": None, "exact": 0.0}]
    assert path.read_text().endswith('"lo')  # reading changes nothing
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: "):
        read_records(path)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is(tmp_path):
    with RunLog(tmp_path, 0, OBJECTIVE) as log:
        log.add(1, METRICS, 0.1, sampler().draw(0))
        log.add(2, {**METRICS, "grad_norm": jnp.asarray(np.inf)}, 0.1, sampler().draw(1))
        log.add(3, METRICS, 0.1, sampler().draw(2))
        with pytest.raises(UserError, match="the grad_norm of step 2 is inf"):
            log.flush()
    assert [(r["step"], r["grad_norm"]) for r in curves(tmp_path)] == [(1, 2.0), (2, None)]
    with np.load(tmp_path / "batch_of_step_2.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["tokens"], sampler().draw(1).tokens)


def events(folder: Path) -> list[Event]:
    """The events of a folder's files, in TFRecord framing: length, its checksum, data, its checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
    return found


def points(folder: Path) -> dict[tuple[int, str], float]:
    """(Step, name) -> value of what TensorBoard finds in a folder."""
    return {(event.step, v.tag): v.simple_value for event in events(folder) for v in event.summary.value}


def test_tensorboard_has_every_metric(tmp_path):
    with RunLog(tmp_path, 4, OBJECTIVE) as log:
        log.add(5, METRICS, 0.25, sampler().draw(0))
        log.flush()
        # While the log is open: a run that is killed now goes on after this step and never writes it again.
        found = points(tmp_path / "tensorboard")
        log.validation(5, {"seen/exact": 0.5})
        assert points(tmp_path / "tensorboard").items() - found.items() == {((5, "seen/exact"), 0.5)}
    assert found[5, "loss"] == 1.5
    assert found[5, "learning_rate"] == 0.25
    assert {"padding", "grad_norm", "tokens_per_second", "supervised_per_second"} <= {tag for _, tag in found}


class StubRun:
    def __init__(self, settings: dict) -> None:
        self.settings, self.lines, self.ended = settings, [], None

    def log(self, metrics: dict, step: int) -> None:
        self.lines.append((step, metrics))

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


@pytest.fixture
def wandb_runs(monkeypatch) -> list[StubRun]:
    """The runs that are started with a stand-in for wandb."""
    runs: list[StubRun] = []
    module = ModuleType("wandb")
    module.init = lambda **settings: runs.append(StubRun(settings)) or runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_the_metrics_and_the_recipe_and_goes_on_with_the_same_run(tmp_path, wandb_runs):
    (tmp_path / "recipe.json").write_text('{"base": "tiny"}')
    with RunLog(tmp_path, 0, OBJECTIVE, WITH_WANDB) as log:
        log.validation(1, {"seen/exact": 0.5})
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 1, OBJECTIVE, WITH_WANDB):
        raise KeyboardInterrupt
    with pytest.raises(Stopped), RunLog(tmp_path, 1, OBJECTIVE, WITH_WANDB):
        raise Stopped(signal.SIGTERM, "after step 1")
    first, second, third = wandb_runs
    assert first.lines == [(1, {"seen/exact": 0.5})]
    assert (first.settings["project"], first.settings["config"]) == ("words", {"base": "tiny"})
    assert first.settings["id"] == second.settings["id"]
    assert (first.settings["resume"], first.ended, second.ended, third.ended) == ("allow", 0, 1, 0)


def test_a_refusal_of_wandb_says_what_to_do(tmp_path, wandb_runs, monkeypatch):
    def refuse(**_):
        raise ValueError("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UserError, match=r"--wandb: .*\(no API key\): run `wandb login`"):
        RunLog(tmp_path, 0, OBJECTIVE, WITH_WANDB)


def test_what_cannot_be_written_is_explained(tmp_path):
    with RunLog(tmp_path, 0, OBJECTIVE) as log:
        (tmp_path / "metrics.jsonl").rename(tmp_path / "moved")
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: Is a directory"):
            log.validation(1, {"seen/exact": 0.5})
        (tmp_path / "metrics.jsonl").rmdir()


def test_a_line_that_cannot_be_drawn_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("t2l_jax.training.trackers.DRAWINGS_SHARE", math.inf)
    path = tmp_path / "metrics.jsonl"
    with RunLog(tmp_path, 0, OBJECTIVE) as log:
        path.write_text("no record\n")
        log.validation(1, {"seen/exact": 0.5})
        assert not (tmp_path / "curves.png").exists()
        path.write_text('{"step": 1, "seen/exact": 0.5}\n{"step": 2, "se')  # as a line that is being written
        log.validation(3, {})
    assert path.read_text().startswith('{"step": 1, "seen/exact": 0.5}\n{"step": 2, "se')


def test_everything_is_closed_though_one_tracker_fails(tmp_path, wandb_runs, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("t2l_jax.training.trackers.draw_curves", fail)
    with pytest.raises(MemoryError), RunLog(tmp_path, 0, OBJECTIVE, WITH_WANDB):
        pass
    assert wandb_runs[0].ended == 0


# --- a tracker that somebody adds: a class, and a line in TRACKERS


class Counter:
    """Counts what it is given."""

    def __init__(self, folder: Path, start: int) -> None:
        self.start, self.steps, self.names, self.flushed, self.failed = start, [], set(), 0, None

    def log(self, step, metrics):
        self.steps.append(step)
        self.names |= metrics.keys()

    def flush(self):
        self.flushed += 1

    def close(self, failed):
        self.failed = failed


def test_a_new_tracker_is_a_class_and_a_line_in_the_list(tmp_path):
    counters = []

    def opened(folder: Path, start: int) -> Counter:
        counters.append(Counter(folder, start))
        return counters[-1]

    run(tmp_path, loop=replace(LOOP, stop_after=3, log_every=2, validate_every=3), trackers=(*TRACKERS, opened))
    (counter,) = counters
    assert (counter.start, counter.steps, counter.failed) == (0, [1, 2, 3, 3], False)
    assert {"loss", "learning_rate", "tokens_per_second", "padding", "seen/exact"} <= counter.names
    assert counter.flushed == 3  # after steps 2 and 3, and after the validation
