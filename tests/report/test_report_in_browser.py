"""Open reports in a real browser, without a network or a GPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pymatgen.io.ase import AseAtomsAdaptor

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from src.data.structures import NamedStructure  # noqa: E402
from src.metrics.generation.comparison import Row  # noqa: E402
from src.metrics.generation.evaluate import EvaluationOptions, evaluate_set  # noqa: E402
from src.report import write_report, write_samples_report  # noqa: E402
from src.report.comparison import write_comparison  # noqa: E402
from src.report.judged import (  # noqa: E402
    Energies,
    JudgedSet,
    LatentMap,
    write_judged_report,
)

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1300,900", "--force-device-scale-factor=1",
]  # fmt: skip
NUM_DRAWN = """
const canvas = arguments[0];
const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
return pixels.filter((alpha, i) => i % 4 === 3 && alpha > 0).length;
"""

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def open_page(driver, folder) -> None:
    driver.get((folder / "report.html").as_uri())
    assert driver.get_log("browser") == []


def errors(driver) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def requests(driver) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [m["request"]["url"] for m in sent if m["documentURL"].startswith("file:")]


def picture(driver, canvas) -> str:
    return driver.execute_script("return arguments[0].toDataURL()", canvas)


def shown_ids(driver) -> list[str]:
    cards = driver.find_elements(By.CSS_SELECTOR, "#grid .pair")
    return [card.get_attribute("data-id") for card in cards if card.is_displayed()]


def test_a_report_in_use(make_folder, driver):
    hostile = "</script><script>document.title='owned'</script><b>$\\frac{"
    folder = make_folder(ids={9: hostile})
    write_report(folder)
    open_page(driver, folder)

    # all sections are there, with the expected content
    sections = [s.get_attribute("id") for s in driver.find_elements(By.TAG_NAME, "section")]
    assert sections == ["summary", "pairs", "match", "noise", "map", "latent", "training"]
    assert driver.title == "Reconstruction of 14 crystals (test)"
    tiles = [tile.text for tile in driver.find_elements(By.CSS_SELECTOR, ".tile strong")]
    assert tiles[:3] == ["78.57 %", "50.00 %", "0.0700"]
    assert len(driver.find_elements(By.CSS_SELECTOR, "#by-num-atoms .bars .point")) == 6
    assert len(driver.find_elements(By.CSS_SELECTOR, "#noise-curve .point")) == 9

    # pages of crystals, worst first
    assert shown_ids(driver) == [hostile, *(f"id-{k}" for k in (5, 2, 13, 12, 11))]
    driver.find_element(By.ID, "next").click()
    assert shown_ids(driver) == [f"id-{k}" for k in (10, 8, 7, 6, 4, 3)]
    driver.find_element(By.ID, "next").click()
    assert shown_ids(driver) == ["id-1", "id-0"]
    assert not driver.find_element(By.ID, "next").is_enabled()
    driver.find_element(By.ID, "previous").click()
    choose = driver.find_element(By.ID, "choose")
    choose.send_keys("id-12", Keys.ENTER)
    assert "id-12" in shown_ids(driver)
    chosen = driver.find_element(By.CSS_SELECTOR, ".pair.chosen")
    assert chosen.get_attribute("data-id") == "id-12"
    choose.clear()
    choose.send_keys("-1", Keys.ENTER)  # a part of several IDs
    assert driver.find_element(By.ID, "not-found").text.endswith(": Enter for the next")
    first = driver.find_element(By.CSS_SELECTOR, ".pair.chosen").get_attribute("data-id")
    choose.send_keys(Keys.ENTER)
    second = driver.find_element(By.CSS_SELECTOR, ".pair.chosen").get_attribute("data-id")
    assert "-1" in first
    assert "-1" in second
    assert first != second
    choose.clear()
    choose.send_keys("nothing", Keys.ENTER)
    assert driver.find_element(By.ID, "not-found").text == "nothing is not on this page"

    # crystals are drawn, rotate together, zoom and reset
    canvases = chosen.find_elements(By.TAG_NAME, "canvas")
    initial = [picture(driver, canvas) for canvas in canvases]
    for canvas in canvases:
        drawn = driver.execute_script(NUM_DRAWN, canvas)
        assert drawn > 0.05 * canvas.size["width"] * canvas.size["height"]
    ActionChains(driver).drag_and_drop_by_offset(canvases[0], 40, 25).perform()
    rotated = [picture(driver, canvas) for canvas in canvases]
    assert rotated[0] != initial[0]
    assert rotated[1] != initial[1]
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(canvases[0])
    before = driver.execute_script(NUM_DRAWN, canvases[0])
    ActionChains(driver).scroll_from_origin(origin, 0, 300).perform()
    assert driver.execute_script(NUM_DRAWN, canvases[0]) < before
    ActionChains(driver).double_click(canvases[0]).perform()
    assert [picture(driver, canvas) for canvas in canvases] == initial

    # clicking a point of the map shows its crystal
    viewer = driver.find_element(By.CSS_SELECTOR, "#viewer .pair")
    assert viewer.get_attribute("data-id") == hostile
    driver.execute_script(
        "const s = document.getElementById('color-by'); s.value = arguments[0]; s.onchange()",
        "formation_energy",
    )
    wanted = 4
    point = driver.find_elements(By.CSS_SELECTOR, "#points .scatterlayer .point")[wanted]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    before = picture(driver, viewer.find_element(By.TAG_NAME, "canvas"))
    ActionChains(driver).move_to_element(point).click().perform()
    assert viewer.get_attribute("data-id") == "id-12"
    assert "id-12" in viewer.text
    assert picture(driver, viewer.find_element(By.TAG_NAME, "canvas")) != before

    # there were no errors and no requests
    assert errors(driver) == []
    loaded = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert driver.execute_script(loaded) == []
    assert requests(driver) == [(folder / "report.html").as_uri()]


def test_a_page_of_samples(make_samples, driver):
    folder, known = make_samples()
    write_samples_report(folder, known, "a <b>source</b>")
    open_page(driver, folder)
    assert driver.title == "14 generated crystals"
    tiles = [tile.text for tile in driver.find_elements(By.CSS_SELECTOR, ".tile strong")]
    assert tiles == ["92.9 %", "50.0 %", "50.0 %", "2", "3"]
    ids = [f"sample-{k:06d}" for k in range(14)]
    assert shown_ids(driver) == ids[:12]
    driver.find_element(By.ID, "next").click()
    assert shown_ids(driver) == ids[12:]

    options = driver.find_elements(By.CSS_SELECTOR, "#filter option")
    assert [option.text for option in options] == [
        "all (14)", "valid (7)", "not valid (7)", "like a known crystal (2)",
        "of a known formula, otherwise new (1)", "of a new formula (10)",
    ]  # fmt: skip
    options[3].click()
    assert shown_ids(driver) == ids[:2]
    captions = [c.text for c in driver.find_elements(By.CSS_SELECTOR, "figcaption") if c.text]
    assert captions[0] == "generated"
    assert "known-0: matches, rms 0.000" in captions[1]
    canvases = driver.find_elements(By.CSS_SELECTOR, ".pair canvas")[:2]
    before = [picture(driver, canvas) for canvas in canvases]
    for canvas in canvases:
        assert driver.execute_script(NUM_DRAWN, canvas) > 500
    ActionChains(driver).drag_and_drop_by_offset(canvases[0], 40, 25).perform()
    after = [picture(driver, canvas) for canvas in canvases]
    assert after[0] != before[0]
    assert after[1] == before[1]  # cells have no common orientation
    options[5].click()
    assert "no known crystal has this formula" in driver.find_element(By.ID, "grid").text
    assert errors(driver) == []
    assert requests(driver) == [(folder / "report.html").as_uri()]


def test_a_page_of_comparisons(tmp_path, driver):
    hostile = "</script><b>run"
    rows = [
        Row("valid", [0.8, 0.9], [[0.7, 0.9], None], True, [1], []),
        Row("novel", [0.5, None], [None, None], True, [], ["reference"]),
        Row("num_skipped", [1, 2], [None, None], False, [], []),
    ]
    differing = {"reference": ["a", None]}
    write_comparison(tmp_path / "report.html", ["one", hostile], rows, differing)
    open_page(driver, tmp_path)
    tables = driver.find_elements(By.TAG_NAME, "table")
    lines = [row.text for row in tables[0].find_elements(By.TAG_NAME, "tr")]
    assert lines == [f"one {hostile}", "valid 80.00 ± 10.00 % 90.00 %", "novel † 50.00 % –",
                     "num_skipped 1 2"]  # fmt: skip
    assert [bold.text for bold in tables[0].find_elements(By.TAG_NAME, "b")] == ["90.00 %"]
    assert tables[1].text.splitlines()[1:] == ["reference a –"]
    driver.find_elements(By.CSS_SELECTOR, "#filter option")[3].click()
    assert len(driver.find_elements(By.CSS_SELECTOR, "#tables tbody tr")) == 1
    assert errors(driver) == []
    assert requests(driver) == [(tmp_path / "report.html").as_uri()]


def test_a_page_of_a_judged_set(crystals, tmp_path, driver):
    structures = [AseAtomsAdaptor.get_structure(each) for each in crystals]
    items = [NamedStructure(f"id-{k}", each, Path("x")) for k, each in enumerate(structures)]
    options = EvaluationOptions(fingerprints=False, prototypes=False, num_workers=0)
    found = evaluate_set(structures, structures[:2], None, options)
    vectors, places = np.random.default_rng(0).normal(size=(14, 3)), np.arange(14)
    latents = LatentMap(vectors, vectors[:2] + 1, places, places[:2], "<b>vae</b>")
    energies = Energies([0.1 * k for k in range(14)], "relaxed")
    judged = JudgedSet(items, found, items[:2], items[:2], [["a", "1", "2"]], energies, latents)
    write_judged_report(tmp_path / "report.html", judged)
    open_page(driver, tmp_path)
    sections = [s.get_attribute("id") for s in driver.find_elements(By.TAG_NAME, "section")]
    assert sections == ["summary", "samples", "distributions", "elements", "energies", "map"]
    assert len(driver.find_elements(By.CSS_SELECTOR, "#histograms .bars")) == 12
    assert len(driver.find_elements(By.CSS_SELECTOR, "#periodic .element")) == 103
    assert len(driver.find_elements(By.CSS_SELECTOR, "#points .point")) == 16
    buttons = driver.find_elements(By.CSS_SELECTOR, "#choices button")
    assert [b.text.split(" (")[0] for b in buttons] == [
        "random", "most novel", "most stable", "invalid",
    ]  # fmt: skip
    buttons[2].click()
    assert shown_ids(driver) == [f"id-{k}" for k in range(6)]
    for canvas in driver.find_elements(By.CSS_SELECTOR, ".pair canvas")[:2]:
        assert driver.execute_script(NUM_DRAWN, canvas) > 500
    buttons[3].click()
    assert driver.find_element(By.ID, "nothing").is_displayed() == (shown_ids(driver) == [])
    assert errors(driver) == []
    assert requests(driver) == [(tmp_path / "report.html").as_uri()]


def test_a_minimal_report(make_folder, driver):
    folder = make_folder(blocks=False)
    write_report(folder)
    open_page(driver, folder)
    sections = [s.get_attribute("id") for s in driver.find_elements(By.TAG_NAME, "section")]
    assert sections == ["summary", "pairs"]
    assert len(shown_ids(driver)) == 6
    assert errors(driver) == []
