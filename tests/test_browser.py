"The panels in real JupyterLab, in a headless browser: alive, used, saved, reopened."
import json, os, re, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
import nbformat as nbf
import pytest

# A small model and many steps: the test ends the run with the Stop button.
CELLS = '''\
import torch
from pydoc_data.topics import topics
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.transformer import create_codette_model
from codette_nb.train.trainer import CodetteTrainer, TrainingConfig
from codette_nb.widgets.panel import TrainingPanel
torch.set_num_threads(1)
tok, docs = ByteTokenizer(), list(topics.values())[:60]
model = create_codette_model('nano', vocab_size=tok.vocab_size, hidden_size=64, intermediate_size=256, num_layers=2, num_heads=2, context_length=64)
config = TrainingConfig.laptop(max_steps=20_000, batch_size=8, eval_every=25, eval_windows=8, save_every=20_000, log_every=1, sample_every=50,
                               device='cpu', dtype='float32')
trainer = CodetteTrainer(model, tok, docs[::2], docs[1::2], config, 'run')
trainer.sample_prompt = '<b>The</b>'
====
run = TrainingPanel(trainer).fit()
result = await run # the cell waits; the buttons must work all the same
====
import json
print('after the run ' + json.dumps(dict(status=run.status, step=run.history.step, trained=trainer.step, frames=run.panel.frames, share=run.panel.share)))'''.split('\n====\n')

def get(url, method='GET'):
    "The JSON that the server answers with, None if it answers with nothing."
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as r: return json.loads(r.read() or 'null')

def until(done, seconds, what):
    "The first value of `done()` that is true; fails, saying what was waited for, if there is none in time."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := done(): return value
        time.sleep(.1)
    pytest.fail(f'waited {seconds} s for {what}')

