"""vLLM's server as a process, from the environment that `make test-programs` sets up."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VLLM = Path(os.environ.get("T2L_VLLM", ".venv-vllm/bin/vllm"))
PORT = 8123


class Server:
    """`vllm serve` of a folder; its log is a file beside it."""

    def __init__(self, base: Path, log: Path, settings: Mapping[str, str], *options: str) -> None:
        if not VLLM.exists():
            raise FileNotFoundError(f"{VLLM} is missing: make test-programs installs it")
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "2",
            **settings,
        }
        command = [VLLM, "serve", base, "--enable-lora", "--max-loras", "4", "--max-lora-rank", "8"]
        command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--port", str(PORT), *options]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text()[-3000:])
            if self.reachable():
                return
            time.sleep(1)
        raise TimeoutError(log.read_text()[-3000:])

    def reachable(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                return True
        except OSError:
            return False

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        """Status and text of the reply."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def answer(self, model: str, text: str, tokens: int) -> str:
        """Greedy, after an empty system turn, as in training."""
        messages = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
        body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
        status, reply = self.post("/v1/chat/completions", body)
        assert status == 200, reply
        return json.loads(reply)["choices"][0]["message"]["content"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
