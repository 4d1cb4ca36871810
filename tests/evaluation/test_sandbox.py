"""Programs that pass, fail, loop, eat memory, end early and reach for the network."""

import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from t2l_jax.evaluation import sandbox
from t2l_jax.evaluation.sandbox import passes, program

PROMPT = 'from typing import List\n\ndef add(a: int, b: int) -> int:\n    """ Add. """\n'
TEST = "def check(candidate):\n    assert candidate(2, 3) == 5\n"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return a + b", True),
        ("    return a - b", False),
        ("    return a +", False),
        ("def add(a, b):\n    return a + b", True),
        ("Here it is:\n```python\ndef add(x: List, y):\n    return x + y\n```\nGood luck!", True),
        ("```\n    return a + b\n```", True),
        ("    import sys; sys.exit(0)", False),
        ("    import os; os._exit(0)", False),
        ("    return a + b\n\nprint('x' * 10**7)", True),
    ],
)
def test_an_answer_passes_where_its_function_does(answer, right):
    assert passes(program(PROMPT, answer, TEST, "add")) == right


def test_a_whole_function_finds_what_stands_before_it_in_the_prompt():
    helped = "import math\n\ndef half(x):\n    return x / 2\n\ndef add(a, b):\n    ...\n"
    answer = "def add(a, b):\n    return math.floor(2 * half(a + b))"
    assert passes(program(helped, answer, TEST, "add"))
    asked = "Complete this function:\n\nimport math\n\ndef add(a, b):\n    ...\n"
    assert passes(program(asked, "def add(a, b):\n    return math.floor(a + b)", TEST, "add"))
    prose = "Write a function that gets\nfrom two numbers one.\nimport math\n"
    assert passes(program(prose, "def add(a, b):\n    return math.floor(a + b)", TEST, "add"))


def test_a_prompt_may_be_fenced_or_end_without_a_new_line():
    fenced = f"Complete it:\n```python\n{PROMPT}```\nNothing else."
    assert passes(program(fenced, "    return a + b", TEST, "add"))
    assert passes(program(PROMPT.rstrip(), "    return a + b", TEST, "add"))
    answer = "First\n```text\nadd them\n```\nthen\n```python3\ndef add(a, b):\n    return a + b\n```"
    assert passes(program(fenced, answer, TEST, "add"))


@pytest.mark.parametrize("isolated", [True, False])
def test_a_program_reaches_no_server_of_this_machine(monkeypatch, isolated):
    """Also where only Python's sockets are replaced."""
    if not isolated:
        monkeypatch.setattr(sandbox, "without_network", tuple)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        with socket.create_connection(place), server.accept()[0]:
            pass  # it is there
        for body in (
            f"import urllib.request as u; u.urlopen('http://{place[0]}:{place[1]}', timeout=1)",
            f"import socket; socket.create_connection({place})",
            f"import socket; socket.socket(socket.AF_INET).connect({place})",
            f"import asyncio; asyncio.run(asyncio.open_connection(*{place}))",
        ):
            first, _, rest = body.partition(";")
            assert passes(first)  # what fails is the connection
            assert passes(f"{first}\ntry:\n    {rest}\nexcept OSError: pass")
            assert not passes(body)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_what_needs_no_network_passes():
    """An event loop has a pair of sockets, and libraries make classes of them."""
    assert passes("import asyncio\nassert asyncio.run(asyncio.sleep(0, 3)) == 3")
    assert passes("import ssl, http.client, urllib.request, socketserver")


def test_a_program_that_does_not_end_is_ended():
    """Each takes three seconds, so they run side by side."""
    bodies = (
        "while True: pass",
        "import time; time.sleep(60)",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    )
    with ThreadPoolExecutor() as pool:
        assert not any(pool.map(partial(passes, seconds=1), bodies))


@pytest.mark.parametrize(
    "body",
    [
        "x = bytearray(3 << 30)",
        "open('large', 'wb').write(bytes(20 << 20))",
        "import socket; socket.socket()",
    ],
)
def test_what_is_not_allowed_fails(body):
    assert not passes(body)
    assert passes("x = 1")


def test_a_program_sees_neither_our_variables_nor_our_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "word")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    assert passes("import os\nassert 'SECRET' not in os.environ and not os.path.exists('mine.txt')")
