"""What a log shows of long work; terminals get rich's own bar."""

import re
import time

from t2l_jax import progress


def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    with progress.progress_bar() as bar:
        task = bar.add_task("training", total=8, rate="")
        for done in range(1, 5):
            bar.update(task, completed=done, rate=f"loss {done}.0")
            time.sleep(0.03)
        bar.update(task, completed=8)
        time.sleep(0.05)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert re.fullmatch(r"training: \d of 8 in \S+, \S+ left, loss \d\.0", lines[0])
    assert all(" of 8 in " in line for line in lines)
    assert not any("8 of 8" in line for line in lines)
    assert sorted(lines) == lines


def test_the_time_left_is_known_where_steps_take_long(monkeypatch):
    now = [0.0]
    bar = progress.progress_bar()
    bar.get_time = lambda: now[0]
    task = bar.add_task("training", total=8, rate="")
    for done in range(4):
        now[0] = 120.0 * done
        bar.update(task, completed=done)
    assert progress._line(bar.tasks[0]) == "training: 3 of 8 in 0:06:00, 0:10:00 left"


def test_short_work_shows_nothing(capsys):
    with progress.progress_bar() as bar:
        bar.advance(bar.add_task("reading", total=1, rate=""))
    assert capsys.readouterr() == ("", "")


def test_a_hidden_bar_says_nothing(capfd):
    with progress.progress_bar(hidden=True) as bar:
        bar.update(bar.add_task("training", total=2, rate=""), completed=2)
    assert capfd.readouterr().err == ""
