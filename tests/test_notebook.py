"""The notebook runs from its first cell to its last with the code beside it, and its committed outputs are up to date.

Execute it again after a change of it or of the packaged model: `jupyter execute --inplace experiments/*.ipynb`.
"""

import re

import pytest
from notebooks import ROOT, errors, execute, pictures, printed, read

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "experiments" / "adapters_are_values.ipynb"


@pytest.fixture(scope="module")
def committed():
    return read(NOTEBOOK)


@pytest.fixture(scope="module")
def executed(smollm2, minilm):
    return execute(NOTEBOOK)


def losses(notebook):
    return [float(loss) for loss in re.findall(r"^step \d+ +loss ([\d.]+)$", printed(notebook), re.MULTILINE)]


def test_it_runs_the_code_beside_it(executed):
    assert printed(executed).splitlines()[-1] == str(ROOT / "t2l_jax" / "__init__.py")


def test_a_gradient_of_the_loss_with_respect_to_z_repairs_a_description(executed):
    found = losses(executed)
    assert len(found) == 6
    assert found[-1] < 0.5 * found[0]


def test_the_gradient_reaches_the_words_of_the_description(executed):
    """Those that the two tasks differ in, as a hashtag or in quotation marks, and the animal that is asked for."""
    found = re.findall(r"^(\S+) +([01]\.\d\d)  #+$", printed(executed), re.MULTILINE)
    shares = {token: float(share) for token, share in found}
    assert list(shares) == ["[CLS]", "reply", "with", "the", "animal", ",", "as", "a", "hash", "##tag", ".", "[SEP]"]
    assert sorted(shares, key=shares.__getitem__)[-3:] == ["##tag", "animal", "hash"]


def test_every_row_has_an_adapter_of_its_own(executed):
    text = printed(executed)
    for asked, answer in (("last word", "piano"), ("animal, in capital letters", "TIGER"), ("as a hashtag", "#blue")):
        assert re.search(rf"{asked}\. +{answer}$", text, re.MULTILINE), text


def test_it_draws(executed):
    assert pictures(executed) == 3


def test_the_committed_outputs_are_those_of_the_code(committed, executed):
    assert NOTEBOOK.stat().st_size < 300_000
    same = pytest.approx(losses(executed), rel=0.2, abs=0.02)
    assert losses(committed) == same, "execute the notebook again and commit it"
    assert pictures(committed) == pictures(executed)
    assert not errors(committed)
