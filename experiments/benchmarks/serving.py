"""Does a server with an adapter for every client keep up?

Command: T2L_CACHE=... python -m experiments.benchmarks.serving                       (8 minutes on 2 cores)
Answer:  all complete, five times as many tokens a second as one by one, and the first one later (results/serving)

Starts `t2l serve` with the packaged model. Each of so many clients has a description of its own, whose adapter is
written for it, and streams an answer of a fixed length; they come all at once, or one after the other. The adapters are
deleted in between. Some streams go before, so that every program is compiled. Text that the two ways do not share
is a near tie of two tokens, decided by rounding.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx2
import numpy as np
import tyro

from experiments.tools.results import RESULTS, write

THINGS = ("color", "animal", "number", "city", "name", "fruit", "verb", "tool")
PLACES = ("first", "last", "second", "third", "longest", "shortest", "next", "previous")
PROMPT = "red dog seven Paris Anna apple run hammer"


@dataclass(frozen=True)
class Serving:
    """Time streams of a server of its own."""

    tokens: int = 32
    """Length of an answer."""
    rounds: int = 2
    out: Path = RESULTS / "serving"


@dataclass(frozen=True)
class Stream:
    """What one client saw: seconds to the first text and to the end, the text, its tokens."""

    first: float
    last: float
    text: str
    tokens: int


async def stream(client: httpx2.AsyncClient, model: str, tokens: int) -> Stream:
    """One client's answer. Raises if the stream does not end as it should."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, text, count, line = time.perf_counter(), None, "", 0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                if line:
                    break
                continue
            chunk = json.loads(line.removeprefix("data: "))
            piece = chunk["choices"][0]["delta"].get("content", "") if chunk["choices"] else ""
            if piece and first is None:
                first = time.perf_counter() - start
            text, count = text + piece, count if chunk["choices"] else chunk["usage"]["completion_tokens"]
    if line != "data: [DONE]" or count != tokens or first is None:
        raise RuntimeError(f"{model}: the stream ended with {line!r} after {count} tokens")
    return Stream(first, time.perf_counter() - start, text, count)


async def one_by_one(client: httpx2.AsyncClient, models: list[str], tokens: int) -> list[Stream]:
    """The streams of all models, each after the other."""
    return [await stream(client, model, tokens) for model in models]


async def together(client: httpx2.AsyncClient, models: list[str], tokens: int) -> list[Stream]:
    """The streams of all models at once."""
    return list(await asyncio.gather(*(stream(client, model, tokens) for model in models)))


async def forget(client: httpx2.AsyncClient, models: list[str]) -> None:
    """Delete the adapters that the server has written."""
    for model in models:
        (await client.delete(f"/v1/adapters/{quote(model)}")).raise_for_status()


async def measure(url: str, args: Serving) -> tuple[list[dict[str, object]], list[str]]:
    """A row for each way, of the medians of all rounds, and what else is to be said."""
    models = [f"t2l:Answer with the {place} {thing}." for place in PLACES for thing in THINGS]
    ways = {"one by one": one_by_one, "together": together}
    found: dict[str, list[tuple[float, list[Stream]]]] = {name: [] for name in ways}
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=httpx2.Limits(max_connections=None)) as client:
        await one_by_one(client, models[:1], args.tokens)
        await together(client, models, args.tokens)
        await forget(client, models)
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                streams = await way(client, models, args.tokens)
                found[name].append((time.perf_counter() - start, streams))
                await forget(client, models)
    rows, rates = [], {}
    for name, runs in found.items():
        rates[name] = [sum(each.tokens for each in streams) / seconds for seconds, streams in runs]
        firsts = np.asarray([each.first for _, streams in runs for each in streams])
        rows.append(
            {
                "streams": f"{len(models)} {name}",
                "complete": f"{len(firsts)} of {len(models) * args.rounds}",
                "tokens/s": round(float(np.median(rates[name])), 1),
                "least to most": f"{min(rates[name]):.1f} to {max(rates[name]):.1f}",
                "first text, p50, s": round(float(np.percentile(firsts, 50)), 3),
                "p99, s": round(float(np.percentile(firsts, 99)), 3),
            }
        )
    ratio = np.median(rates["together"]) / np.median(rates["one by one"])
    texts = [[each.text for each in runs[-1][1]] for runs in found.values()]
    same = sum(one == other for one, other in zip(*texts, strict=True))
    notes = [
        f"together, {ratio:.1f} times as many tokens a second; {same} of {len(models)} answers are the same both ways",
        f"{len(set(texts[0]))} different answers to one prompt; each of {args.tokens} tokens, in {args.rounds} rounds",
        "seconds to the first text count the writing of the adapter",
    ]
    return rows, notes


def main(args: Serving) -> None:
    """Write the table of a server that this starts and stops."""
    command = [sys.executable, "-m", "t2l_jax", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        rows, notes = asyncio.run(measure(url, args))
        process.send_signal(signal.SIGTERM)
        notes.append(f"SIGTERM: exit status {process.wait(60)}")
    finally:
        process.kill()
    write(args.out, {"Streams of a server": rows}, notes)


if __name__ == "__main__":
    main(tyro.cli(Serving))
