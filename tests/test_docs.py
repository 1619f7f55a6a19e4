"The built pages in a browser, opened as files: they load nothing from elsewhere, and the search finds things."
import pytest
from codette_nb.docs import build_docs, external_requests

@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    return build_docs(tmp_path_factory.mktemp('docs')/'site', root)

@pytest.fixture
def tab(chromium):
    "A new page that keeps the addresses it asked for and the errors it met."
    context = chromium.new_context()
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on('request', lambda r: page.asked.append(r.url))
    page.on('pageerror', lambda e: page.errors.append(str(e)))
    page.on('console', lambda m: page.errors.append(m.text) if m.type == 'error' else None)
    yield page
    context.close()

def test_nothing_from_elsewhere(site, tab):
    assert external_requests(site) == []
    for f in sorted(site.glob('**/*.html')): tab.goto(f.as_uri())
    assert [u for u in tab.asked if not u.startswith(('file:', 'data:'))] == []
    assert tab.errors == []

def test_search_from_a_file(site, tab):
    tab.goto((site/'index.html').as_uri())
    tab.fill('input[name=q]', 'atomic_folder')
    tab.press('input[name=q]', 'Enter')
    tab.wait_for_selector('#search-results ul.search li a')
    found = tab.locator('#search-results ul.search li a').all_inner_texts()
    assert 'Core' in found and any('atomic_folder' in f for f in found)
    tab.locator('#search-results ul.search li a', has_text='atomic_folder').first.click()
    assert '00_core.html' in tab.url and tab.errors == []

def test_room_page(site, tab):
    tab.goto((site/'00_core.html').as_uri())
    table = tab.locator('section:has(> span#core-one-of) table, section#core-one-of table').first
    assert table.locator('th').all_inner_texts() == ['Parameter', 'Type', 'Meaning']
    assert table.locator('tr', has_text='what the value is').locator('td').all_inner_texts()[:2] == ['what', 'str']
    source = tab.locator('details.hide').first
    assert not source.locator('pre').is_visible()
    source.locator('summary').click()
    assert 'class CodetteError' in source.locator('pre').inner_text()

def test_every_page_is_reachable(site, tab):
    "The side bar leads to every page."
    tab.goto((site/'index.html').as_uri())
    linked = set(tab.locator('.sidebar-tree a').evaluate_all('links => links.map(a => a.href.split("#")[0])'))
    pages = {f.as_uri() for f in site.glob('**/*.html') if f.stem not in ('index', 'search', 'genindex')}
    assert pages - linked == set()
