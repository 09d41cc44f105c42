from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from endpoint_process import Endpoint
from playwright.sync_api import Browser, Page, expect
from watched_page import PATIENCE_MS, requests_of, watched_page

from fedplatform.defence import KeyedNoise
from fedplatform.defence.threats import Victim, attack_hospital
from fedplatform.experiments.defence.load import DefendedRun
from fedplatform.serving.answer import picture
from fedplatform.serving.secret import read_secret, secret_path

HOSPITAL = "hospital-01"
DROP = """([target, name, text]) => {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  target.dispatchEvent(new DragEvent("dragover", {dataTransfer: transfer, bubbles: true}));
  target.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture
def page(browser: Browser, endpoint: Endpoint) -> Iterator[Page]:
    """The page, entered with the key of a hospital; it asks nobody else for anything and complains of nothing."""
    refused_upload = "Failed to load resource"  # the browser itself reports it
    size = {"width": 1200, "height": 900}
    with watched_page(browser, endpoint.url, ignored=refused_upload, viewport=size) as page:
        page.goto(endpoint.url, timeout=PATIENCE_MS)
        page.get_by_label("API key of your hospital").fill(endpoint.keys[HOSPITAL])
        page.keyboard.press("Enter")
        expect(page.locator("#examples img")).to_have_count(8)
        yield page


@pytest.fixture(scope="module")
def scans(endpoint: Endpoint) -> dict[str, bytes]:
    """A scan of the hospital that is not flagged, and one that somebody altered and that is, as PNG files."""
    parts = DefendedRun(endpoint.run).hospital(HOSPITAL)
    noise = KeyedNoise(read_secret(secret_path(endpoint.run, HOSPITAL)))
    defended = replace(parts.defended("full"), noise=noise)
    images, labels = parts.test
    generator = torch.Generator().manual_seed(0)
    attacked = attack_hospital(
        "T2", Victim(defended, parts.classifier), images, labels, epsilon=8 / 255, generator=generator
    )
    stored = {name: (some * 255).round() / 255 for name, some in (("clean", images), ("attacked", attacked))}
    flags = {name: [one.flagged for one in defended.diagnose(some)] for name, some in stored.items()}
    return {
        name: picture(stored[name][flags[name].index(flagged)].numpy())
        for name, flagged in (("clean", False), ("attacked", True))
    }


def drop(page: Page, data: bytes, name: str = "scan.png") -> None:
    target = page.locator("#drop").element_handle()
    page.evaluate(DROP, [target, name, base64.b64encode(data).decode()])


def test_a_clean_and_an_attacked_scan_are_dropped_and_both_verdicts_seen(page: Page, scans: dict[str, bytes]) -> None:
    drop(page, scans["clean"])
    said = page.locator("#said")
    expect(said).to_contain_text("taken as it is")
    expect(page.locator("#score")).to_contain_text("not above")
    expect(page.locator("#votes")).to_have_text("none were needed")
    drop(page, scans["attacked"])
    expect(said).to_contain_text("looks tampered with; it was purified")
    expect(page.locator("#score")).not_to_contain_text("not above")
    expect(page.locator("#depth")).to_contain_text("to noise step")
    widths = page.locator(".pictures img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert all(width == 16 for width in widths)
    assert len(widths) == 3
    first = page.locator("#recent tbody tr").first
    expect(first).to_contain_text("flagged")
    expect(first).to_contain_text(HOSPITAL)


def test_an_example_is_diagnosed_by_keyboard_alone(page: Page) -> None:
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("In truth this example is")
    assert page.evaluate("document.activeElement.id") == "verdict"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens what it rests on
    expect(page.locator("#request")).to_be_visible()


def test_what_is_no_scan_gets_one_sentence(page: Page, scans: dict[str, bytes]) -> None:
    drop(page, b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    expect(page.locator("#label")).to_have_text("No answer")
    expect(page.locator("#said")).not_to_be_empty()
    expect(page.locator("#found")).to_be_hidden()
    drop(page, scans["clean"])
    expect(page.locator("#found")).to_be_visible()


def test_the_page_fits_a_telephone_and_says_that_it_is_no_medical_device(page: Page, scans: dict[str, bytes]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    drop(page, scans["clean"])
    expect(page.locator("#said")).not_to_be_empty()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(page.get_by_text("Not a medical device.")).to_be_visible()


def test_a_wrong_key_opens_nothing(browser: Browser, endpoint: Endpoint) -> None:
    page = browser.new_page()
    page.goto(endpoint.url, timeout=PATIENCE_MS)
    page.get_by_label("API key of your hospital").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("This API key opens nothing: it is unknown, revoked or expired.")
    expect(page.locator("#ask")).to_be_hidden()
    page.close()


def test_the_api_page_is_there_and_asks_nobody_else(browser: Browser, endpoint: Endpoint) -> None:
    page = browser.new_page()
    asked = requests_of(page)
    page.goto(f"{endpoint.url}/docs", timeout=PATIENCE_MS)
    expect(page.get_by_text("/v1/diagnose")).to_be_visible()
    assert all(url.startswith((endpoint.url, "data:")) for url in asked)
    page.close()
