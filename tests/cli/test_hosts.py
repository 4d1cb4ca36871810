"""`t2l generate --from | evaluate` in two processes: the result of one, whatever happens on the way."""

import json
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import several
from command_line import run
from hub_server import running

from t2l_jax.io.packed import PackedAdapters
from t2l_jax.io.peft import load_peft

pytestmark = pytest.mark.slow
HERE = ("--distributed", "localhost:{port}")
COUNT = 64


def start(name: str, *arguments: str, seconds: float = 0.0):
    """The processes of a command in this folder."""
    return several.start(Path(), name, "slow_command.py", str(seconds), *arguments, *HERE)


def finish(name: str, processes) -> list[str]:
    """Wait for processes that succeed; what they say."""
    statuses = [process.wait(300) for process in processes]
    output = several.said(Path(), name)
    assert statuses == [0, 0], "\n".join(output)
    return output


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("t2l: error: ")]


def refused(name: str, *arguments: str) -> list[str]:
    """The one line with which each process ends."""
    statuses = [process.wait(300) for process in start(name, *arguments)]
    output = several.said(Path(), name)
    lines = [errors(own) for own in output]
    assert (statuses, [len(own) for own in lines]) == ([2, 2], [1, 1]), "\n".join(output)
    assert not any("Traceback" in own for own in output)
    return [own for (own,) in lines]


