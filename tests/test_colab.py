"""`docs/colab.ipynb` does what it says with the code beside it, with fewer steps, and its committed outputs fit.

Execute it again after a change of it or of the packaged model, where nothing else computes:
`PYTHONWARNINGS="ignore:IProgress not found" jupyter execute --inplace docs/colab.ipynb`.
"""

import json
import re
import shlex
import socket
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from notebooks import ROOT, errors, execute, outputs, pictures, printed, read

from t2l_jax.cli.entry import parse

NOTEBOOK = ROOT / "docs" / "colab.ipynb"
STEPS = 4


@pytest.fixture(scope="module")
def committed():
    return read(NOTEBOOK)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """The folder of temporary files of the notebook."""
    return tmp_path_factory.mktemp("colab")


@pytest.fixture(scope="module")
def executed(smollm2, minilm, beside):
    before = set(NOTEBOOK.parent.iterdir())
    notebook = execute(NOTEBOOK, f"steps = {STEPS}", {"TMPDIR": str(beside)})
    assert set(NOTEBOOK.parent.iterdir()) == before
    return notebook


def cell(notebook, name):
    """The cell with this id."""
    (found,) = (cell for cell in notebook.cells if cell.id == name)
    return found


def text_of(notebook, name):
    """What the cell with this id printed."""
    return "".join(output.text for output in cell(notebook, name).outputs if output.get("name") == "stdout")


def losses(notebook):
    return [float(loss) for loss in re.findall(r"[\d.]+\d", text_of(notebook, "curve"))]


def percentages(notebook):
    """Before and after, for each task."""
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) +(\d+)$", text_of(notebook, "accuracy-code"), re.MULTILINE)]


@pytest.mark.slow
def test_it_runs_the_code_beside_it(executed):
    assert printed(executed).splitlines()[-1] == str(ROOT / "t2l_jax" / "__init__.py")
    assert text_of(executed, "install-code") == "t2l_jax is installed\n"


@pytest.mark.slow
def test_it_answers_as_the_committed_outputs_show(committed, executed):
    """Adapters of the packaged model, in the notebook itself and behind the server, whole and as a stream."""
    for name, answer in (
        ("generate-code", "A (3, 30, 8, 576)"),
        ("chat-code", "'TIGER'"),
        ("serve-ask-code", "blue"),
        ("serve-stream-code", "tiger"),
        ("tasks", '{"input": '),
    ):
        assert answer in text_of(executed, name), name
        # What the base model makes up without an adapter may differ from machine to machine.
        now, then = (re.sub(r"\(no adapter\).*", "", text_of(one, name)) for one in (executed, committed))
        assert now == then, "execute the notebook again and commit it"


@pytest.mark.slow
def test_the_server_is_there_until_it_is_stopped(executed):
    found = re.search(r"^serving \S+ at http://127\.0\.0\.1:(\d+)$", text_of(executed, "serve-start"), re.MULTILINE)
    assert found, text_of(executed, "serve-start")
    assert text_of(executed, "serve-stop-code") == "exit status 0\n"
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", int(found[1]))) != 0


@pytest.mark.slow
def test_training_begins_as_in_the_committed_outputs(committed, executed):
    first, last = losses(executed)
    assert last < 0.9 * first
    assert first == pytest.approx(losses(committed)[0], rel=0.05), "execute the notebook again and commit it"


@pytest.mark.slow
def test_it_draws_and_warns_of_nothing(committed, executed):
    assert pictures(executed) == pictures(committed) == 2
    for notebook in (executed, committed):
        assert "warn" not in printed(notebook, "stderr").lower(), printed(notebook, "stderr")


@pytest.mark.slow
def test_it_leaves_nothing_behind(executed, beside):
    assert [path.name for path in beside.iterdir() if path.name.startswith("tmp")] == []


def test_the_committed_outputs_are_of_a_run_that_learned_three_tasks_in_two_minutes(committed):
    assert NOTEBOOK.stat().st_size < 200_000
    assert not errors(committed)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert int(re.search(r"steps in (\d+) s;", text_of(committed, "run-code"))[1]) <= 120
    first, last = losses(committed)
    assert last < 0.05 * first
    before, after = zip(*percentages(committed), strict=True)
    assert len(after) == 3
    assert max(before) < 20
    assert min(after) > 80


def test_it_names_nothing_of_the_machine_that_executed_it(committed):
    """No folder and no address of it, neither in the sources nor in what they printed."""
    texts = [cell.source for cell in committed.cells]
    texts += [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs(committed)]
    text = "\n".join([*texts, json.dumps(committed.metadata)])
    folders = r"(?<![\w.~}])/(?!tmp/t2l_jax)(?:\w[\w.-]*/)+"
    assert re.findall(folders, text) == []
    assert set(re.findall(r"https?://([^\s/:]+)", text)) == {"127.0.0.1"}


def test_in_colab_it_shows_the_server_s_page(committed, monkeypatch):
    shown = []
    package, colab = ModuleType("google"), ModuleType("google.colab")
    colab.output = SimpleNamespace(serve_kernel_port_as_iframe=lambda port, path: shown.append((port, path)))
    monkeypatch.setitem(sys.modules, "google", package)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    exec(cell(committed, "serve-page-code").source, {"sys": sys, "url": "http://127.0.0.1:4321", "key": "a1"})
    assert shown == [(4321, "/#key=a1")]


def test_the_command_that_it_names_trains_the_same(committed):
    command = shlex.split(cell(committed, "run").source.partition("\n\n")[2].replace("\\\n", ""))
    assert command[:2] == ["t2l", "train"]
    values = {"folder": Path()}
    exec(cell(committed, "parameters").source, values)
    exec(cell(committed, "run-code").source.partition("\nwall")[0], values)
    assert parse(command[1:]).recipe == values["recipe"]


def test_its_links_lead_somewhere(committed):
    links = [link for cell in committed.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert len(links) >= 8
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
