"""A text encoder's adapter that is trained in the hypernetwork's step: its gradient, its runs, what they publish."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from command_line import run as t2l
from encoder_adapters import save_encoder_adapter
from tiny_encoders import save_encoder
from tiny_library import save_library
from tiny_recipe import make_recipe, recipe_in
from tiny_training import FAST, NET, SPEC, curves
from transformers import BertModel

import t2l_jax
from t2l_jax.data.batches import BatchConfig, Sampler
from t2l_jax.encoder import load_encoder
from t2l_jax.encoder.flax_encoder import FlaxEncoder
from t2l_jax.encoder.sentence import SentenceConfig
from t2l_jax.encoder.transformer import Learned, Transformer, TransformerConfig
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, Variables
from t2l_jax.lora import init_adapter
from t2l_jax.sharding import make_mesh
from t2l_jax.training import Batches, LoopConfig, RunConfig, train
from t2l_jax.training import run as run_module
from t2l_jax.training.dry_run import dry_run
from t2l_jax.training.objectives import SftConfig
from t2l_jax.training.recipe import BaseRecipe, Recipe, ReconstructionRecipe
from t2l_jax.training.run import run
from t2l_jax.training.trackers import JsonLines
from t2l_jax.training.trainees import EncoderTraining, JointHypernetwork, TextHypernetwork, join

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture")]  # importing sentence-transformers takes seconds
SENTENCE = SentenceConfig(TransformerConfig(20, 8, 2, 2, 12, Learned(16)), truncate_dim=NET.task.dim)
TRAINEE = JointHypernetwork(replace(NET, init="reconstruction", dropout=0.0), SPEC, SENTENCE)
LORA = EncoderTraining("lora", rank=2, alpha=4.0)
QUIET = SftConfig(label_smoothing=0.0, weight_l2=0.0, neftune=0.0, lora_dropout=0.0)
TEXTS = ["say the first word", "answer with the last word of all"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))


def random_variables() -> Variables:
    """All of them random, the B of the encoder's adapter included."""
    spec = SENTENCE.transformer.lora_spec(("q_proj", "v_proj", "up_proj"), 2, 4.0)
    adapter = init_adapter(jax.random.key(3), spec)
    adapter = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapter)
    tokens, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    frozen = Transformer(SENTENCE.transformer).init(jax.random.key(1), tokens, mask)["params"]
    own = TRAINEE.init(jax.random.key(0))
    return {
        **own,
        "params": {**own["params"], "encoder": adapter},
        "encoder": {"transformer": frozen, "dense": []},
    }


def sampler(shape: BatchConfig = tiny_training.SHAPE) -> Sampler:
    """The tasks of `tiny_training`, with two descriptions each of two to eight tokens."""
    rng = np.random.default_rng(0)
    tasks = []
    for n, task in enumerate(tiny_training.make_tasks()):
        rows = np.where(np.arange(8)[None] < rng.integers(2, 9, (2, 1)), rng.integers(20, size=(2, 8)), -1)
        conditions = Condition(task=np.full(2, n, np.int32), text=rows.astype(np.int32))
        tasks.append(replace(task, conditions=conditions))
    return Sampler(tasks, shape, 1)


def test_gradients_are_those_of_finite_differences():
    """Of the encoder's adapter, and of the hypernetwork."""
    variables, learn = random_variables(), tiny_training.objective(QUIET)
    batch = jax.tree.map(jnp.asarray, sampler().draw(0))

    @jax.jit
    def loss(params):
        adapters, _ = TRAINEE.adapters({**variables, "params": params}, batch.condition)
        return learn.loss(adapters, batch, None)[0]

    params = variables["params"]
    gradient = jax.jit(jax.grad(loss))(params)
    assert set(gradient) == set(params)
    for part in ("encoder", "head_q_proj"):
        direction = jax.tree.map(jnp.zeros_like, params)
        direction[part] = jax.tree.map(jnp.sign, gradient[part])  # the steepest, so that rounding is small beside it
        ends = [jax.tree.map(lambda x, d, s=sign: x + s * 1e-3 * d, params, direction) for sign in (1, -1)]
        difference = (float(loss(ends[0])) - float(loss(ends[1]))) / 2e-3
        slope = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        assert slope > 1e-2
        assert difference == pytest.approx(slope, rel=0.02)


