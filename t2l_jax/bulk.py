"""Thousands of descriptions to thousands of adapters on disk, at the speed of the hardware.

Text is embedded, adapters are computed, copied to the host and written at the same time: the hypernetwork runs one
batch ahead of the copies, and threads write. Axes: T adapters of a batch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import jax
from jax.sharding import Mesh

from t2l_jax.decoder.padding import pad_leading
from t2l_jax.distributed import agree, is_main, several, share, side_by_side, together
from t2l_jax.encoder import prepare
from t2l_jax.errors import UserError
from t2l_jax.hypernet import Condition, HypernetConfig, Variables, write_adapters
from t2l_jax.io.adapter_store import AdapterStore, check_adapter_names, write_collection_card
from t2l_jax.io.files import read_jsonl
from t2l_jax.io.packed import PackedStore
from t2l_jax.io.peft import HostWeights, PeftFormat
from t2l_jax.io.published import WORDS
from t2l_jax.io.session import code
from t2l_jax.lora import Adapter, LoraSpec
from t2l_jax.model import Model
from t2l_jax.progress import progress_bar
from t2l_jax.sharding import batch_sharding, make_mesh, replicated

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """An adapter to generate: the name of its folder, and the description of its task."""

    name: str
    description: str


def read_requests(path: Path) -> list[Request]:
    """The lines {"name": ..., "description": ...} of a JSONL file.

    Raises UserError, with file and line, for a line that is not that, a name that is no folder name or comes twice,
    and a description that `encoder.prepare` refuses.
    """
    requests: list[Request] = []
    lines: dict[str, int] = {}
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        for field in ("name", "description"):
            if not isinstance(record.get(field), str):
                raise UserError(f'{where}: needs a text "{field}", as in {{"name": "last", "description": "..."}}')
        name = record["name"]
        try:
            check_adapter_names([name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        folded = name.lower()  # upper and lower case do not tell two folders apart everywhere
        if folded in lines:
            raise UserError(f"{where}: the name {name!r} was used on line {lines[folded]} already: names must differ")
        lines[folded] = number
        prepare(record["description"], f"{where}: the description")
        requests.append(Request(name, record["description"]))
    if not requests:
        raise UserError(f"{path} has no lines: write one object with name and description per line")
    return requests


def generate_to_folder(
    model: Model,
    requests: Sequence[Request],
    folder: Path,
    batch: int = 64,
    packed: bool = False,
    dtype: str = "float32",
    base_name: str | None = None,
) -> int:
    """Generate the adapters that are not in `folder` yet; return their number.

    `base_name` is the base model's name in them; None: the one that the hypernetwork has for it.

    One PEFT folder per adapter (`AdapterStore`) or packed (`PackedStore`), with a manifest. An interrupted call resumes
    when repeated. Several processes, which all call this with the same arguments, divide the adapters; they need a
    folder that they share.
    """
    with together():
        if batch < 1:
            raise UserError(f"a batch must hold at least one adapter, got {batch}")
        if model.config.reads_instances:
            raise UserError(
                f"the hypernetwork reads {WORDS[model.config.reads]}, so it writes an adapter for each example: give "
                "one that reads descriptions alone, or make single adapters with t2l generate --instance"
            )
        files = _format(model, base_name, dtype)
        check_adapter_names([request.name for request in requests])  # before anything is written
        fingerprint = model.fingerprint + model.encoder.fingerprint
    if several():
        lines = hashlib.sha256(repr(requests).encode()).hexdigest()
        agree(
            {
                **code(),
                "requests": [len(requests), lines],
                "model": fingerprint,
                "format": [packed, dtype, files.base_model],
            }
        )
    kind = PackedStore if packed else AdapterStore
    with kind(folder, files, fingerprint) as store, progress_bar(not is_main()) as progress:
        pending = store.pending([r.name for r in requests], [r.description for r in requests])
        bar = progress.add_task("adapters", total=len(requests), completed=len(requests) - len(pending), rate="")
        own = [requests[index] for index in share(pending)]
        for written in side_by_side(_write(model, own, store, batch)):
            progress.advance(bar, sum(written))
    return len(pending)


def write_card(model: Model, folder: Path, base_name: str | None = None) -> None:
    """Write the model card of a folder of adapters, README.md, from its manifest."""
    write_collection_card(folder, _format(model, base_name).card)


def _format(model: Model, base_name: str | None, dtype: str = "float32") -> PeftFormat:
    return PeftFormat(model.config.lora, base_name or model.config.base_name, dtype)


def _write(model: Model, requests: Sequence[Request], store: AdapterStore, batch: int) -> Iterator[int]:
    """Generate adapters and queue them for writing; yield the number of those in each batch."""
    store.plan([r.name for r in requests], [r.description for r in requests])
    batch = max(1, min(batch, len(requests)))  # a batch is padded to its size
    chunks = [requests[i : i + batch] for i in range(0, len(requests), batch)]
    conditions = (Condition(z=model.encoder.embed([r.description for r in chunk])) for chunk in chunks)
    # A PEFT folder's B is scaled first, on the host, and rounded once.
    dtype = store.files.dtype if isinstance(store, PackedStore) else "float32"
    adapters = stream_adapters(model, ahead(conditions), batch, dtype=dtype)
    for chunk, weights in zip(chunks, adapters, strict=True):
        store.write([r.name for r in chunk], [r.description for r in chunk], weights)
        yield len(chunk)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, the next of which is made by a thread meanwhile."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield cast(Item, item)


def stream_adapters(
    model: Model, conditions: Iterator[Condition], batch: int, mesh: Mesh | None = None, dtype: str = "float32"
) -> Iterator[HostWeights]:
    """Batches of conditions to batches of adapters' weights in host memory, the next one computed during a copy.

    Adapters are sharded over the mesh's devices (default: those of this process) by task. Every batch is padded to one
    size, a multiple of the devices: rows past the end of a batch are padding.
    """
    mesh = mesh or make_mesh(devices=jax.local_devices())
    size = -(-batch // mesh.size) * mesh.size
    variables = jax.device_put(model.variables, replicated(mesh))
    waiting: list[Adapter] = []
    for some in conditions:
        placed = jax.device_put(pad_leading(some, size), batch_sharding(mesh))
        adapters = _write_adapters(model.config.hypernet, model.config.lora, dtype, variables, placed)
        for leaf in jax.tree.leaves(adapters):
            leaf.copy_to_host_async()
        waiting.append(adapters)
        if len(waiting) > 1:
            yield jax.device_get(waiting.pop(0).weights)
    for adapters in waiting:
        yield jax.device_get(adapters.weights)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _write_adapters(
    config: HypernetConfig, spec: LoraSpec, dtype: str, variables: Variables, conditions: Condition
) -> Adapter:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), write_adapters(config, spec, variables, conditions))