@pytest.fixture
def lab(tmp_path):
    "The address of a JupyterLab that serves a scratch folder and touches no settings but its own."
    pytest.importorskip('jupyterlab', reason='JupyterLab is not installed: pip install -e ".[dev]"')
    (tmp_path/'work').mkdir()
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    own = {f'JUPYTER_{k}_DIR': str(tmp_path/k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
    own |= {f'JUPYTERLAB_{k}_DIR': str(tmp_path/k.lower()) for k in ('SETTINGS', 'WORKSPACES')}
    quiet = tmp_path/'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    url = f'http://127.0.0.1:{port}'
    with open(tmp_path/'lab.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--allow-root', '--no-browser', '--ip=127.0.0.1', f'--port={port}',
                                   '--ServerApp.port_retries=0', '--IdentityProvider.token=', '--ServerApp.password=',
                                   '--ServerApp.disable_check_xsrf=True', f'--ServerApp.root_dir={tmp_path/"work"}'],
                                  env={**os.environ, **own, 'IPYTHONDIR': str(tmp_path/'ipython')}, stdout=log, stderr=log)
    def up():
        assert server.poll() is None, (tmp_path/'lab.log').read_text()[-3000:]
        try: return get(f'{url}/api')
        except OSError: return None
    try:
        until(up, 60, 'JupyterLab to start')
        yield url
    finally:
        server.terminate() # it ends its kernels
        try: server.wait(15)
        except subprocess.TimeoutExpired: server.kill()

@contextmanager
def opened(chromium, url, shot):
    "The notebook in a window of its own; a screenshot of it is kept if the block fails."
    context = chromium.new_context(viewport=dict(width=1300, height=1000))
    page = context.new_page()
    page.set_default_timeout(30_000)
    try:
        page.goto(f'{url}/lab/tree/panel.ipynb?reset')
        yield page
    except BaseException:
        page.screenshot(path=shot)
        print(f'screenshot: {shot}')
        raise
    finally: context.close()

@contextmanager
def notebook(chromium, lab, tmp_path, cells, shot):
    "A new notebook with these cells, opened in JupyterLab, its kernel ready."
    nb = nbf.v4.new_notebook(cells=[nbf.v4.new_code_cell(c) for c in cells],
                             metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nbf.write(nb, tmp_path/'work/panel.ipynb')
    with opened(chromium, lab, shot) as page:
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status=idle]', state='attached')
        time.sleep(3)                              # widgets get ready a moment after the kernel does
        yield page

def run_cell(page, i):
    page.locator('.jp-Notebook .jp-CodeCell').nth(i).locator('.jp-InputPrompt').click()
    page.keyboard.press('Control+Enter')

def step(page) -> int:
    "The step that the panel shows."
    return int(re.search(r'step ([\d,]+)', page.locator('.cdt-status').inner_text())[1].replace(',', ''))

def curve(page) -> str:
    "The path of the smoothed training loss."
    path = page.locator('.cdt-loss path[stroke="var(--cdt-train)"][stroke-width="2.2"]')
    return path.get_attribute('d') if path.count() else ''

def saved(tmp_path):
    "What the saved notebook has as output of the panel's cell."
    def whole():                                   # a file that is just being saved is empty for a moment, then half there
        try: return nbf.read(tmp_path/'work/panel.ipynb', 4)
        except nbf.reader.NotJSONError: return None
    return until(whole, 10, 'the file of the notebook to be whole').cells[1].outputs

def test_training_panel(chromium, lab, tmp_path):
    with notebook(chromium, lab, tmp_path, CELLS, tmp_path/'live.png') as page:
        run_cell(page, 0)
        run_cell(page, 1)
        page.wait_for_selector('.cdt-charts', timeout=60_000)

        # alive: the curve grows, the figures are there, nothing moves
        box = page.locator('.jp-CodeCell').nth(1).locator('.jp-OutputArea-output:has(.cdt-tiles)')
        until(lambda: curve(page).count('L') > 10, 30, 'a curve')
        size, before = box.bounding_box()['height'], curve(page)
        until(lambda: curve(page).count('L') > before.count('L') + 10, 30, 'the curve to grow')
        names = ['Training loss', 'Held-out loss', 'Consciousness score', 'Learning rate', 'Tokens per second', 'Time left']
        until(lambda: [t.split('\n')[0] for t in box.locator('.cdt-tile').all_inner_texts()] == names, 10, 'the tiles') # they are drawn anew all the time
        until(lambda: re.search(r'accuracy \d', box.inner_text()), 30, 'a held-out loss')
        until(lambda: 'Sample at step' in box.inner_text(), 30, 'a sample')
        assert '<b>The</b>' in box.locator('.cdt-sample pre').inner_text()      # shown, not obeyed
        assert box.locator('.cdt-consciousness path[stroke-dasharray="6 4"]').count()  # the control
        assert box.bounding_box()['height'] == size

        # paused: steps stop; resumed: they go on
        button = lambda name: box.get_by_role('button', name=name)
        assert not button('Resume').is_enabled()
        button('Pause').click()
        until(lambda: 'paused' in page.locator('.cdt-status').inner_text(), 10, 'the pause')
        at = step(page)
        time.sleep(1.5)
        assert step(page) == at and not button('Pause').is_enabled()
        # while it is paused: a sample of one's own, and another learning rate
        prompt = box.get_by_placeholder('Your own prompt')
        prompt.press_sequentially('The heron'); prompt.press('Enter')          # at once after the last letter
        until(lambda: 'The heron' in box.locator('.cdt-sample pre').inner_text(), 20, 'the sample')
        knob = box.locator('.noUi-handle').first
        knob.focus()
        for factor in ('0.891', '0.794'):          # each press arrives, and is seen although no step follows
            knob.press('ArrowLeft')
            until(lambda: f'learning rate × {factor}' in box.locator('.cdt-notes').inner_text(), 20, 'the learning rate')
        button('Resume').click()
        until(lambda: step(page) > at + 5, 10, 'steps after the pause')

        # stopped: the picture takes the panel's place
        button('Stop').click()
        picture = page.locator('.jp-CodeCell').nth(1).locator('.jp-RenderedImage img')
        picture.wait_for()
        assert picture.evaluate('i => i.naturalWidth') > 900
        assert not page.locator('.cdt-tiles').count()
        run_cell(page, 2)
        until(lambda: 'after the run {' in page.locator('.jp-CodeCell').nth(2).inner_text(), 10, 'the last cell')
        after = json.loads(re.search(r'after the run (\{.*\})', page.locator('.jp-CodeCell').nth(2).locator('.jp-OutputArea').inner_text())[1])
        print(after)
        assert after['status'] == 'stopped' and at < after['step'] == after['trained'] < 20_000
        assert after['share'] <= .05

        page.keyboard.press('Escape'); page.keyboard.press('Control+s')
        until(lambda: any('image/png' in o.get('data', {}) for o in saved(tmp_path)), 10, 'the notebook to be saved')
        output, words = saved(tmp_path)            # the widget is gone; below the picture is how to see it again
        assert words.data == {'text/plain': "from codette_nb.widgets.attach import panel; panel('run')"}
        assert set(output.data) == {'image/png', 'text/plain'} and output.data['text/plain'].startswith('stopped · step')

    # reopened, with no kernel: the picture is still there
    for k in get(f'{lab}/api/kernels'): get(f'{lab}/api/kernels/{k["id"]}', 'DELETE')
    with opened(chromium, lab, tmp_path/'reopened.png') as page:
        page.route('**/api/sessions**', lambda r: r.abort() if r.request.method == 'POST' else r.continue_())
        picture = page.locator('.jp-CodeCell').nth(1).locator('.jp-RenderedImage img')
        picture.wait_for()
        assert picture.evaluate('i => i.naturalWidth') > 900
        assert get(f'{lab}/api/kernels') == []

MIX_CELLS = '''\
from codette_nb.data.mixer import Mixer, Mixing
from codette_nb.data.records import Record
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.widgets.mixer import MixerPanel
words = 'heron otter badger kestrel hare mill weir wood lane ford hill barn'.split()
notes = [Record(text=f'Note {i}. <img src=x onerror="document.title = 1"> The {a} was seen near the {b}, and we wrote down what it did there.', source='notes')
         for i, (a, b) in enumerate((a, b) for a in words for b in words if a != b)]
mixer = Mixer(Mixing(samples=100), dict(notes=notes))
====
panel = MixerPanel(mixer, ByteTokenizer())
panel
====
import json
print('taken ' + json.dumps(dict(weights=panel.mixing.weights, notes=sum(r.source == 'notes' for r in panel.mixer.split().train))))'''.split('\n====\n')

def test_mixer_panel(chromium, lab, tmp_path):
    with notebook(chromium, lab, tmp_path, MIX_CELLS, tmp_path/'live.png') as page:
        run_cell(page, 0)
        run_cell(page, 1)
        bar = page.locator('.cdm-bar').first
        bar.wait_for(timeout=60_000)
        button = lambda name: page.get_by_role('button', name=name)
        field = lambda name: page.get_by_role('spinbutton', name=name, exact=True)

        # a slider moves, by key and by number, and the bar follows; there are as many as sources, and one for the temperature
        assert page.locator('.noUi-handle').count() == 6
        said = lambda: bar.get_attribute('aria-label')
        before = said()
        knob = page.locator('.noUi-handle').nth(4)
        knob.focus()
        for _ in range(5): knob.press('ArrowRight')
        until(lambda: field('notes').input_value() == '1.5', 10, 'the slider to move')
        until(lambda: said() != before, 10, 'the bar to follow the slider')
        at = said()
        field('perspectives').fill('0'); field('perspectives').press('Enter')
        until(lambda: 'perspectives' not in said() and said() != at, 10, 'the bar to follow the number')
        assert 'left out' in page.locator('.cdm-rows').inner_text()
        assert '1.5' in page.locator('.cdm-note code').inner_text()

        # one record after another; what the user's text holds is shown, not obeyed
        page.get_by_label('Record of').select_option('notes')
        text = page.locator('.cdm-text')
        until(lambda: '<img src=x' in text.inner_text(), 10, 'a note')
        first = text.inner_text()
        button('Another').click()
        until(lambda: text.inner_text() != first, 10, 'another record')
        assert not text.locator('img').count() and page.title() != '1'

        # the forms: without any, a sentence; with two, the record twice
        page.get_by_label('chat', exact=True).uncheck()
        until(lambda: 'name some of chat' in page.locator('.cdt-say').inner_text(), 10, 'a sentence')
        page.get_by_label('chat', exact=True).check()
        until(lambda: not page.locator('.cdt-say').inner_text().strip(), 10, 'the sentence to go')

        # the picture
        page.get_by_label('file', exact=True).fill('kept.png')
        button('Save picture').click()
        until((tmp_path/'work/kept.png').is_file, 10, 'the picture')
        assert (tmp_path/'work/kept.png').read_bytes()[1:4] == b'PNG'

        # the figures, and then old ones
        button('Measure this mix').click()
        page.locator('.cdm-report table').first.wait_for(timeout=60_000)
        assert 'bytes a token' in page.locator('.cdm-report').inner_text() and not page.locator('.cdm-stale').count()
        picture = page.locator('.jp-CodeCell').nth(1).locator('.jp-RenderedImage img')
        assert picture.count() == 1 and not picture.is_visible()               # kept, unseen while the widgets live
        source = picture.get_attribute('src')
        field('notes').fill('2'); field('notes').press('Enter')
        page.locator('.cdm-stale').wait_for()
        until(lambda: picture.get_attribute('src') != source, 10, 'the picture to be renewed')

        button('Save and create checkpoint').click()
        until(lambda: any('image/png' in o.get('data', {}) for o in saved(tmp_path)), 10, 'the notebook to be saved')
        kept = (tmp_path/'work/panel.ipynb').read_text()

        # taken: the picture takes the panel's place, the next cell has the weights
        button('Take these weights').click()
        picture.wait_for()
        assert picture.count() == 1 and not page.locator('.cdm-bars').count()
        run_cell(page, 2)
        until(lambda: 'taken {' in page.locator('.jp-CodeCell').nth(2).inner_text(), 60, 'the last cell')
        taken = json.loads(re.search(r'taken (\{.*\})', page.locator('.jp-CodeCell').nth(2).locator('.jp-OutputArea').inner_text())[1])
        assert taken['weights'] == dict(perspectives=0, notes=2) and taken['notes'] > 200
        button('Save and create checkpoint').click()
        until(lambda: 'image/png' in saved(tmp_path)[0].data, 10, 'the picture to be saved')
        assert "Mixing(samples=100, weights={'perspectives': 0, 'notes': 2})" in saved(tmp_path)[0].data['text/plain']

    # saved while it lived, reopened with no kernel: the picture that was kept with the widgets
    for k in get(f'{lab}/api/kernels'): get(f'{lab}/api/kernels/{k["id"]}', 'DELETE')
    (tmp_path/'work/panel.ipynb').write_text(kept)
    with opened(chromium, lab, tmp_path/'reopened.png') as page:
        page.route('**/api/sessions**', lambda r: r.abort() if r.request.method == 'POST' else r.continue_())
        picture = page.locator('.jp-CodeCell').nth(1).locator('.jp-RenderedImage img')
        picture.wait_for()
        assert picture.evaluate('i => i.naturalWidth') > 900
        assert get(f'{lab}/api/kernels') == []

LOST_CELLS = '''\
import json, os, threading, time
from codette_nb.train.lock import RunLock
from codette_nb.widgets.attach import panel
from codette_nb.widgets.history import pretend_events
lock = RunLock('run').acquire()
def go(): # stands for another process
    with open('run/metrics.jsonl', 'w') as f:
        for e in pretend_events(100_000):
            f.write(json.dumps(e) + '\\n'); f.flush(); time.sleep(.02)
threading.Thread(target=go, daemon=True).start()
time.sleep(1)
====
run = panel('run')'''.split('\n====\n')

def test_dead_kernel(chromium, lab, tmp_path):
    with notebook(chromium, lab, tmp_path, LOST_CELLS, tmp_path/'lost.png') as page:
        run_cell(page, 0)
        run_cell(page, 1)
        page.wait_for_selector('.cdt-charts', timeout=60_000)
        at = step(page)
        until(lambda: step(page) > at + 20, 20, 'the followed run to go on')
        veil = page.locator('.cdt-veil')
        assert not veil.is_visible()
        page.get_by_role('button', name='Pause').click()
        until(lambda: '"pause"' in (tmp_path/'work/run/inbox.jsonl').read_text() if (tmp_path/'work/run/inbox.jsonl').exists() else False, 10, 'the inbox')
        [kernel] = get(f'{lab}/api/kernels')
        get(f'{lab}/api/kernels/{kernel["id"]}/restart', 'POST')
        until(veil.is_visible, 40, 'the panel to say that its kernel is silent')
        assert 'No news from the kernel' in veil.inner_text() and "panel('run')" in veil.inner_text()

QUANT_CELLS = '''\
import torch
from codette_nb.core import set_seed
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.transformer import create_codette_model
from codette_nb.train.checkpoint import save_checkpoint
from codette_nb.widgets.quantizer import QuantizerPanel
torch.set_num_threads(1)
set_seed(0)
tok = ByteTokenizer(size=288)
save_checkpoint('checkpoint', create_codette_model(TransformerConfig(288, 128, 256, 1, 4)), tok)
====
panel = QuantizerPanel('checkpoint', tokens=300)
panel
====
print('chosen', panel.type, sorted(panel.comparison.types))'''.split('\n====\n')

def test_quantizer_panel(chromium, lab, tmp_path):
    pytest.importorskip('xllamacpp', reason='the panel measures in llama.cpp: pip install xllamacpp')
    with notebook(chromium, lab, tmp_path, QUANT_CELLS, tmp_path/'live.png') as page:
        run_cell(page, 0)
        run_cell(page, 1)
        tiles = page.locator('.cdq .cdt-tiles')
        tiles.wait_for(timeout=60_000)
        button = lambda name: page.locator('.cdq-box').get_by_role('button', name=name)
        says = page.locator('.cdt-say')

        # a type and a context are chosen, and the figures follow
        assert 'file type q4_k_m' in tiles.inner_text() and 'measure any other type first' in tiles.inner_text()
        size = tiles.inner_text()
        page.get_by_label('file type').select_option('q8')
        until(lambda: 'file type q8' in tiles.inner_text() and tiles.inner_text() != size, 10, 'the figures of q8')
        page.get_by_label('context').fill('4096'); page.get_by_label('context').press('Enter')
        until(lambda: 'memory at 4,096 tokens' in tiles.inner_text(), 10, 'the memory')

        # measured in the background, while another type is chosen
        button('Measure this type').click()
        until(lambda: not button('Measure this type').is_enabled(), 10, 'the button to rest')
        page.get_by_label('file type').select_option('q4_0')
        until(lambda: 'file type q4_0' in tiles.inner_text(), 10, 'another type meanwhile')
        dot = page.locator('.cdq-map circle')
        until(lambda: dot.count() > 5, 60, 'the map')
        until(lambda: 'from the others that were measured' in tiles.inner_text(), 10, 'a prediction')
        assert button('Measure this type').is_enabled() and 'q8' in page.locator('.cdq table').inner_text()

        # what is wrong is said in a sentence, and the panel lives on
        page.get_by_label('file', exact=True).fill('types.jpg')
        button('Save page').click()
        until(lambda: 'choose one of png' in says.inner_text(), 10, 'a sentence')
        question = page.get_by_label('question')
        question.fill(''); button('Ask both').click()
        until(lambda: 'the prompt is empty' in says.inner_text(), 10, 'another sentence')

        # both models side by side; what they say is shown, not obeyed
        question.fill('<b>Who</b> are you?')
        button('Ask both').click()
        page.locator('.cdq-two pre').nth(1).wait_for(timeout=60_000)
        assert '<b>Who</b> are you?' in page.locator('.cdq:has(.cdq-two)').inner_text()
        until(button('Save page').is_enabled, 10, 'the end of the answers')
        page.get_by_label('file', exact=True).fill('types.html')
        button('Save page').click()
        until((tmp_path/'work/types.html').is_file, 20, 'the page')

        # stopped: what was measured is kept
        button('Measure all').click()
        until(lambda: page.locator('.cdq table tr').count() > 2 or button('Stop').is_enabled(), 30, 'the measuring to begin')
        button('Stop').click()
        until(button('Measure all').is_enabled, 60, 'the end')
        if shot := os.environ.get('CODETTE_SHOTS'): # to be looked at
            page.set_viewport_size(dict(width=1300, height=1800)); time.sleep(1); page.screenshot(path=f'{shot}/quantizer.png', full_page=True)
            page.set_viewport_size(dict(width=560, height=1500)); time.sleep(1); page.screenshot(path=f'{shot}/quantizer-narrow.png', full_page=True)
            page.set_viewport_size(dict(width=1300, height=1000))
        run_cell(page, 2)
        last = page.locator('.jp-CodeCell').nth(2)
        until(lambda: 'chosen q4_0' in last.inner_text(), 10, 'the last cell')
        assert "'q8'" in last.inner_text()
        picture = page.locator('.jp-CodeCell').nth(1).locator('.jp-RenderedImage img')
        assert picture.count() == 1 and not picture.is_visible()               # kept, unseen while the widgets live
        page.get_by_role('button', name='Save and create checkpoint').click()
        until(lambda: any('image/png' in o.get('data', {}) for o in saved(tmp_path)), 10, 'the notebook to be saved')
        assert '--quantization q4_0' in next(o.data['text/plain'] for o in saved(tmp_path) if 'image/png' in o.get('data', {}))
