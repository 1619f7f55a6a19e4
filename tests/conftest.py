"What the tests share: the repository, its notebooks, and the browser or the reason why there is none."
import shutil
from pathlib import Path
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def root() -> Path:
    "The top of the repository."
    return ROOT

@pytest.fixture(scope='session')
def notebooks() -> dict:
    "Every notebook: path from the top of the repository -> its content."
    paths = [p for d in ('nbs', 'tutorials') for p in sorted((ROOT/d).glob('**/*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
    return {p.relative_to(ROOT).as_posix(): nbformat.read(p, 4) for p in paths}

@pytest.fixture(scope='module')   # no longer: while it lives, Playwright keeps an event loop running in this thread
def chromium():
    "A headless Chromium; the test is skipped, with the reason, where there is none."
    path = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome')) if p), None)
    if path is None: pytest.skip('no Chromium on the PATH: install chromium to run the browser tests')
    sync = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: pip install -e ".[dev]"')
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=[
            '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync'])
        yield browser
        browser.close()

@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> Path:
    "A finished run of `codette train` with its text, book.txt, beside it; to be looked at, not changed."
    import tiny
    folder = tmp_path_factory.mktemp('tiny')
    with pytest.MonkeyPatch.context() as m:
        tiny.shrink(m.setattr)
        code, _, err = tiny.codette('train', '--data', tiny.write_book(folder/'book.txt'), *tiny.BOOK, '--steps', 24, '--save-every', 8,
                                    '--out', folder/'run')
    assert code == 0, err
    return folder/'run'
