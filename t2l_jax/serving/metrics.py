"""What a server has done, in Prometheus's text format."""

from collections.abc import Mapping

from t2l_jax.serving.adapters import Registry
from t2l_jax.serving.engine import Engine


def exposition(engine: Engine, registry: Registry, replies: Mapping[int, int]) -> str:
    """The metrics; `replies` are counts by HTTP status."""
    counts = engine.counts
    values: list[tuple[str, str, str, float]] = [
        ("jobs_total", "counter", "completions that were queued", counts.jobs),
        ("prompt_tokens_total", "counter", "tokens read", counts.prompt_tokens),
        ("generated_tokens_total", "counter", "tokens written", counts.new_tokens),
        ("steps_total", "counter", "decoding steps of all rows", counts.steps),
        ("jobs_running", "gauge", "completions that decode", engine.active),
        ("jobs_waiting", "gauge", "completions in the queue", engine.waiting),
        ("adapters_written_total", "counter", "adapters written from descriptions", registry.written),
        ("adapters_cached", "gauge", "adapters kept for descriptions", registry.cached),
        ("adapters_named", "gauge", "adapters that clients made", len(registry.named())),
    ]
    lines = []
    for name, kind, text, value in values:
        lines += [f"# HELP t2l_{name} {text}", f"# TYPE t2l_{name} {kind}", f"t2l_{name} {value}"]
    lines += ["# HELP t2l_replies_total HTTP replies by status", "# TYPE t2l_replies_total counter"]
    lines += [f't2l_replies_total{{status="{status}"}} {count}' for status, count in sorted(replies.items())]
    return "\n".join(lines) + "\n"
