"""Prepares a run of supervised fine-tuning: tasks and the frozen base LLM."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import jax
from jax.sharding import Mesh

from t2l_jax.data.tasks import Task
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.padding import check_tokens
from t2l_jax.decoder.quantized import check_blocks
from t2l_jax.encoder import Encoder
from t2l_jax.errors import UserError
from t2l_jax.io.base import base_bytes, check_separate, load_config, load_tokenizer
from t2l_jax.io.locations import resolve
from t2l_jax.io.sakana_chat import TEMPLATES, template_for
from t2l_jax.sharding import check_divides, local_slots
from t2l_jax.training.loop import Batches
from t2l_jax.training.material import check_best, read_material
from t2l_jax.training.objectives import FrozenBase
from t2l_jax.training.prepared import Prepared
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.trainees import Trainee


def prepare_sft(recipe: Recipe, kind: type[Trainee], encoder: Encoder | None) -> Prepared:
    """Read tasks, tokenizer and configuration of the base LLM; its weights are loaded with the objective."""
    together, files = recipe.compute.together(recipe.batch.tasks), resolve(recipe.base)
    template = _chat_template(recipe, kind)
    material = read_material(recipe, kind, load_tokenizer(files, template), encoder)
    check_best(recipe.best, recipe.objective.kind, material.validation)
    config = load_config(files)
    mesh = base_mesh(recipe, config, together)
    base = FrozenBase(files, config, recipe.decoder, recipe.compute.base_dtype(), mesh, recipe.compute.base)
    spec = config.lora_spec(**asdict(recipe.lora))
    check_separate(files, spec.names)
    for task in material.sampler.tasks:
        for table in task.examples.values():
            check_tokens(table.tokens, config.vocab_size)
    shape = recipe.batch
    return Prepared(
        spec=spec,
        tasks=tuple(task.name for task in material.tasks),
        batches=Batches(partial(material.sampler.draw, slots=local_slots(mesh, shape.tasks)), material.validation),
        mesh=mesh,
        accumulate=recipe.compute.accumulate,
        objective=lambda: recipe.objective.build(base),
        prompt=material.modes[0] if len(material.modes) == 1 else "both",
        descriptions=tuple(task.descriptions[0] for task in material.tasks),
        training=f"""Trained with t2l_jax on {len(material.tasks)} tasks ({", ".join(recipe.tasks)}), at most \
{recipe.loop.last} steps of
{shape.tasks} tasks x {shape.rows} rows of {shape.length} tokens.""",
        read={"tasks": _digest(material.tasks), "base": files.identity},
        base=config,
        chat_template=template,
    )


def base_mesh(
    recipe: Recipe,
    config: DecoderConfig,
    together: int,
    devices: Sequence[jax.Device] | None = None,
    memory: int | None = None,
) -> Mesh:
    """The mesh of a recipe, whose steps compute so many tasks together, on these devices with so much memory each.

    Raises UserError if it does not divide the base LLM's axes, or if this does not fit.
    """
    kind, platform = recipe.compute.base, None if devices is None else devices[0].platform
    size = base_bytes(config, recipe.compute.base_dtype(platform), kind)
    mesh = recipe.mesh.make(together, size, devices, memory)
    check_divides(mesh, config.axis_sizes())
    check_blocks(config.projection_widths(), kind, mesh)
    return mesh


def _chat_template(recipe: Recipe, kind: type[Trainee]) -> str | None:
    """The template of the prompts; None: the base LLM's own. A published model goes on with that of its training.

    Raises UserError if the recipe asks for another one, or for one that is not known.
    """
    given = None if recipe.init_from is None else kind.chat_template(recipe.init_from)
    if recipe.prompts.template == "base":
        return given
    template = template_for(recipe.base_name)
    if template is None:
        raise UserError(
            f"prompts.template: the original has none for {recipe.base_name}: known are {', '.join(TEMPLATES)}"
        )
    if recipe.init_from is not None and given != template:
        raise UserError(f"prompts.template: {recipe.init_from} was trained with another one: leave it out")
    return template


def _digest(tasks: Sequence[Task]) -> str:
    """A hash of the training data, by which a resumed run checks that it is unchanged."""
    digest = hashlib.sha256()
    for task in tasks:
        examples = [(example.input, example.output, example.accepted, example.prompt) for example in task.train]
        content = [task.name, task.descriptions, task.definition, examples]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()
