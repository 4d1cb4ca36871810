"""The training loop on a tiny decoder: it learns, and stopping, even by SIGKILL, leaves no trace in its curves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from t2l_jax.data.batches import BatchConfig, Sampler, TokenTable, TrainingTask, collate
from t2l_jax.data.prompts import Encoded
from t2l_jax.decoder import AttentionConfig, Decoder, DecoderConfig
from t2l_jax.errors import UserError
from t2l_jax.hypernet import HypernetConfig, TaskEncoderConfig, Variables
from t2l_jax.objectives import Batch, SftConfig
from t2l_jax.producers import HypernetProducer, LoraTable, Producer
from t2l_jax.training import LoopConfig, MetricsLog, OptimizerConfig, make_optimizer, train

CONFIG = DecoderConfig(
    vocab_size=64, width=16, num_layers=2, mlp_width=24, attention=AttentionConfig(2, 1, 8, windows=(None, None))
)
SPEC = CONFIG.lora_spec(rank=2)
NET = HypernetConfig(TaskEncoderConfig(dim=4), latent=8, head_in=16)
PRODUCER = HypernetProducer(NET, SPEC)
PAPER = SftConfig()
LOOP = LoopConfig(steps=8, log_every=4, validate_every=5, checkpoint_every=3, seed=1)
SHAPE = BatchConfig(tasks=2, rows=1, length=12)
FAST = OptimizerConfig(learning_rate=0.02, warmup=0.1)


def make_base() -> dict:
    """Random parameters of the tiny decoder, made without compiling its initialisation."""
    shapes = jax.eval_shape(lambda: Decoder(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def make_tasks() -> list[TrainingTask]:
    """Four tasks: whatever the prompt, task n answers with token 40 + n."""
    rng = np.random.default_rng(0)
    prompts = [tuple(map(int, rng.integers(40, size=4))) for _ in range(6)]
    return [
        TrainingTask(
            f"t{n}",
            2 * np.eye(4, dtype=np.float32)[[n]],
            {"instance": TokenTable.of([Encoded(p, (40 + n, 2)) for p in prompts])},
        )
        for n in range(4)
    ]


def validation_batch() -> Batch:
    tasks = make_tasks()
    rows = [[[task.examples["instance"][n] for n in range(2)]] for task in tasks]
    return collate(rows, np.concatenate([task.embeddings for task in tasks]), np.arange(4), SHAPE.length)


def sampler(loop: LoopConfig = LOOP) -> Sampler:
    return Sampler(make_tasks(), SHAPE, loop.seed)


def stop_at(step: int, stop: Callable[[], None]) -> Callable[[int], Batch]:
    """Draw batches until a step, and then stop."""

    def draw(n: int) -> Batch:
        if n == step:
            stop()
        return sampler().draw(n)

    return draw


def run(
    folder: Path,
    draw: Callable[[int], Batch] | None = None,
    producer: Producer = PRODUCER,
    loop: LoopConfig = LOOP,
    base: dict | None = None,
    sft: SftConfig = PAPER,
) -> Variables:
    return train(
        producer,
        Decoder(CONFIG),
        base or make_base(),
        draw or sampler(loop).draw,
        folder,
        loop=loop,
        optimizer=FAST,
        sft=sft,
        validation={"seen": [validation_batch()]},
    )


def curves(folder: Path) -> list[dict]:
    """What metrics.jsonl says, without how fast it went."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def assert_equal(first: Variables, second: Variables) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Variables]:
    """A run of all steps without a stop."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder)


def test_metrics_hold_every_step_and_every_validation_in_order(undisturbed):
    records = curves(undisturbed[0])
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [r["step"] for r in records if "seen/loss" in r] == [5, 8]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 8]
    assert {"loss", "cross_entropy", "exact", "weight_penalty", "grad_norm", "step"} == records[0].keys()


def test_the_loss_falls(tmp_path):
    """A table of LoRAs learns what each task answers; the base model is as it was."""
    base = make_base()
    loop = replace(LOOP, steps=30, validate_every=1, checkpoint_every=30)
    plain = SftConfig(label_smoothing=0.0, weight_l2=0.0, neftune=0.0, lora_dropout=0.0)
    run(tmp_path, producer=LoraTable(4, SPEC), loop=loop, base=base, sft=plain)
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
    run(Path(folder), stop_at(5, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_killed_and_resumed_is_undisturbed(undisturbed, tmp_path):
    tests = Path(__file__).parent
    code = f"import conftest, test_training; test_training.killed_run({str(tmp_path)!r})"
    path = os.pathsep.join([str(tests), str(tests.parent)])
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert killed.returncode == -signal.SIGKILL
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.')  # as if it had been killed while writing
    assert_equal(run(tmp_path), undisturbed[1])
    assert curves(tmp_path) == curves(undisturbed[0])


def test_a_run_can_end_before_its_schedule(undisturbed, tmp_path):
    run(tmp_path, loop=replace(LOOP, stop_after=4))
    assert [r for r in curves(tmp_path) if "loss" in r] == curves(undisturbed[0])[:4]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert_equal(run(tmp_path), undisturbed[1])


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

    with pytest.raises(UserError, match="the loss of step 5 is nan: lower the learning rate"):
        run(tmp_path, draw)
    assert [record["step"] for record in curves(tmp_path) if "loss" in record] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3"]


def test_a_checkpoint_holds_the_step_what_is_trained_and_the_optimiser(undisturbed):
    folder, variables = undisturbed
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder / "checkpoints" / "8" / "default").item_metadata.tree
    assert saved.keys() == {"step", "params", "opt_state"}
    sizes = {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(saved[name])) for name in saved}
    trained = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sizes == {"step": 1, "params": trained, "opt_state": 2 * trained + 2}  # two moments, two counts


def test_lines_past_the_checkpoint_and_half_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 2, "lo')
    log = MetricsLog(path, start=2)
    log.add(3, {"loss": jnp.asarray(1.5)}, tokens=10)
    assert log.flush().startswith("loss 1.500, ")
    assert curves(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.5}]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_learning_rate_rises_then_decays_to_zero(decay):
    """With a constant gradient Adam's update is the learning rate itself."""
    steps, warmup, peak = 20, 5, 0.3
    config = OptimizerConfig(learning_rate=peak, weight_decay=0.0, warmup=0.25, decay=decay)
    optimizer = make_optimizer(config, steps)
    update = jax.jit(optimizer.update)
    params = jnp.zeros(())
    state, found = optimizer.init(params), []
    for _ in range(steps):
        change, state = update(jnp.asarray(0.5), state, params)
        found.append(-float(change))
    n = np.arange(steps)
    rise = peak * (1 + (warmup - 1) * n / warmup) / warmup
    left = (steps - n) / (steps - warmup)
    fall = peak * left if decay == "linear" else peak * 0.5 * (1 + np.cos(np.pi * (1 - left)))
    np.testing.assert_allclose(found, np.where(n < warmup, rise, fall), rtol=1e-4, atol=1e-6)


