"""vLLM itself, in each of the ways in which it takes adapters, answers as this package does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from vllm_server import Server

import t2l_jax
from t2l_jax.bulk import Request, generate_to_folder
from t2l_jax.decoder.generation import Sampling, greedy, pad_prompts
from t2l_jax.io.base import load_tokenizer

pytestmark = pytest.mark.programs
DESCRIPTIONS = {
    "last": "Answer with the last word.",
    "animal": "Reply with the animal, in capital letters.",
    "first": "Write the first word of the list twice.",
    "fruit": "Which of the words is a fruit? Say only that.",
}
PROMPTS = [
    "hammer, tiger, plum, blue",
    "river, apple, green, horse",
    "lemon, chair, wolf, red",
    "cloud, bread, yellow, cat",
    "whale, white, pear, spoon",
]
NEW = 12
ROUNDING = 1e-2  # in logits: closer to each other than this, another order of sums may choose another token


@pytest.fixture(scope="module")
def model() -> t2l_jax.Model:
    return t2l_jax.load()


@pytest.fixture(scope="module")
def base(model: t2l_jax.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model as a folder of transformers, which vLLM reads."""
    folder, file = tmp_path_factory.mktemp("base"), next(Path(model.base.path).parent.rglob("*.gguf"))
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    loaded.config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if "quant" not in k})
    loaded.is_quantized, loaded.hf_quantizer = False, None
    loaded.save_pretrained(folder)
    load_tokenizer(model.base, None).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(model: t2l_jax.Model, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each description; the base model's name is the one that vLLM is started with."""
    folder = tmp_path_factory.mktemp("adapters") / "all"
    requests = [Request(name, text) for name, text in DESCRIPTIONS.items()]
    generate_to_folder(model, requests, folder, base_name=str(base))
    return folder


@pytest.fixture(scope="module")
def wanted(model: t2l_jax.Model) -> dict[tuple[str, str], tuple[str, float]]:
    """Our answers, by name and prompt, and the smallest margin of their tokens."""
    llm, batch = model.load_base(), model.generate(list(DESCRIPTIONS.values()))
    tokens, lengths = pad_prompts([[llm.render(p) for p in PROMPTS]] * len(DESCRIPTIONS), llm.config.vocab_size)
    texts = llm.chat([PROMPTS] * len(DESCRIPTIONS), adapter=batch, sampling=Sampling(NEW))
    limits = np.full_like(lengths, NEW)
    _, margins = greedy(llm.decoder, llm.params, tokens, lengths, limits, NEW, batch, llm.stop_ids)
    return {
        (name, prompt): (texts[t][r], float(margins[t, r]))
        for t, name in enumerate(DESCRIPTIONS)
        for r, prompt in enumerate(PROMPTS)
    }


@pytest.fixture(scope="module")
def server(base: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    settings = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "lora_filesystem_resolver,t2l_jax",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters),
        "T2L_RESOLVER_FOLDER": str(folder / "described"),
    }
    started = Server(base, folder / "log", settings, "--lora-modules", f"static={adapters / 'last'}")
    yield started
    started.close()


def assert_same(server: Server, wanted: dict[tuple[str, str], tuple[str, float]], names: dict[str, str]) -> None:
    """The answers by vLLM's names of adapters are ours, but for those that rounding may change."""
    others = []
    for name, called in names.items():
        for prompt in PROMPTS:
            text, margin = wanted[name, prompt]
            found = server.answer(called, prompt, NEW)
            if found != text:
                others.append((called, prompt, text, found, margin))
    assert all(margin < ROUNDING for *_, margin in others), others
    assert len(others) <= len(names) * len(PROMPTS) // 10, others


def test_descriptions_are_names_of_models(server, wanted):
    assert_same(server, wanted, {name: f"t2l:{text}" for name, text in DESCRIPTIONS.items()})
    status, reply = server.post("/v1/completions", {"model": "t2l: ", "prompt": "x"})
    assert (status, "does not exist" in reply) == (404, True)
    assert "the description is empty" in server.log.read_text()


def test_a_folder_is_a_module(server, wanted):
    assert_same(server, wanted, {"last": "static"})


def test_a_folder_is_loaded_at_run_time(server, wanted, adapters):
    body = {"lora_name": "loaded", "lora_path": str(adapters / "animal")}
    assert server.post("/v1/load_lora_adapter", body)[0] == 200
    assert_same(server, wanted, {"animal": "loaded"})
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "loaded"})[0] == 200


def test_folders_are_found_by_name(server, wanted):
    assert_same(server, wanted, {name: name for name in DESCRIPTIONS})
