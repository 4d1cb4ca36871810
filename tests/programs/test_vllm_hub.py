"""vLLM's own resolver of the hub finds each adapter of a pushed folder by the repository's name and its own."""

import json
import os
import subprocess

import jax
import pytest
from hub_server import connect, running
from tiny_published import SPEC
from vllm_server import VLLM

from t2l_jax.io import hub
from t2l_jax.io.peft import load_peft, save_peft
from t2l_jax.lora import init_adapter, stack

pytestmark = [
    pytest.mark.programs,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
CODE = """
import asyncio, json, sys
from vllm.plugins.lora_resolvers.hf_hub_resolver import HfHubResolver
resolver = HfHubResolver(["org/many", "org/one"])
found = [asyncio.run(resolver.resolve_lora(*pair)) for pair in json.loads(sys.argv[1])]
print(json.dumps([one and [one.lora_name, one.lora_path] for one in found]))
"""


def test_vllms_resolver_finds_the_adapters_of_a_repository(tmp_path, monkeypatch):
    adapters = stack([init_adapter(jax.random.key(index), SPEC) for index in range(3)])
    save_peft(adapters, tmp_path / "many", base_model="org/tiny", names=["a", "b", "c"])
    save_peft(adapters[0], tmp_path / "one", base_model="org/tiny")
    with running() as server:
        connect(monkeypatch, server, tmp_path / "home")
        for name in ("many", "one"):
            hub.push_folder(tmp_path / name, f"org/{name}")
        asked = [
            ("org/tiny", "org/many/b"),
            ("org/tiny", "org/one"),
            ("org/tiny", "org/many/none"),
            ("org/other", "org/many/b"),
            ("org/tiny", "org/another/b"),
        ]
        environment = {**os.environ, **server.environment, "HF_HOME": str(tmp_path / "vllm")}
        command = [VLLM.parent / "python", "-c", CODE, json.dumps(asked)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, *others = json.loads(done.stdout.splitlines()[-1])
    assert (first[0], second[0], others) == ("org/many/b", "org/one", [None] * 3)
    for (_, path), wanted in ((first, adapters[1]), (second, adapters[0])):
        found = load_peft(path)
        assert (found.weights["q_proj"]["a"] == wanted.weights["q_proj"]["a"]).all()
