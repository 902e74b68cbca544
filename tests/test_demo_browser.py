"""The page in headless Chromium: type, press, hear; looked at in desktop and phone width."""

import os
import shutil
from pathlib import Path

import pytest
from demo_server import served  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SHOTS = Path(os.environ.get("DUALSPEC_SHOTS", "/tmp/dualspec_shots"))  # where to look at the screenshots
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):  # noqa: F811
    address, _ = served
    opened = []

    def open_page(width, height):
        context = browser.new_context(viewport={"width": width, "height": height}, locale="en-GB")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.outside = []
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or page.outside.append(r.url))
        page.goto(address)
        page.wait_for_selector("#prompt textarea")
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()


def make(page, prompt):
    page.fill("#prompt textarea", prompt)
    page.click("#make")


@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1280, 900), ("phone", 390, 844)])
def test_type_press_hear(open_page, name, width, height):
    page = open_page(width, height)
    make(page, "a dog barking at 10 o'clock")
    page.wait_for_selector("#picture img")
    page.wait_for_selector("#polar >> text=asked: 60")
    link = page.get_attribute("#files a", "href")
    assert link is not None
    page.wait_for_timeout(1500)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
    sound = page.evaluate(
        """async () => {
            const files = [...document.querySelectorAll('#files a')].map(a => a.href);
            const data = await (await fetch(files.find(f => f.endsWith('.wav')))).arrayBuffer();
            const record = await (await fetch(files.find(f => f.endsWith('.json')))).json();
            const sound = await new AudioContext().decodeAudioData(data);
            return [sound.duration, sound.numberOfChannels, record.parsed_azimuth_deg];
        }"""
    )
    assert sound == [pytest.approx(0.64, abs=0.01), 2, 60]
    player = page.evaluate(
        """() => {
            const find = root => [...root.querySelectorAll('*')].flatMap(
                e => [...(e.tagName === 'AUDIO' ? [e] : []), ...(e.shadowRoot ? find(e.shadowRoot) : [])]);
            return find(document).map(a => a.duration);
        }"""
    )
    assert any(duration == pytest.approx(0.64, abs=0.05) for duration in player if duration)
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1  # nothing sticks out sideways
    assert page.evaluate("document.querySelector('#table table').getBoundingClientRect().right") <= width
    assert page.outside == []


def test_bad_input_shows_the_message(open_page):
    page = open_page(1280, 900)
    make(page, "a dog on my left at 3 o'clock")
    page.wait_for_selector("text=contradict")
    page.screenshot(path=SHOTS / "error.png")
