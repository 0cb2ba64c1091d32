"""The report in a real browser: headless Chromium, driven by selenium. Skipped if it is not installed."""

import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest

from dualcl_jax.reports.content import describe
from dualcl_jax.reports.page import render
from tests.support.pages import HOSTILE, RECORDS, record
from tests.support.random_run import random_run, reported

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
WIDTH, HEIGHT = 1280, 800
LEAST_FONT = 12
LEAST_CONTRAST = 4.5  # the contrast of text on its background: WCAG 2.2, level AA

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason='no browser: apt-get install chromium chromium-driver'
)


@pytest.fixture(scope='module')
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars'):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    metrics = {'width': WIDTH, 'height': HEIGHT, 'deviceScaleFactor': 1, 'mobile': False}
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
    """One run; two runs side by side, one of them with hostile names; one without labels; one of hostile texts."""
    folder = tmp_path_factory.mktemp('pages')
    run = random_run(folder, 'model.name=tiny')
    subject, samples = reported(run, records=RECORDS)
    whole = describe(subject, samples) | {'evaluations': [record()]}
    other = whole | {'name': HOSTILE, 'class_names': [HOSTILE] * 4, 'evaluations': []}
    unlabelled = describe(*reported(random_run(folder, 'model.name=tiny', labels=False)))
    made = {'one': [whole], 'two': [whole, other], 'unlabelled': [unlabelled], 'texts': [of_texts(whole)]}
    for name, runs in made.items():
        (folder / f'{name}.html').write_text(render(runs))
    return {name: folder / f'{name}.html' for name in made}


def of_texts(run: dict) -> dict:
    """The content of a report of images as if they were texts."""
    texts = [f'{HOSTILE} {"of many words " * (number % 9)}{number}' for number in range(64)]

    def text(example: dict) -> dict:
        rest = {name: value for name, value in example.items() if name != 'tile'}
        return rest | ({'text': texts[example['tile'] % 64]} if 'tile' in example else {})

    gallery = [text(anchor) | {'hardest': [text(other) for other in anchor['hardest']]} for anchor in run['gallery']]
    neighbours = [text(query) | {'near': [text(other) for other in query['near']]} for query in run['neighbours']]
    shown = {'form': 'texts', 'kind': 'examples of text', 'of': 'held-out examples of text'}
    return (
        run
        | shown
        | {
            'map': run['map'] | {'tiles': None, 'texts': texts},
            'gallery': gallery,
            'neighbours': neighbours,
        }
    )


def opened(browser, path):
    """Opens the page and checks that it makes no requests and logs nothing."""
    browser.get_log('performance'), browser.get_log('browser')
    browser.get(path.as_uri())
    assert requests(browser) == {path.as_uri()}
    assert browser.get_log('browser') == []
    return browser


def requests(browser) -> set[str]:
    """The requested addresses, except those within the page."""
    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    found = {m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent'}
    return {address for address in found if not address.startswith('data:')}


@pytest.mark.parametrize('name', ['one', 'two', 'unlabelled', 'texts'])
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_is_readable(browser, pages, name, scheme):
    """No text is smaller than `LEAST_FONT` or of poor contrast; nothing crosses the right edge of a usual screen."""
    browser.execute_cdp_cmd(
        'Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': scheme}]}
    )
    opened(browser, pages[name])
    assert browser.execute_script('return document.documentElement.scrollWidth') == WIDTH
    found = browser.execute_script(
        """
        const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
        function rgb(colour, under) {
          context.fillStyle = under; context.fillRect(0, 0, 1, 1);
          context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }
        const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const luminance = (c) => c.reduce((sum, v, i) => sum + linear(v / 255) * [0.2126, 0.7152, 0.0722][i], 0);
        const texts = [];
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) {
          const node = walker.currentNode.parentElement;
          if (!walker.currentNode.data.trim() || !node.getClientRects().length || node.closest('script, style, option'))
            continue;
          const style = getComputedStyle(node);
          let below = node;
          while (below && getComputedStyle(below).backgroundColor === 'rgba(0, 0, 0, 0)') below = below.parentElement;
          const paper = below ? getComputedStyle(below).backgroundColor : 'white';
          const colour = node.namespaceURI.endsWith('svg') ? style.fill : style.color;
          const [a, b] = [rgb(colour, paper), rgb(paper, 'white')].map(luminance).sort((p, q) => q - p);
          texts.push([walker.currentNode.data.trim(), parseFloat(style.fontSize), (a + 0.05) / (b + 0.05)]);
        }
        return texts;
        """
    )
    assert len(found) > 100
    assert [text for text in found if text[1] < LEAST_FONT] == []
    assert [text for text in found if text[2] < LEAST_CONTRAST] == []