def test_two_devices_that_take_a_batch_in_parts_train_as_one_does(tmp_path):
    losses = []
    shape = replace(tiny_training.SHAPE, tasks=4)
    for how in ({}, {"mesh": make_mesh(data=2, devices=jax.devices()[:2]), "accumulate": 2}):
        config = RunConfig(LoopConfig(steps=2), FAST, trackers=(JsonLines,), **how)
        folder = tmp_path / str(len(losses))
        train(TRAINEE, tiny_training.objective(QUIET), Batches(sampler(shape).draw), folder, config, random_variables())
        losses.append([record["loss"] for record in curves(folder)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][1] != losses[0][0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a text encoder, a base model and tasks."""
    folder = tmp_path_factory.mktemp("material")
    save_encoder(folder / "encoder")
    make_recipe(folder)
    return folder


def recipe_of(folder: Path) -> Recipe:
    return replace(recipe_in(folder), encoder=str(folder / "encoder"), encoder_training=LORA)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> tuple[Path, JointHypernetwork, Variables]:
    """The folder of a run, and what it published as the run had it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2L_CACHE", str(out.parent / "cache"))
        return out, *published_by(recipe_of(folder), out)


def published_by(recipe: BaseRecipe, out: Path) -> tuple[JointHypernetwork, Variables]:
    """What a run publishes."""
    kept: list[tuple[JointHypernetwork, Variables]] = []
    publish = JointHypernetwork.publish

    def keep(self, folder, variables, release):
        kept.append((self, variables))
        return publish(self, folder, variables, release)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JointHypernetwork, "publish", keep)
        run(recipe, out)
    return kept[0]


def flax_encoder(location: Path) -> FlaxEncoder:
    encoder = load_encoder(str(location))
    assert isinstance(encoder, FlaxEncoder)
    return encoder


def test_a_published_model_writes_the_adapters_of_the_best_variables(folder, finished):
    out, trainee, variables = finished
    model = t2l_jax.load(out / "model")
    encoder = flax_encoder(folder / "encoder")
    jax.tree.map(np.testing.assert_array_equal, variables["encoder"], encoder.params)
    adapter = variables["params"]["encoder"]
    assert adapter.spec.names == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert all(np.any(pair["b"]) for pair in adapter.weights.values())  # they began as zero
    # The hypernetwork is published in float16, its encoder's adapter in float32.
    halves = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), variables)
    halves["params"]["encoder"] = adapter
    wanted, _ = trainee.adapters({**halves, "encoder": encoder.params}, Condition(text=encoder.token_rows(TEXTS)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), model.generate(TEXTS), wanted)
    assert np.abs(model.encoder.embed(TEXTS) - encoder.embed(TEXTS)).max() > 1e-3
    assert model.config.encoder_adapter
    assert "with the adapter in encoder/" in (out / "model" / "README.md").read_text()


def test_a_checkpoint_holds_the_adapter_and_not_the_frozen_encoder(finished):
    (kept,) = (finished[0] / "checkpoints" / "3").rglob("_METADATA")
    assert "up_proj" in kept.read_text()
    assert "token_types" not in kept.read_text()


def test_a_resumed_run_is_the_same_bit_for_bit(folder, finished, tmp_path):
    recipe, out = recipe_of(folder), tmp_path / "run"
    run(replace(recipe, loop=replace(recipe.loop, stop_after=2)), out)
    _, variables = published_by(recipe, out)
    whole, parts = ([line["loss"] for line in curves(one) if "loss" in line] for one in (finished[0], out))
    assert whole == parts
    assert len(whole) == 3
    jax.tree.map(np.testing.assert_array_equal, variables, finished[2])


