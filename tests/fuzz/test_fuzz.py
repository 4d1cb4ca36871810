"""Damaged inputs end well or are refused: a few of each kind here, ten thousand in `-m long`."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import campaign, kinds
from fuzz import good as good_files

SHORT = 8  # inputs of each kind


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    good_files.make_good(folder)
    return folder


@pytest.fixture(autouse=True)
def _bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache of its own, and an end after a while, so that an input which hangs is a failure by name."""

    def end(*_: object) -> None:
        raise TimeoutError("no end")

    monkeypatch.setenv("T2L_CACHE", str(tmp_path / "cache"))
    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SHORT * campaign.SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", kinds.KINDS)
def test_the_good_files_are_read_as_the_reference_reads_them(name: str, good: Path, tmp_path: Path) -> None:
    kind = kinds.KINDS[name]
    outcome = kinds.attempt(name, kinds.copy(name, good, tmp_path / "case"))
    assert outcome == ("read" if kind.reference is None else "read, as the reference does")


@pytest.mark.parametrize("name", kinds.KINDS)
def test_damaged_files_are_read_or_refused(name: str, good: Path, tmp_path: Path) -> None:
    outcomes = [kinds.attempt(name, kinds.prepare(name, seed, good, tmp_path / "case")) for seed in range(SHORT)]
    assert any(outcome.startswith("refused") for outcome in outcomes) or kinds.KINDS[name].lenient, outcomes


def test_a_third_answer_is_found(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: a base whose numbers are not the reference's."""
    read = kinds.read_base
    wrong = kinds.Kind(
        {"base/config.json": lambda _, data: data}, lambda folder: read(folder) + 0.01, kinds.reference_base
    )
    monkeypatch.setitem(kinds.KINDS, "base config.json", wrong)
    with pytest.raises(kinds.WrongNumber):
        kinds.attempt("base config.json", kinds.prepare("base config.json", 0, good, tmp_path / "case"))


@pytest.mark.long
def test_ten_thousand_inputs() -> None:
    tally = campaign.campaign(10_000, seed=1, workers=2)
    print(tally.table())
    assert tally.failures == []
