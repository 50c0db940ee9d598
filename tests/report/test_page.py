"""The page in a real browser: moving its controls, as a user would, must change the displayed picture."""

import io
import json
import re
from itertools import pairwise

import pytest
from browser import browser, find_browser
from PIL import Image
from sliders.report.page import CHARACTER, Chart, Measured, Page, Section, Shot, data_uri, multiplier_label, render

COLOURS = {0.0: "black", 0.5: "red", 1.0: "lime", 2.0: "blue"}
RGB = {"black": (0, 0, 0), "red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
EVIL = "a <script>document.title='pwned'</script> \"robe\" & 'co' </script>"


def write_page(path):
    """Two prompts, the first with two seeds. Each multiplier has a picture of one colour."""
    pictures = {m: data_uri(Image.new("RGB", (64, 48), colour)) for m, colour in COLOURS.items()}
    changes = [[m / 2 for m in COLOURS], [m / 4 for m in COLOURS]]
    sections = [
        Section("a robe", tuple(COLOURS), [Shot("seed 1", [*pictures.values()]), Shot("seed 2", [*pictures.values()])],
                [Chart("mean absolute difference", tuple(COLOURS), changes)]),
        Section(EVIL, (0.0, 2.0), [Shot("seed 1", [pictures[0.0], pictures[2.0]])]),
    ]  # fmt: skip
    path.write_text(render(Page("Slider X", 64, 48, sections, {"model": "tiny"})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page, opened in a browser."""
    folder = tmp_path_factory.mktemp("page")
    with browser(folder / "profile") as driver:
        driver.get(write_page(folder / "index.html").as_uri())
        yield driver


def displayed(page, frame=0) -> str:
    """The colour that the screen shows in the middle of a picture."""
    element = page.find_elements("css selector", ".frame")[frame]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    shot = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    pixel = shot.getpixel((shot.width // 2, shot.height // 2))
    (name,) = [n for n, rgb in RGB.items() if all(abs(a - b) < 40 for a, b in zip(pixel, rgb, strict=True))]
    return name


def test_keys_move_one_picture_through_its_multipliers(page):
    from selenium.webdriver.common.keys import Keys

    control = page.find_element("id", "shot-1-1")
    control.send_keys(Keys.HOME)
    seen = [displayed(page)]
    for _ in range(3):
        control.send_keys(Keys.ARROW_RIGHT)
        seen.append(displayed(page))
    assert seen == ["black", "red", "lime", "blue"]
    assert displayed(page, 1) == "black"  # the other seed stays
    assert page.find_element("css selector", "output[for=shot-1-1]").text == "2"
    assert control.get_attribute("aria-valuetext") == "multiplier 2"
    control.send_keys(Keys.HOME)
    assert displayed(page) == "black"


def test_the_mouse_drags_it(page):
    from selenium.webdriver import ActionChains

    control = page.find_element("id", "shot-1-2")
    half = control.size["width"] // 2
    ActionChains(page).move_to_element_with_offset(control, 9 - half, 0).click_and_hold().move_by_offset(
        2 * half - 18, 0
    ).release().perform()
    assert displayed(page, 1) == "blue"
    ActionChains(page).move_to_element_with_offset(control, -half // 3, 0).click().perform()
    assert displayed(page, 1) == "red"


def test_one_control_moves_all_and_zero_compares(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.find_element("id", "all").send_keys(Keys.END)
    assert [displayed(page, i) for i in range(3)] == ["blue"] * 3
    page.execute_script("document.activeElement.blur()")
    ActionChains(page).send_keys(Keys.ARROW_LEFT).perform()  # also works when nothing is focused
    assert [displayed(page, i) for i in range(3)] == ["lime", "lime", "black"]  # the third picture's nearest multiplier
    ActionChains(page).key_down("0").perform()
    assert displayed(page) == "black"
    ActionChains(page).key_up("0").perform()
    assert displayed(page) == "lime"
    mark, dots = (page.find_elements("css selector", what) for what in (".chart .now", ".chart circle"))
    assert float(mark[0].get_attribute("x1")) == float(dots[2].get_attribute("cx"))


def test_it_is_self_contained_and_logs_no_errors(page):
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []
    asked = [json.loads(e["message"])["message"] for e in page.get_log("performance")]
    sent = [m["params"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    # the browser's own new tab also sends requests
    urls = [p["request"]["url"] for p in sent if p["documentURL"].startswith("file:")]
    assert [u for u in urls if not u.startswith(("data:", "file:"))] == []
    assert sum(u.startswith("file:") for u in urls) == 1
    assert not re.search(r'(src|href)="(?!data:)|url\(', page.page_source)
    assert page.title == "Slider X"
    assert page.find_elements("css selector", "h2")[1].text == EVIL


def test_every_control_has_a_name(page):
    for control in page.find_elements("css selector", "input, button"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    assert all(i.get_attribute("alt") for i in page.find_elements("css selector", "img"))


def test_it_fits_a_phone(page):
    page.set_window_size(500, 900)  # the narrowest window of headless Chromium
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    "values", [(0.0, 0.00033), (-1.1e-05, 2.6e-05), (-123456.0, 0.0), (0.0, 1e-9), (-0.4, 2.4), (0.0, 0.0)]
)
@pytest.mark.parametrize("multipliers", [(0.0, 1.0), (-0.333333, 0.00033), (-1.1e-05, 1234.56), (0.0,)])
def test_labels_of_a_chart_are_not_cut(values, multipliers):
    """By what a digit is wide at most; labels at the axis end six units left of it."""
    lines = [[values[i % 2] for i in range(len(multipliers))]]
    chart = Chart("a change", multipliers, lines)
    assert all(len(tick["label"]) * CHARACTER <= chart.left - 6 for tick in chart.y_ticks)
    ends = [
        (tick["at"] - len(tick["label"]) * CHARACTER / 2, tick["at"] + len(tick["label"]) * CHARACTER / 2)
        for tick in chart.x_ticks
    ]
    assert ends[0][0] >= 0 and ends[-1][1] <= chart.width
    assert all(right <= left for (_, right), (left, _) in pairwise(ends))
    assert chart.x_ticks[0]["label"] == multiplier_label(multipliers[0])


@pytest.mark.parametrize("size", [(1280, 1000), (390, 844)])
def test_long_names_and_labels_fit_desktop_and_phone(tmp_path, size):
    """Nothing reaches beyond the window, and names and tick labels lie inside their pictures' cards."""
    name, multipliers = "x" * 230, (-0.333333, 0.0, 0.00033, 1.0, 1.23457e-05 + 2)
    picture = data_uri(Image.new("RGB", (64, 48), "red"))
    chart = Chart("change", multipliers, [[m * 1.1e-05 for m in multipliers]])
    sections = [Section("p" * 240, multipliers, [Shot(f"{name}, seed 1", [picture] * 5)], [chart])]
    cards = [Measured(name, chart, [("calibration", "off by 1", "y" * 240)], [("a prompt", f"<lora:{name}:1>")])] * 2
    page = Page(name, 64, 48, sections, {"model": name}, cards=cards)
    (tmp_path / "long.html").write_text(render(page), encoding="utf-8")
    with browser(tmp_path / "profile", size) as driver:
        driver.get((tmp_path / "long.html").as_uri())
        driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
        beyond = """const text = (e) => { const r = document.createRange(); r.selectNodeContents(e); return r.getBoundingClientRect(); };
            return [...document.querySelectorAll("figcaption label, .shot .ticks span, h3, code")].filter((e) => {
              if (getComputedStyle(e).visibility === "hidden") return false;
              const inner = text(e), outer = (e.closest(".shot") ?? document.body).getBoundingClientRect();
              return inner.left < outer.left || inner.right > outer.right; }).map((e) => e.outerHTML)"""
        assert driver.execute_script(beyond) == []


def test_a_missing_browser_fails_in_ci_and_skips_elsewhere(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"):
        find_browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium chromium-driver"):
        find_browser()