@pytest.fixture
def generate(place, capsys) -> tuple[str, ...]:
    """The command for COUNT adapters; `alone` has those of one process."""
    records = [{"name": f"t{number:02}", "description": f"Say {number}."} for number in range(COUNT)]
    Path("t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ("generate", "--from", "t.jsonl", "--model", "models/good", "--batch", "4", "--out")
    assert run(capsys, *command, "alone")[0] == 0
    return command


def assert_same_adapters(folder: Path, wanted: Path) -> None:
    """The same files, bit for bit: every device computes one adapter at a time, however many there are."""
    files = [{path.relative_to(one): path for path in one.rglob("*")} for one in (folder, wanted)]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        assert path.is_dir() or path.read_bytes() == files[1][name].read_bytes(), name
    assert len((folder / "manifest.jsonl").read_text().splitlines()) == COUNT


def test_two_processes_generate_what_one_does(generate):
    output = finish("many", start("many", *generate, "both"))
    assert [own.count("texts: 4\n") for own in output] == [COUNT / 4 / 2] * 2
    assert_same_adapters(Path("both"), Path("alone"))


@pytest.mark.long
def test_of_two_processes_one_pushes_and_the_other_waits(generate, monkeypatch, tmp_path_factory):
    with running() as hub:
        for key, value in {
            **hub.environment,
            "HF_TOKEN": "hf_writes",
            "HF_HOME": str(tmp_path_factory.mktemp("h")),
        }.items():
            monkeypatch.setenv(key, value)
        hub.before_commit = lambda: time.sleep(2.5)  # some of the steps in which they meet
        finish("pushed", start("pushed", *generate, "both", "--push", "org/both"))
        assert len(hub.repos["org/both"].files) == 4 * COUNT + 3
        assert len(hub.repos["org/both"].titles) == 1
        assert [path for _, path, _ in hub.seen].count("/api/whoami-v2") == 1


@pytest.mark.long
def test_two_processes_pack_what_one_writes_to_folders(generate):
    finish("packed", start("packed", *generate, "packed", "--format", "packed"))
    packed = PackedAdapters("packed")
    assert sorted(packed) == sorted(path.name for path in Path("alone").glob("t*")) == sorted(packed.descriptions)
    assert len({path.name[-15:] for path in Path("packed").glob("adapters-*")}) == 2  # each process its own
    for name, adapter in packed.items():
        wanted = load_peft(Path("alone", name))
        for module, sides in adapter.weights.items():
            np.testing.assert_array_equal(sides["a"], wanted.weights[module]["a"])
            scaled = adapter.spec.scale * sides["b"]
            np.testing.assert_allclose(scaled, wanted.spec.scale * wanted.weights[module]["b"], rtol=1e-6)
    assert len(Path("packed", "manifest.jsonl").read_text().splitlines()) == COUNT


@pytest.mark.long
def test_what_is_generated_is_the_same_on_all_hosts(generate):
    """Other requests, a file that one lacks, and folders of their own."""
    for number in range(2):
        text = Path("t.jsonl").read_text()
        Path(f"t{number}.jsonl").write_text(text.replace("Say 9.", f"Say {number}."))
    for line in refused("other", "generate", "--from", "t{number}.jsonl", *generate[3:], "new"):
        assert "requests is [64, " in line
        assert "on host 1 (" in line
        assert "start the same command" in line
    Path("t1.jsonl").unlink()
    own, lacks = refused("lacks", "generate", "--from", "t{number}.jsonl", *generate[3:], "new")
    assert "host 1: t1.jsonl cannot be read: No such file" in own
    assert lacks.startswith("t2l: error: t1.jsonl cannot be read")
    assert not Path("new").exists()
    for line in refused("apart", *generate, "new{number}"):
        assert "new1: not the folder of host 0: give an --out on a disk that all hosts share" in line
    assert [path.name for path in Path("new0").iterdir()] == ["store.json"]
    assert not Path("new1").exists()


@pytest.mark.long
def test_killed_in_the_midst_they_end_with_every_adapter_once_and_whole(generate, capsys):
    """One is killed, and the other ends by itself; then both are killed; then they are left alone.

    While they write, nobody else may.
    """
    out = Path("out")

    def until(count: int, processes) -> None:
        while sum(1 for _ in out.glob("t*")) < count and all(process.poll() is None for process in processes):
            time.sleep(0.002)

    processes = start("one", *generate, "out", seconds=0.3)
    until(10, processes)
    processes[1].kill()
    assert [process.wait(60) for process in processes] == [2, -signal.SIGKILL]
    (line,) = errors(several.said(Path(), "one")[0])
    assert "another process has ended, or cannot be reached: start all of them again" in line
    done = sum(1 for _ in out.glob("t*"))
    assert 10 <= done < COUNT
    processes = start("two", *generate, "out", seconds=0.3)
    until(done + 8, processes)
    assert "out: another process is writing here" in run(capsys, *generate, "out")[2]
    for process in processes:
        process.kill()
    assert [process.wait(60) for process in processes] == [-signal.SIGKILL] * 2
    assert sum(1 for _ in out.glob("t*")) < COUNT
    assert not (out / "manifest.jsonl").exists()
    finish("again", start("again", *generate, "out"))
    assert_same_adapters(out, Path("alone"))


@pytest.fixture
def evaluate(place, capsys) -> tuple[str, ...]:
    """The command for five tasks; `alone` has the evaluation of one process."""
    for number in range(5):
        folder = Path("tasks", f"task{number}")
        folder.mkdir()
        (folder / "task.yaml").write_text(
            f"name: task{number}\ndescriptions: ['Say word {number}.', 'Word {number}']\n"
        )
        for name, inputs in (("train", ("one two",)), ("test", ("red blue", "three four"))):
            lines = (json.dumps({"input": f"{text} {number}", "output": "red"}) + "\n" for text in inputs)
            (folder / f"{name}.jsonl").write_text("".join(lines))
    shutil.rmtree("tasks/one")
    shutil.rmtree("tasks/two")
    methods = ("--methods", "base", "misaligned", "aligned")
    command = ("evaluate", "models/good", "--tasks", "tasks", *methods, "--max-new-tokens", "8", "--out")
    status, _, err = run(capsys, *command, "alone")
    assert status == 0, err
    return command


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def assert_same_evaluation(folder: Path, wanted: Path) -> None:
    """Bit for bit, but for the order of the answers and the record of the sessions."""
    names = sorted(path.name for path in wanted.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in set(names) - {"predictions.jsonl", "environment.json"}:
        assert (folder / name).read_bytes() == (wanted / name).read_bytes(), name
    by_key = partial(sorted, key=lambda record: record["key"])
    assert by_key(answers(folder)) == by_key(answers(wanted))


def test_two_processes_evaluate_as_one_does(evaluate):
    finish("tables", start("tables", *evaluate, "both"))
    assert_same_evaluation(Path("both"), Path("alone"))


@pytest.mark.long
def test_an_evaluation_goes_on_with_more_and_with_fewer_processes(evaluate, capsys):
    """Some answers of one process are completed by two, and by one; other settings are refused."""
    for name, count in (("grown", 7), ("shrunk", 11)):
        shutil.copytree("alone", name)
        lines = Path("alone/predictions.jsonl").read_text().splitlines(keepends=True)
        Path(name, "predictions.jsonl").write_text("".join(lines[:count]))
        for table in Path(name).glob("table.*"):
            table.unlink()
    finish("grown_", start("grown_", *evaluate, "grown"))
    assert run(capsys, *evaluate, "shrunk")[0] == 0
    for name, count in (("grown", 7), ("shrunk", 11)):
        assert_same_evaluation(Path(name), Path("alone"))
        assert answers(Path(name))[:count] == answers(Path("alone"))[:count]
        sessions = json.loads(Path(name, "environment.json").read_text())["sessions"]
        assert [session["start"] for session in sessions] == [0, count]
    for line in refused("other", *evaluate, "new", "--max-tasks", "1{number}"):
        assert "max_tasks is 11 on host 1" in line
    assert not Path("new").exists()


@pytest.mark.long
def test_killed_in_the_midst_an_evaluation_goes_on(evaluate):
    processes = start("one", *evaluate, "out")
    while not Path("out/predictions.jsonl").exists() and processes[1].poll() is None:
        time.sleep(0.002)
    processes[1].kill()
    assert [process.wait(60) for process in processes] == [2, -signal.SIGKILL]
    (line,) = errors(several.said(Path(), "one")[0])
    assert "another process has ended, or cannot be reached: start all of them again" in line
    assert 0 < len(answers(Path("out"))) < len(answers(Path("alone")))
    finish("again", start("again", *evaluate, "out"))
    assert_same_evaluation(Path("out"), Path("alone"))