@pytest.mark.parametrize('name', ['one', 'two', 'unlabelled'])
def test_pointing_at_a_point_shows_its_image(browser, pages, name):
    opened(browser, pages[name])
    tip = browser.find_element(By.ID, 'tip')
    points = browser.find_elements(By.CSS_SELECTOR, '[data-map="0"] .point')
    assert len(points) == 64
    assert not tip.is_displayed()
    shown = []
    for point in points[:3]:
        browser.execute_script('arguments[0].scrollIntoView({block: "center"})', point)
        browser.execute_script('arguments[0].parentElement.append(arguments[0])', point)  # above its neighbours
        ActionChains(browser).move_to_element(point).perform()
        assert tip.is_displayed()
        image = tip.find_element(By.CSS_SELECTOR, '.tile')
        assert image.size['width'] == 112
        assert image.value_of_css_property('background-image').startswith('url("data:image/jpeg')
        box = tip.rect
        right, bottom = (box[at] + box[length] for at, length in (('x', 'width'), ('y', 'height')))
        scrolled = browser.execute_script('return scrollY')
        assert 0 <= box['x'] < right <= WIDTH
        assert scrolled <= box['y'] < bottom <= scrolled + HEIGHT
        shown.append(image.screenshot_as_png)
        assert ('kNN:' in tip.text) == (name != 'unlabelled')
        assert 'loss' in tip.text
    assert len(set(shown)) == 3  # of three images
    ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, 'h1')).perform()
    assert not tip.is_displayed()
    assert browser.get_log('browser') == []
    assert requests(browser) == set()


def test_pointing_at_a_point_shows_its_text(browser, pages):
    opened(browser, pages['texts'])
    tip, point = browser.find_element(By.ID, 'tip'), browser.find_elements(By.CSS_SELECTOR, '.point')[8]
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', point)
    browser.execute_script('arguments[0].parentElement.append(arguments[0])', point)
    ActionChains(browser).move_to_element(point).perform()
    assert tip.is_displayed()
    assert tip.find_element(By.CSS_SELECTOR, '.text').text == f'{HOSTILE} {"of many words " * 8}8'
    assert len(tip.find_elements(By.CSS_SELECTOR, '.near')) == 3
    assert tip.find_elements(By.CSS_SELECTOR, 'img, script, .tile') == []
    assert HOSTILE in browser.find_element(By.CSS_SELECTOR, '#gallery .shot .text').text
    assert browser.get_log('browser') == []


def test_the_same_image_is_marked_in_every_map(browser, pages):
    opened(browser, pages['two'])
    point = browser.find_elements(By.CSS_SELECTOR, '[data-map="0"] .point')[5]
    browser.execute_script('arguments[0].dispatchEvent(new PointerEvent("pointerenter"))', point)
    marked = browser.find_elements(By.CSS_SELECTOR, '.point.here')
    assert [mark.get_attribute('data-index') for mark in marked] == ['5', '5']


def test_points_are_coloured_by_class_loss_or_knn(browser, pages):
    opened(browser, pages['one'])
    choice = Select(browser.find_element(By.ID, 'colour'))
    assert [option.text for option in choice.options] == ['class', 'loss', 'kNN right or wrong']
    colours = {}
    for option in ('class', 'loss', 'knn'):
        choice.select_by_value(option)
        points = browser.find_elements(By.CSS_SELECTOR, '.point')
        colours[option] = {point.get_attribute('fill') for point in points}
        assert browser.find_element(By.CSS_SELECTOR, '.key').text
    assert len(colours['class']) == 4
    assert len(colours['loss']) > 20
    assert len(colours['knn']) == 2
    opened(browser, pages['unlabelled'])
    assert [option.text for option in Select(browser.find_element(By.ID, 'colour')).options] == ['loss']


def test_curves_are_read_off_at_the_pointer(browser, pages):
    opened(browser, pages['one'])
    panel = browser.find_element(By.CSS_SELECTOR, '[data-panel="0"]')
    readout = panel.find_element(By.CSS_SELECTOR, '.readout')
    assert readout.text == 'loss 2.80 chance 3.50 at step 24'
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', panel)
    ActionChains(browser).move_to_element(panel.find_element(By.CSS_SELECTOR, '.plot svg')).perform()
    assert 'at step 1' in readout.text
    assert readout.text != 'loss 2.80 chance 3.50 at step 24'
    assert len(panel.find_elements(By.CSS_SELECTOR, '.plot .line')) == 2


def test_the_page_may_reach_nothing(browser, pages):
    """The page's own policy forbids requests, whatever a name on it might contain."""

    requested = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    opened(browser, pages['one'])
    with http.server.HTTPServer(('127.0.0.1', 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f'http://127.0.0.1:{server.server_port}/'
            browser.set_script_timeout(20)
            outcome = browser.execute_async_script(
                """
                const [address, done] = arguments;
                const image = new Image();
                image.onerror = () => done('refused');
                image.onload = () => done('loaded');
                image.src = address;
                """,
                address,
            )
        finally:
            server.shutdown()
            thread.join()
    assert outcome == 'refused'
    assert requested == []
    browser.get_log('browser')
