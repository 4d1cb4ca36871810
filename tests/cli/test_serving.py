"""`t2l serve` as a process, and what it refuses to start with."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from command_line import MODEL, ROOT, assert_refused

ENDLESS = [{"role": "user", "content": "red blue green"}]  # the tiny model goes on and on


@pytest.mark.slow
def test_a_stop_lets_what_runs_finish(place):
    command = [sys.executable, str(ROOT / "tests" / "slow_command.py"), "0", "serve", *MODEL, "--port", "0"]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "T2L_API_KEY": "secret"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving org/tiny at http://127.0.0.1:"), process.communicate()
        url = said.split()[-1]
        headers = {"Authorization": "Bearer secret"}
        body = {"model": "org/tiny", "messages": ENDLESS, "max_tokens": 1500, "temperature": 0, "stream": True}
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        lines = []
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120) as reply:
            assert reply.status_code == 200
            for line in reply.iter_lines():
                lines += [line] if line else []
                if len(lines) == 3:
                    process.send_signal(signal.SIGTERM)
        assert lines[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert len("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).split()) == 1500
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (
            "this hypernetwork reads instances, and a request has a description only",
            ("--model", "models/instance", "--port", "0"),
        ),
        ("this hypernetwork reads descriptions and instances, and", ("--model", "models/both", "--port", "0")),
        (
            "--max-rank must be from 2, the hypernetwork's rank, to 1024, got 1",
            (*MODEL, "--max-rank", "1", "--port", "0"),
        ),
        ("--rows must be from 1 to 65536, got 0", ("--rows", "0")),
        ("--context must be from 1 to", ("--context", "-1")),
        ("--queue must be from 1 to", ("--queue", "100000")),
        ("--timeout must be above 0", ("--timeout", "nan")),
        ("--port must be from 0 to 65535", ("--port", "70000")),
        ("--adapters nothing: no such folder", ("--adapters", "nothing")),
        ("the key must consist of printable ASCII characters", ("--api-key", "schlüssel")),
        ("cannot listen on 192.0.2.1, port 8000", ("--host", "192.0.2.1", "--api-key", "x")),
        ("cannot listen on nowhere.invalid, port 8000", ("--host", "nowhere.invalid", "--api-key", "x")),
    ],
)
def test_what_it_cannot_serve_is_refused(capsys, place, message, arguments):
    assert_refused(capsys, message, "serve", *arguments)


def test_a_port_in_use_is_known_before_anything_is_loaded(capsys, place):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert_refused(
            capsys, f"cannot listen on 127.0.0.1, port {port}: Address already in use", "serve", "--port", port
        )


def test_without_the_extra_it_says_what_to_install(capsys, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert_refused(capsys, "uvicorn is not installed: pip install 't2l_jax[serve]'", "serve")
