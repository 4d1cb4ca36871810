"""Programs that pass, fail, loop, eat memory, end early and reach for the network."""

import pytest

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


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    ],
)
def test_a_program_that_does_not_end_is_ended(body):
    assert not passes(body, seconds=1)


@pytest.mark.parametrize(
    "body",
    [
        "x = bytearray(3 << 30)",
        "open('large', 'wb').write(bytes(20 << 20))",
        "import socket; socket.socket()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
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
