"Shards that are written by a process which is killed, by several machines, or damaged; and training that reads them."
import json, os, shutil, signal, subprocess, sys, time
import numpy as np
import pytest
from tiny import contents, events, litter, write_book
from codette_nb.core import CodetteError, set_seed      # nothing here imports torch: the processes that are killed read this file too
from codette_nb.data.packing import TextDataset
from codette_nb.data.records import Record
from codette_nb.data.shards import MANIFEST, Shards, join_shards, write_shards
from codette_nb.data.tokenizer import SentencePieceTokenizer, load_tokenizer, save_tokenizer

posix = pytest.mark.skipif(os.name != 'posix', reason='signals as POSIX has them')
SIZE = 3000

def book(folder, paragraphs=1500):
    "Records of two sources that take turns."
    text = write_and_read(folder, paragraphs)
    talk = lambda p: Record(messages=({'role': 'user', 'content': p[:40]}, {'role': 'assistant', 'content': p[40:]}), source='talk')
    return [Record(text=p, source='book') if i % 3 else talk(p) for i, p in enumerate(text)]

def write_and_read(folder, paragraphs):
    with open(write_book(folder/'book.txt', paragraphs), encoding='utf-8') as f: return f.read().split('\n\n')

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Records, tokenizer, and the folder that nobody disturbed."
    folder = tmp_path_factory.mktemp('whole')
    records = book(folder)
    tok = SentencePieceTokenizer(400).fit(r.text for r in records if r.text)
    save_tokenizer(tok, folder/'tokenizer')
    write_shards(records, tok, folder/'shards', shard_tokens=SIZE, quiet=True)
    return records, tok, folder/'shards'

# SLOW: seconds to wait before each file is renamed, so that the process is killed in the middle of one; PART: of how many machines
PROGRAM = '''
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import codette_nb.core as core, test_shards
from codette_nb.data.shards import write_shards
from codette_nb.data.tokenizer import load_tokenizer
real = os.replace
def replace(a, b): time.sleep(float(os.environ.get('SLOW', 0))); real(a, b)
os.replace = replace
home, out = Path(sys.argv[1]), Path(sys.argv[2])
part = tuple(map(int, os.environ.get('PART', '0,1').split(',')))
write_shards(test_shards.book(out.parent), load_tokenizer(home/'tokenizer'), out, shard_tokens=test_shards.SIZE, quiet=True, part=part)
'''.format(tests=str(os.path.dirname(os.path.abspath(__file__))))

def start(home, out, **env):
    return subprocess.Popen([sys.executable, '-c', PROGRAM, str(home), str(out)], env=os.environ | {'OMP_NUM_THREADS': '1'} | env,
                            text=True, stderr=subprocess.PIPE)

def wait_for(process, seen, seconds=60):
    end = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(.002)

MOMENTS = {'while the folder begins': '.shards.*.tmp/tokenizer.model', 'while tokens are written': 'shards/.shard-00005.tokens.*.tmp',
           'while an index is written': 'shards/.shard-00003.index.*.tmp', 'while the manifest is written': 'shards/.shards.json.*.tmp'}

@posix
@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_and_called_again(whole, tmp_path, moment):
    _, _, shards = whole
    process = start(shards.parent, tmp_path/'shards', SLOW='.05')
    wait_for(process, lambda: any(tmp_path.glob(MOMENTS[moment])))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    if (tmp_path/'shards').exists():
        assert litter(tmp_path/'shards')
        with pytest.raises(CodetteError, match='is not finished'): Shards.open(tmp_path/'shards')
        listed = len(json.loads((tmp_path/'shards'/MANIFEST).read_text())['shards'])
        files = [(f, f.stat().st_mtime_ns) for f in (tmp_path/'shards'/f'shard-{k:05}.tokens' for k in range(listed))]
    else: files = []
    again = start(shards.parent, tmp_path/'shards')
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert contents(tmp_path/'shards') == contents(shards)
    assert all(f.stat().st_mtime_ns == t for f, t in files)       # what was finished is not written again
    assert not litter(tmp_path/'shards')

def test_killed_again_and_again(whole, tmp_path):
    "Whatever is finished each time, the end is the same."
    records, tok, shards = whole
    def breaks(at):
        for i, r in enumerate(records):
            if i == at: raise OSError('the network is gone')
            yield r
    for at in (0, 1, 700, 701, 1300, 1499):
        with pytest.raises(OSError, match='network'): write_shards(breaks(at), tok, tmp_path/'s', shard_tokens=SIZE, workers=1, quiet=True)
    write_shards(records, tok, tmp_path/'s', shard_tokens=SIZE, workers=3, quiet=True)
    assert contents(tmp_path/'s') == contents(shards)

def test_parts_from_two_processes_are_the_whole(whole, tmp_path):
    _, tok, shards = whole
    running = []
    for i in range(2):
        (tmp_path/str(i)).mkdir()
        running.append(start(shards.parent, tmp_path/str(i)/'shards', PART=f'{i},2'))
    for p in running: assert p.wait(60) == 0, p.stderr.read()
    for p in running: p.stderr.close()
    joined = join_shards([tmp_path/'1'/'shards', tmp_path/'0'/'shards'], tmp_path/'joined', quiet=True)
    assert contents(tmp_path/'joined') == contents(shards)
    assert joined.by_source().keys() == {'talk', 'book'}

