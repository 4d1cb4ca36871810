"""Training steps compiled for devices: the figures against counts by hand and the compiler's own."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from tiny_recipe import make_recipe

from t2l_jax.cli.entry import main
from t2l_jax.data.batches import BatchConfig
from t2l_jax.decoder.attention import LayerAttention
from t2l_jax.errors import UserError
from t2l_jax.io.base import parameter_shapes
from t2l_jax.sharding import MeshConfig
from t2l_jax.training import compiled, plan_search
from t2l_jax.training.compiled import Figures, Refused, compile_step, make_plan_step
from t2l_jax.training.dry_run import find_base
from t2l_jax.training.plan import Plan, model_flops, plan, report
from t2l_jax.training.recipe import ComputeConfig
from t2l_jax.training.topology import Chip, Topology, find_topology

FIGURES = Figures(10, 8, 8, 5, 1e3, {"attention": 30, "projections": 70}, {"all-gather": 6}, {"all-gather": 3})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    made = make_recipe(tmp_path_factory.mktemp("plan"))
    return replace(made, batch=BatchConfig(tasks=16, rows=2, length=48), mesh=MeshConfig(fsdp=8))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture(scope="module")
def topology():
    return find_topology("cpu:8")


@pytest.fixture(scope="module")
def step(recipe, topology):
    return make_plan_step(recipe, find_base(recipe.base)[0], topology)


def test_the_figures_are_the_compilers_and_the_counts_by_hand(recipe, topology, step, cache, monkeypatch):
    found = plan(recipe, topology)
    outcome, base = found.outcome, step.base
    assert dict(step.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    # Every kernel is gathered for each layer forward and back, and the embedding once: seven of its eight parts.
    shapes = parameter_shapes(base)
    kernels = sum(jnp.zeros(shape).nbytes for path, shape in shapes.items() if path.endswith("kernel"))
    embedding = base.vocab_size * base.width * 4
    down = base.mlp_width * base.width * 4 * base.num_layers
    assert outcome.received["all-gather"] == pytest.approx((2 * kernels + embedding) * 7 / 8, abs=2 * down)
    assert outcome.operations["all-gather"] == pytest.approx(2 * 7 * base.num_layers + 1, abs=2)
    trained = sum(leaf.size for leaf in jax.tree.leaves(step.arguments[0].params)) * 4
    assert outcome.received["all-reduce"] == pytest.approx(2 * trained * 7 / 8, rel=0.3)
    # The arguments by kind are all that the compiler counts.
    held = step.held()
    assert sum(held.values()) == pytest.approx(outcome.arguments, abs=64)
    norms = sum(jnp.zeros(shape).nbytes for path, shape in shapes.items() if path.endswith("scale"))
    assert held["base LLM"] * 8 == kernels + embedding + 8 * norms
    assert outcome.memory == outcome.arguments + outcome.outputs - outcome.aliased + outcome.temporaries
    assert outcome.aliased == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.arguments[0]))
    # An equal step is not compiled again, and the file of another version is not believed.
    (file,) = cache.iterdir()
    monkeypatch.setattr(compiled, "_figures", None)
    assert plan(recipe, topology).outcome == outcome
    file.write_text('{"arguments": "many"}')
    with pytest.raises(UserError, match=str(file)):
        plan(recipe, topology)


def test_the_flops_of_the_model_are_those_of_every_pair_and_weight(step):
    base = replace(step.base, attention=replace(step.base.attention, layers=(LayerAttention(), LayerAttention(5))))
    kernels = base.num_layers * sum(i * o for i, o in base.projection_widths().values())
    tokens, heads = 16 * 2 * 48, base.attention.num_heads * base.attention.head_dim
    pairs = sum(1 for window in (48, 5) for q in range(48) for k in range(q + 1) if q - k < window)
    assert model_flops(replace(step, base=base)) == 4 * kernels * tokens + 12 * heads * 32 * pairs


@pytest.mark.parametrize("trainee", ["instance", "instance-text", "one-hot", "multitask"])
def test_every_trainee_has_a_step(recipe, topology, trainee):
    packed = replace(recipe.batch, packing=False)
    made = make_plan_step(replace(recipe, trainee=trainee, batch=packed), find_base(recipe.base)[0], topology)
    batch = made.arguments[3]
    assert batch.tokens.shape == ((32, 1, 48) if "instance" in trainee else (16, 2, 48))
    assert jax.eval_shape(made.function, *made.arguments)[1]["loss"].shape == ()


def test_on_accelerators_the_base_is_bfloat16():
    config = ComputeConfig()
    assert (config.base_dtype("tpu"), config.base_dtype("gpu"), config.base_dtype("cpu")) == (
        jnp.bfloat16,
        jnp.bfloat16,
        jnp.float32,
    )


def on_chips(step, memory):
    """The step as if its devices were chips of this memory that make 200 cycles and 1,000 FLOP in a second."""
    chip = Chip(memory, peak=model_flops(step) / 8, clock=200.0, links=3.0)
    return replace(step, topology=Topology("v5e:2x4", chip, step.topology.devices))


def test_the_report(step):
    found = Plan(on_chips(step, 15), FIGURES)
    assert found.fits
    assert found.seconds == 0.5
    assert found.share_of_peak == 2.0
    text = report(found)
    lines = {line.strip() for line in text.splitlines()}
    assert "hypernet for org/tiny, a step compiled for v5e:2x4: 8 of 8 devices of 0.0 MB" in lines
    assert "batch                  16 tasks x 2 rows x 48 tokens = 1,536 tokens" in lines
    assert "compiler's time        0.5 s: 3,072 tokens/s, 200% of the peak" in lines
    assert "in all           0.0 MB of 0.0 MB: fits" in lines
    assert "in all      0.0 MB  at least 2 s, at 0 GB/s" in lines
    assert {"attention    30.0%", "projections  70.0%"} <= lines
    assert "0.0 MB of 0.0 MB: does not fit" in report(Plan(on_chips(step, 14), FIGURES))


def test_what_the_compiler_refuses_does_not_fit(step, cache, monkeypatch):
    class Lowered:
        def as_text(self):
            return "a program"

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\n Used 20G")

    class Function:
        def lower(self, *_):
            return Lowered()

    for _ in range(2):  # the second is the cache's
        outcome = compile_step(replace(step, function=Function()))
        assert outcome == Refused("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G")
        monkeypatch.setattr(Lowered, "compile", None)
    found = Plan(step, outcome)
    assert not found.fits
    assert found.seconds is None
    assert "in all           does not fit: RESOURCE_EXHAUSTED" in report(found)


def test_another_failure_of_the_compiler_is_not_hidden(step, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(compiled, "_figures", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        compile_step(step)


def test_the_search_finds_the_most_tasks(recipe, step):
    made = []

    def make(recipe, topology):
        made.append(recipe.batch.tasks)
        return Plan(replace(step, recipe=recipe, topology=topology), replace(FIGURES, temporaries=recipe.batch.tasks))

    chips = on_chips(step, 110).topology
    assert plan_search.most_tasks(recipe, chips, make).step.recipe.batch.tasks == 96  # 10 + 96 <= 110
    assert made == [8, 16, 32, 64, 128, 96, 112, 104]
    assert plan_search.most_tasks(recipe, on_chips(step, 17).topology, make) is None
    made.clear()
    recipe = replace(recipe, batch=replace(recipe.batch, length=2**20))
    assert plan_search.most_tasks(recipe, on_chips(step, 10**9).topology, make).step.recipe.batch.tasks == 32
    assert max(made) == 32  # a batch of more tokens is none


def test_the_search_ranks_meshes(recipe, step):
    topology = step.topology

    def make(recipe, topology):
        made = make_plan_step(recipe, step.base, topology)
        size = {1: 30, 2: 10, 4: 20, 8: 40}[made.mesh.shape["fsdp"]]
        return Plan(made, replace(FIGURES, received={"all-gather": size}))

    found = plan_search.meshes(recipe, topology, make)
    assert [dict(one.step.mesh.shape)["fsdp"] for one in found] == [2, 4, 1, 8]
    assert {one.step.mesh.shape["tensor"] for one in found} == {1}  # one head of keys cannot be divided


def test_the_command(recipe, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "_figures", lambda *_: FIGURES)
    given = ("--base", recipe.base, "--encoder", recipe.encoder, "--batch.tasks", "2", "--batch.length", "16")
    main(["plan", *given, "--topology", "cpu:2", "--search"])
    text = capsys.readouterr().out
    assert "a step compiled for cpu:2: 2 of 2 devices" in text
    assert "\n  not limited: these devices have no memory" in text
    assert "data 2 x fsdp 1 x tensor 1" in text.partition("Meshes for the recipe's tasks, the best first\n")[2]


def test_the_search_names_every_rematerialisation(recipe, step, monkeypatch):
    none = lambda *_: None  # noqa: E731
    monkeypatch.setattr(plan_search, "most_tasks", none)
    monkeypatch.setattr(plan_search, "meshes", lambda *_: [Plan(on_chips(step, 20), FIGURES)])
    lines = list(plan_search.search(recipe, on_chips(step, 20).topology))
    assert [line.split()[0] for line in lines[1:5]] == ["none", "projections", "layer", "offload"]
    assert lines[-1] == "  data 1 x fsdp 8 x tensor 1  16 tasks, 0.0 MB a device, 0.5 s, 0.0 MB received"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v9:2"), "topology: v9:2 is not known: write v5e:2x2,"),
        (("--topology", "cpu:8", "--mesh.fsdp", "3"), "mesh: 8 devices cannot be split into groups of fsdp x tensor"),
        (("--topology", "cpu:8", "--mesh.tensor", "2"), "mesh.tensor: 2 devices do not divide the base LLM's kv heads"),
        (("--topology", "cpu:8", "--compute.accumulate", "3"), "cannot be cut into 3 equal parts"),
        (("--topology", "cpu:8", "--base", "hf:org/unknown"), "hf:org/unknown: not on this machine"),
    ],
)
def test_what_cannot_be_planned_is_refused(recipe, capsys, arguments, message, cache):
    given = ("--base", recipe.base, "--encoder", recipe.encoder)
    with pytest.raises(SystemExit) as ended:
        main(["plan", *given, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not cache.exists()