def test_training_goes_on_from_the_encoders_own_adapter(folder, tmp_path):
    """Whatever its own alpha, and with its own rank and modules."""
    bert = BertModel.from_pretrained(folder / "encoder")
    save_encoder_adapter(tmp_path / "adapter", bert, str(folder / "encoder"))
    encoder = flax_encoder(tmp_path / "adapter")
    plain = TextHypernetwork(replace(NET, task=replace(NET.task, dim=encoder.dim), init="reconstruction"), SPEC)
    begun = plain.init(jax.random.key(0))
    trainee, variables = join(plain, begun, encoder, LORA, jax.random.key(1))
    spec = variables["params"]["encoder"].spec
    assert (spec.rank, spec.alpha, spec.names) == (3, 4.0, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    written, _ = trainee.adapters(variables, Condition(text=encoder.token_rows(TEXTS)))
    wanted, _ = plain.adapters(begun, Condition(encoder.embed(TEXTS)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), written, wanted)


def test_a_model_and_its_encoder_are_trained_further(folder, finished, tmp_path):
    """A learning rate of almost nothing leaves what they began with."""
    first = finished[0] / "model"
    further = replace(recipe_of(folder), encoder=str(first / "encoder"), init_from=str(first))
    further = replace(further, optimizer=replace(further.optimizer, learning_rate=1e-12))
    second = run(further, tmp_path / "second")
    one, two = (t2l_jax.load(model).generate(TEXTS) for model in (first, second))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one, two)


def test_reconstruction_trains_the_encoder_too(folder, tmp_path):
    recipe = ReconstructionRecipe(
        library=str(save_library(tmp_path / "library")),
        base_name="org/tiny",
        encoder=str(folder / "encoder"),
        encoder_training=LORA,
        hypernet=replace(ReconstructionRecipe().hypernet, latent=16, head_in=16),
        loop=LoopConfig(steps=2),
        batch_tasks=2,
    )
    _, variables = published_by(recipe, tmp_path / "run")
    assert np.any(variables["params"]["encoder"].weights["q_proj"]["b"])
    assert t2l_jax.load(tmp_path / "run" / "model").config.encoder_adapter


def test_what_cannot_be_trained_is_refused_by_name(folder, tmp_path):
    for trainee in ("one-hot", "multitask", "oracles", "instance", "instance-text"):
        with pytest.raises(UserError, match=rf"encoder\.train: {trainee} cannot train its text encoder"):
            Recipe(trainee=trainee, encoder_training=LORA)
    recipe = replace(recipe_of(folder), encoder=f"last-token:{folder / 'base'}")
    with pytest.raises(
        UserError, match=r"encoder\.train: last-token:.* cannot be trained, only an encoder of the BERT"
    ):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"encoder\.train: the step of an encoder in training is not planned"):
        dry_run(recipe_of(folder))


def test_an_adapter_that_changes_no_projection_is_refused(folder):
    """As one of the pooler alone is read: with A and B of zero, no gradient would ever move it."""
    encoder = flax_encoder(folder / "encoder")
    nothing = jax.tree.map(jnp.zeros_like, init_adapter(jax.random.key(0), SPEC))
    own = TextHypernetwork(NET, SPEC)
    with pytest.raises(UserError, match=r"encoder\.train: the adapter .* changes no projection"):
        join(own, {"params": {}}, replace(encoder, lora=nothing), LORA, jax.random.key(0))


def test_flags_of_the_command_line(capsys):
    status, _, err = t2l(capsys, "train", "--encoder", "minilm", "--encoder.train", "lora", "--trainee", "multitask")
    assert (status, err.count("\n")) == (2, 1)
    assert "encoder.train: multitask cannot train" in err
    status, _, err = t2l(capsys, "train", "--encoder.rank", "0")
    assert status == 2
    assert "encoder: field rank: must be at least 1" in err


def test_a_run_folder_that_is_older_than_the_option_is_still_its_runs(folder, tmp_path, monkeypatch):
    """Whatever was trained: here, nothing was."""
    monkeypatch.setattr(run_module, "train", lambda trainee, *_: trainee.init(jax.random.key(0)))
    recipe = replace(recipe_of(folder), encoder_training=EncoderTraining())
    run(recipe, tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    kept = json.loads(path.read_text())
    del kept["encoder_training"]
    path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"encoder_training\.train is none there, lora here"):
        run(recipe_of(folder), tmp_path / "run")
    run(recipe, tmp_path / "run")