def test_a_machine_without_records(whole, tmp_path):
    records, tok, _ = whole
    for i in range(3): write_shards(records[:2], tok, tmp_path/str(i), part=(i, 3), quiet=True)
    assert Shards.open(tmp_path/'2').num_documents == 0
    joined = join_shards([tmp_path/str(i) for i in range(3)], tmp_path/'all', quiet=True)
    assert [joined.document(i).tolist() for i in range(2)] == tok.document(records[:2])
    with pytest.raises(CodetteError, match='no text'): TextDataset(Shards.open(tmp_path/'2'), tok, 64)

def test_any_change_of_a_byte_is_found(whole, tmp_path):
    "In any file of the folder: by opening, or at the latest by verify."
    _, _, shards = whole
    r = np.random.default_rng(0)
    for name in [*contents(shards)]:
        if name in ('tokenizer.json', 'tokenizer_config.json'): continue    # for other tools
        if name.startswith('shard-') and int(name[6:11]) > 2: continue
        for _ in range(3):
            d = tmp_path/'d'
            shutil.rmtree(d, ignore_errors=True); shutil.copytree(shards, d)
            data = bytearray((d/name).read_bytes())
            if name == 'tokenizer.model': data = data[:len(data)//2]
            elif name == MANIFEST: data = data.replace(b'"tokens": 3', b'"tokens": 4', 1)
            else: data[r.integers(len(data))] ^= 1 << int(r.integers(8))
            (d/name).write_bytes(data)
            with pytest.raises(CodetteError) as e: Shards.open(d).verify(quiet=True)
            assert '\n' not in str(e.value) and len(str(e.value)) < 400

@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '{"format": "codette shards", "version": 1}', '{"shards": ' + '['*200])
def test_a_manifest_that_is_none(whole, tmp_path, text):
    d = shutil.copytree(whole[2], tmp_path/'d')
    (d/MANIFEST).write_text(text)
    with pytest.raises(CodetteError, match='manifest|JSON'): Shards.open(d)
    with pytest.raises(CodetteError): write_shards(whole[0], whole[1], d, shard_tokens=SIZE, quiet=True)

def test_names_in_a_manifest_lead_nowhere(whole, tmp_path):
    "File names are made from numbers, so what a manifest says of names is not believed."
    d = shutil.copytree(whole[2], tmp_path/'d')
    m = json.loads((d/MANIFEST).read_text())
    for s in m['shards']: s['name'] = '../../../etc/passwd'
    (d/MANIFEST).write_text(json.dumps(m))
    assert Shards.open(d).num_documents == len(whole[0])

def test_force_deletes_shards_only(whole, tmp_path):
    records, tok, shards = whole
    d = shutil.copytree(shards, tmp_path/'d')
    (d/'thesis.txt').write_text('mine')
    with pytest.raises(CodetteError, match='other files'): write_shards(records, tok, d, shard_tokens=SIZE, force=True, quiet=True)
    assert (d/'thesis.txt').read_text() == 'mine'

# training

def trainer(train, tok, held_out, out, **kw):
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.train.trainer import CodetteTrainer, TrainingConfig
    set_seed(0)
    config = TrainingConfig.laptop(max_steps=12, batch_size=4, eval_every=6, save_every=4, eval_windows=4, log_every=1, sample_every=0,
                                   device='cpu', dtype='float32', threads=1)
    model = create_codette_model('nano', vocab_size=tok.vocab_size, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
                                 context_length=64)
    return CodetteTrainer(model, tok, train, held_out, config, out, **kw)

def same_weights(a, b):
    import torch
    from safetensors.torch import load_file
    a, b = (load_file(run/'checkpoints/step-12/model.safetensors') for run in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def grouped(shards, tok): return TextDataset(shards, tok, 64, group=2*SIZE)       # many groups, as a corpus larger than memory has

def test_training_from_shards_is_training_from_memory(whole, tmp_path):
    records, tok, shards = whole
    trainer(records, tok, records[:50], tmp_path/'memory').fit(quiet=True)
    mapped = trainer(Shards.open(shards), load_tokenizer(shards), records[:50], tmp_path/'mapped')
    mapped.fit(quiet=True)
    assert mapped.train_set.shards.folder == shards
    assert events(tmp_path/'mapped') == events(tmp_path/'memory')
    assert same_weights(tmp_path/'mapped', tmp_path/'memory')

def test_stopped_and_resumed_from_shards(whole, tmp_path):
    "Over the edge of a group, a run goes on with exactly the next window."
    from codette_nb.train.checkpoint import latest_checkpoint
    records, tok, folder = whole
    shards = Shards.open(folder)
    assert len(grouped(shards, tok).plan(0)[0]) > 5
    trainer(grouped(shards, tok), tok, records[:50], tmp_path/'whole').fit(quiet=True)
    first = trainer(grouped(shards, tok), tok, records[:50], tmp_path/'parts')
    first.listeners.append(lambda e: first.stop() if e['event'] == 'step' and e['step'] == 9 else None)
    first.fit(quiet=True)
    shutil.rmtree(tmp_path/'parts/checkpoints/step-9')       # as if killed after step 9
    second = trainer(grouped(Shards.open(folder), tok), tok, records[:50], tmp_path/'parts', resume=True)
    second.load(latest_checkpoint(tmp_path/'parts'))
    assert second.step == 8
    second.fit(quiet=True)
    assert events(tmp_path/'parts') == events(tmp_path/'whole')
    assert same_weights(tmp_path/'parts', tmp_path/'whole')
