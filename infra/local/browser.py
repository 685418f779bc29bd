"""Drive Prefect's UI in headless Chromium: log in, submit a deployment's form, take screenshots."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, Response, sync_playwright

from infra.local.cluster import ClusterError

# Chromium has no sandbox as root; the other flags keep it from contacting servers outside.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SUBMIT_SECONDS = 60


@contextmanager
def opened(url: str, secret: str) -> Iterator[Page]:
    """Open the UI and log in, as someone would who has just been given address and password.

    Args:
        url: of the UI.
        secret: user and password, in the form that the login expects.

    Raises:
        ClusterError: if there is no Chromium, or the UI does not let us in.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        raise ClusterError("chromium is not installed; Debian and Ubuntu: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.set_default_timeout(60_000)
        page.goto(f"{url}/v2/dashboard")
        page.locator("input[type=password]").fill(secret)
        page.get_by_role("button", name="Login").click()
        page.get_by_role("heading", name="Dashboard").or_(
            page.get_by_text("Dashboard")
        ).first.wait_for()
        yield page
        browser.close()


def start_run(page: Page, url: str, deployment: str, fields: dict[str, str], shots: Path) -> str:
    """Fill a deployment's form and submit it.

    Args:
        page: of a UI, logged in.
        url: of the UI.
        deployment: its id.
        fields: values by their titles in the form; dots separate sections ("options.Loop.Rounds").
        shots: folder for screenshots.

    Returns:
        The id of the flow run.

    Raises:
        ClusterError: if the form is rejected.
    """
    page.goto(f"{url}/v2/deployments/deployment/{deployment}/run")
    page.get_by_role("heading", name="Parameters").wait_for()
    for path, value in fields.items():
        _fill(page, path, value)
    shoot(page, shots / "form.png")
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.get_by_role("button", name="Submit", exact=True).click()
    for _ in range(SUBMIT_SECONDS * 5):
        page.wait_for_timeout(200)
        made = [each for each in answers if each.url.endswith("/create_flow_run")]
        if made and made[0].ok:
            return made[0].json()["id"]
        checks = [each for each in answers if each.url.endswith("/ui/schemas/validate")]
        refused = [each.text() for each in made]
        refused += [each.text() for each in checks if each.ok and not each.json()["valid"]]
        if refused:
            raise ClusterError(f"the form was refused: {refused[0][:2000]}")
    raise ClusterError(f"the form was not sent; see {shots / 'form.png'}")


def look(page: Page, address: str, text: str, picture: Path) -> None:
    """Open a page, wait for a text to appear on it, and take a screenshot."""
    page.goto(address)
    page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(10_000)  # graphs appear after the text
    shoot(page, picture)


def shoot(page: Page, picture: Path) -> None:
    """Take a screenshot."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(picture))


def _field(page: Page, path: str) -> Locator:
    """Find the block of a field: its label, description, menu and control."""
    block: Locator = page.locator("form").first
    for title in path.split("."):
        label = block.locator(
            "label", has_text=re.compile(rf"^{re.escape(title)}( \(Optional\))?$")
        )
        block = label.first.locator("xpath=ancestor::div[contains(@class, 'group')][1]")
    return block


def _fill(page: Page, path: str, value: str) -> None:
    """Set a field, which is a drop-down, a switch or a text box."""
    control = _field(page, path).locator("fieldset").first
    control.wait_for()
    choice = control.locator("button[aria-haspopup=listbox]")
    switch = control.locator("button[role=switch]")
    if choice.count():
        choice.first.click()
        page.get_by_role("option", name=value, exact=True).click()
    elif switch.count():
        if (switch.first.get_attribute("aria-checked") == "true") != (value == "true"):
            switch.first.click()
    else:
        control.locator("input, textarea").first.fill(value)
