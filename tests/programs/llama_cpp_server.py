"""Runs in xllamacpp's environment: llama.cpp's HTTP server with an adapter.

Arguments: the model, the adapter, a JSON list of prompts, each a list of token ids. It prints what the server says
of its adapters, and its greedy answers with the adapter and without it.
"""

import json
import sys
import urllib.request
from typing import Any

import xllamacpp


def main(model: str, adapter: str, prompts: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = model, 512, 1, False
    lora = xllamacpp.CommonAdapterLoraInfo()
    lora.path, lora.scale = adapter, 1.0
    params.lora_adapters = [lora]
    server = xllamacpp.Server(params)

    def call(path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def answers(scale: float) -> list[str]:
        options = {"temperature": 0, "n_predict": 12, "lora": [{"id": 0, "scale": scale}]}
        return [call("/completion", {"prompt": prompt, **options})["content"] for prompt in json.loads(prompts)]

    print(json.dumps({"adapters": call("/lora-adapters"), "with": answers(1.0), "without": answers(0.0)}))


main(*sys.argv[1:])
