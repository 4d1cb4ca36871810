"""The process that renders chat templates: what it is blamed for, and what others may do to it."""

import os
import resource
import signal
import subprocess
import sys
import threading

import pytest

from t2l_jax.decoder.template_process import TemplateProcess
from t2l_jax.errors import UserError

STUB = """
import json, os, resource, sys
{at_import}
class PreTrainedTokenizerBase:
    def apply_chat_template(self, turns, **_):
        {at_render}
        return turns[0]["content"]
"""
FORKED = """
import os, sys
from t2l_jax.decoder.template_process import PROCESS

os.environ["PYTHONPATH"] = sys.argv[1]

def rendered(who):
    for number in range(200):
        text = f"{who} {number}"
        turns = [[{"role": "user", "content": text}]]
        assert PROCESS.render("{{ messages[0].content }}", {}, turns, answered=False) == [{"text": text}], text

rendered("first")
process = PROCESS._process
children = []
for who in "ab":
    children.append(os.fork())
    if not children[-1]:
        rendered(who)
        sys.exit()  # with all that is done at the end of a process
rendered("parent")
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
rendered("parent")
assert PROCESS._process is process
"""


@pytest.fixture
def process():
    process = TemplateProcess(seconds=0.4)
    yield process
    process.close()


@pytest.fixture(autouse=True)
def stub(monkeypatch, tmp_path):
    """In place of transformers, which takes longer to import: it renders the first turn, or does worse."""

    def write(at_import="", at_render="pass"):
        text = STUB.format(at_import=at_import, at_render=at_render)
        (tmp_path / "transformers" / "tokenization_utils_base.py").write_text(text)

    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a stub written in the same second would not be seen
    write()
    return write


def rendered(process, *texts):
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return [reply["text"] for reply in process.render("", {}, conversations, answered=False)]


def test_a_fork_has_a_process_of_its_own(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (run.returncode, run.stderr) == (0, "")


def test_a_process_that_was_ended_between_requests_is_started_again(process):
    assert rendered(process, "a") == ["a"]
    process._process.kill()
    process._process.wait()
    assert rendered(process, "b", "c") == ["b", "c"]


def test_what_imports_print_is_no_reply(process, stub):
    stub(at_import="print('[1]', flush=True); print('x', end='', flush=True); print('later')", at_render="print('{}')")
    assert rendered(process, "a") == ["a"]
    assert rendered(process, "b", "c") == ["b", "c"]


def test_a_process_that_does_not_start_says_why(monkeypatch, tmp_path, process, stub):
    stub(at_import="raise ImportError('broken')")
    with pytest.raises(UserError, match=r"its process does not start \(status 1\): ImportError: broken$"):
        rendered(process, "a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    process.start()
    with pytest.raises(UserError, match=r"its process does not start: .*No such file"):
        rendered(process, "a")


@pytest.mark.parametrize(
    ("before", "limit"),
    [
        ("", 1 << 30),
        ("resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))", 1 << 29),
        ("def refuse(*_): raise ValueError\nresource.setrlimit = refuse", None),  # as on macOS
    ],
)
def test_memory_is_limited_as_far_as_the_system_allows(process, stub, before, limit):
    stub(before, "return str(resource.getrlimit(resource.RLIMIT_AS)[0])")
    own = resource.getrlimit(resource.RLIMIT_AS)[0]
    assert rendered(process, "a") == [str(own if limit is None else limit)]


@pytest.mark.parametrize("blocked", [True, False])
def test_the_limit_of_time_holds_whatever_the_parent_does_with_its_signal(process, stub, blocked):
    stub(at_render="while True: pass")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF] if blocked else [])
    handler = signal.getsignal(signal.SIGPROF) if blocked else signal.signal(signal.SIGPROF, signal.SIG_IGN)
    killer = threading.Timer(60, lambda: process._process.kill())  # so that the test ends without the limit, too
    killer.start()
    try:
        with pytest.raises(UserError, match=r"does not end within 0\.4 seconds"):
            rendered(process, "a")
    finally:
        killer.cancel()
        signal.signal(signal.SIGPROF, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_the_limit_of_time_is_for_all_conversations_of_a_request(process, stub):
    """Each of them alone takes less."""
    stub(at_render="sum(range(10 ** 5))")
    assert rendered(process, "a") == ["a"]
    with pytest.raises(UserError, match=r"does not end within 0\.4 seconds"):
        rendered(process, *["a"] * 5000)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("request['name'] = 'another'", "cannot be rendered: its process answers something else"),
        ("request['conversations'].pop()", "cannot be rendered: its process answers something else"),
        ("print('[1]', file=out)", "cannot be rendered: its process answers something else"),
        ("os.kill(os.getpid(), 9)", r"ends its process \(status -9\), as one does that needs over 1 GB of memory"),
    ],
)
def test_after_a_wrong_reply_or_none_the_next_request_gets_another_process(process, stub, change, reason):
    stub(f"""
loads, out = json.loads, os.fdopen(os.dup(1), "w", 1)
def changed(line):
    request = loads(line)
    {change}
    return request
json.loads = changed
""")
    with pytest.raises(UserError, match=f"^{reason}"):
        rendered(process, "a")
    stub()
    assert rendered(process, "b") == ["b"]