def test_the_optimiser_is_adamw_after_clipping_by_global_norm():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.05, clip=1.0, warmup=0.0)
    steps, rng = 4, np.random.default_rng(0)
    params = {"a": rng.standard_normal(3), "b": rng.standard_normal((2, 2))}
    optimizer = make_optimizer(config, steps)
    found = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(found)
    first, second = ({name: np.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for n in range(steps):
        grads = {name: rng.standard_normal(p.shape) * (0.1 if n == 1 else 3.0) for name, p in params.items()}
        change, state = optimizer.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads), state, found)
        found = jax.tree.map(jnp.add, found, change)
        norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        rate = 0.1 if n == 0 else 0.1 * (1 - (n - 1) / (steps - 1))  # one step of warm-up, at the peak already
        for name, grad in grads.items():
            grad /= max(1.0, norm)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9 ** (n + 1)), second[name] / (1 - 0.999 ** (n + 1))
            params[name] = params[name] - rate * (mean / (np.sqrt(square) + 1e-8) + 0.05 * params[name])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), found, params)


@pytest.mark.parametrize("field", ["steps", "log_every", "checkpoint_every"])
def test_a_loop_of_nothing_is_refused(field):
    with pytest.raises(UserError, match=f"{field} must be at least 1, got 0"):
        LoopConfig(**{field: 0})
