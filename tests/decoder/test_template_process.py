"""The process that renders chat templates: what it is blamed for, and what others may do to it."""

import os
import signal
import subprocess
import sys

import pytest

from t2l_jax.decoder.template_process import TemplateProcess
from t2l_jax.errors import UserError

TEMPLATE = "{{ messages[0].content }}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
FORKED = """
import os, sys
from t2l_jax.decoder.template_process import PROCESS

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
    process = TemplateProcess()
    yield process
    process.close()


def rendered(process, *texts, template=TEMPLATE):
    conversations = [[{"role": "user", "content": text}] for text in texts]
    return process.render(template, {}, conversations, answered=False)


def test_a_fork_has_a_process_of_its_own():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_process_that_was_ended_between_requests_is_started_again(process):
    assert rendered(process, "a") == [{"text": "a"}]
    process._process.kill()
    process._process.wait()
    assert rendered(process, "b", "c") == [{"text": "b"}, {"text": "c"}]


def sitecustomize(monkeypatch, folder, text):
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_what_imports_print_is_no_reply(monkeypatch, tmp_path, process):
    late = "import atexit, sys\nprint('[1]')\nsys.stdout.write('x')\nsys.stdout.flush()\nprint('later')\n"
    sitecustomize(monkeypatch, tmp_path, late)
    assert rendered(process, "a") == [{"text": "a"}]


def test_a_process_that_does_not_start_says_why(monkeypatch, tmp_path, process):
    (tmp_path / "transformers.py").write_text("raise ImportError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"its process does not start \(status 1\): ImportError: broken$"):
        rendered(process, "a")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    process.start()
    with pytest.raises(UserError, match="its process does not start: .*No such file"):
        rendered(process, "a")


def test_limits_that_the_system_does_not_set_are_left_out(monkeypatch, tmp_path, process):
    """macOS has none of memory; and a lower one may be set already."""
    refuse = "import resource\ndef refuse(*_): raise ValueError\nresource.setrlimit = refuse\n"
    sitecustomize(monkeypatch, tmp_path, refuse)
    assert rendered(process, "a") == [{"text": "a"}]
    process.close()
    lower = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))\n"
    sitecustomize(monkeypatch, tmp_path, lower)
    assert rendered(process, "a") == [{"text": "a"}]


@pytest.mark.parametrize("blocked", [True, False])
def test_the_limit_of_time_holds_whatever_the_parent_does_with_its_signal(blocked):
    process = TemplateProcess(seconds=0.2)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF] if blocked else [])
    handler = signal.getsignal(signal.SIGPROF) if blocked else signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with pytest.raises(UserError, match=r"does not end within 0\.2 seconds"):
            rendered(process, "a", template=LOOP)
    finally:
        signal.signal(signal.SIGPROF, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_the_limit_of_time_is_for_all_conversations_of_a_request():
    """Each of them alone takes less."""
    process = TemplateProcess(seconds=0.5)
    slow = "{% for i in range(99999) %}{% endfor %}"
    assert rendered(process, "a", template=slow) == [{"text": ""}]
    with pytest.raises(UserError, match=r"does not end within 0\.5 seconds"):
        rendered(process, *["a"] * 2000, template=slow)


@pytest.mark.parametrize(
    "change", ["request['name'] = 'another'", "request['conversations'].pop()", "print('[1]', file=out)"]
)
def test_a_reply_to_something_else_is_refused_and_the_process_ended(monkeypatch, tmp_path, process, change):
    sitecustomize(
        monkeypatch,
        tmp_path,
        "import json, os\nloads, out = json.loads, os.fdopen(os.dup(1), 'w', 1)\n"
        f"def changed(line):\n    request = loads(line)\n    {change}\n    return request\njson.loads = changed\n",
    )
    with pytest.raises(UserError, match="its process answers something else"):
        rendered(process, "a")
    assert process._process is None


def test_a_template_that_ends_its_process_is_blamed(process):
    process.start()
    started = process._process
    with pytest.raises(UserError, match=r"^ends its process \(status -9\)"):
        os.kill(started.pid, signal.SIGSTOP)
        kill = f"sleep 0.5; kill -9 {started.pid}"
        rendered(process, "a")
