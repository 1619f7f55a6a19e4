"What an export is refused for: one clear sentence at the command, a non-zero exit, and what was there before untouched."
import hashlib, json, os, shutil, signal, subprocess, sys, time
from dataclasses import replace
import numpy as np, pytest
from safetensors.numpy import load_file, save_file
from test_bad_input import command_refuses
from tiny import codette, contents, litter
from codette_nb.core import CodetteError
from codette_nb.data.tokenizer import SentencePieceTokenizer
from codette_nb.quantize import gguf
from codette_nb.quantize.verify import llama_library
from codette_nb.train.checkpoint import MANIFEST, WEIGHTS, find_checkpoint

needs_llama = pytest.mark.skipif(llama_library() is None, reason='needs an xllamacpp that exposes the C functions of llama.cpp')

@pytest.fixture
def run(tiny_run, tmp_path):
    "A run of one's own with an older export in it."
    path = shutil.copytree(tiny_run, tmp_path/'run')
    (path/'model.gguf').write_bytes(b'GGUF, of yesterday')
    return path

def change(run, weights=lambda t: None, files=lambda folder: None):
    "Another checkpoint under the manifest: what was damaged before it was saved."
    folder = find_checkpoint(run)
    tensors = load_file(folder/WEIGHTS)
    weights(tensors)
    save_file(tensors, folder/WEIGHTS, metadata={'format': 'pt'})
    files(folder)
    manifest = json.loads((folder/MANIFEST).read_text())
    for name in manifest['files']:
        data = (folder/name).read_bytes()
        manifest['files'][name] = manifest['files'][name] | dict(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder/MANIFEST).write_text(json.dumps(manifest))
    return run

# The weights

NAME = 'model.layers.1.mlp.c_fc.weight'

@pytest.mark.parametrize('value, says', [(np.nan, 'NaN'), (np.inf, 'infinity'), (-np.inf, 'infinity')])
@pytest.mark.parametrize('quantization', ['fp16', 'q4_k_m'])
def test_weights_that_are_no_numbers(run, value, says, quantization):
    def spoil(t): t[NAME][3, 5] = value
    command_refuses(change(run, spoil), ['export', run, '--force', '--quantization', quantization], NAME, says)

@pytest.mark.parametrize('switch', [['--importance', 'auto'], ['--feedback'], ['--budget', '200KB']])
def test_weights_that_are_no_numbers_are_named_before_anything_is_measured(run, switch):
    def spoil(t): t[NAME][3, 5] = np.nan
    command_refuses(change(run, spoil), ['export', run, '--force', *switch], f'the tensor {NAME} holds NaN')

def test_weights_beyond_the_format(run):
    def large(t): t[NAME][0, 0] = 1e5
    command_refuses(change(run, large), ['export', run, '--force'], NAME, 'choose bf16 or fp32')

def test_a_width_that_no_block_fits(tmp_path):
    "36 columns divide into no block at all: the file is fp16 throughout, and says so."
    import torch
    from codette_nb.data.tokenizer import ByteTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.quantize.reader import read_gguf
    from codette_nb.train.checkpoint import save_checkpoint
    torch.manual_seed(0)
    save_checkpoint(tmp_path/'narrow', create_codette_model(TransformerConfig(269, 32, 36, 1, 2, intermediate_size=144)), ByteTokenizer())
    code, out, err = codette('export', tmp_path/'narrow', '--quantization', 'q4_k_m', '--json', '--out', tmp_path/'narrow.gguf')
    assert code == 0, err
    figures, r = json.loads(out), read_gguf(tmp_path/'narrow.gguf')
    assert figures['label'] == 'fp16' and r.metadata['general.file_type'] == 1 and {t.type.name for t in r.tensors.values()} == {'F16', 'F32'}
    with pytest.raises(CodetteError, match='36'): gguf.GGUFConverter(tmp_path/'narrow', formats={'blk.0.attn_q.weight': 'q4_k'}) # asked for by name, it is refused
    assert codette('export', tmp_path/'narrow', '--quantization', 'q4_k_m', '--out', tmp_path/'again.gguf', '--no-verify')[1].count('wrote') == 1

# The vocabulary and the template

def respelt(monkeypatch, change):
    real = SentencePieceTokenizer.pieces
    monkeypatch.setattr(SentencePieceTokenizer, 'pieces', lambda self: change(list(real(self))))

def test_a_tokenizer_of_another_size(run, monkeypatch):
    respelt(monkeypatch, lambda p: p[:-1])
    command_refuses(run, ['export', run, '--force'], 'pieces', 'rows in its embedding')

def test_a_piece_twice(run, monkeypatch):
    respelt(monkeypatch, lambda p: p[:-1] + [replace(p[-1], text=p[-2].text)])
    command_refuses(run, ['export', run, '--force'], '2 times', 'once')

def test_a_byte_missing(run, monkeypatch):
    respelt(monkeypatch, lambda p: [replace(x, text='another') if x.text == '<0x41>' else x for x in p])
    command_refuses(run, ['export', run, '--force'], 'no piece for byte 65', '<0x41>')

@pytest.mark.parametrize('template, says', [('{% for m in messages %}', 'does not render'), ('{{ messages[0].nothing.at_all }}', 'does not render'), ('always the same', 'leaves out'),
                                            ("{{ ''.__class__.__mro__ }}", 'does not render')])
def test_a_template_that_does_not_render(run, monkeypatch, template, says):
    monkeypatch.setattr(SentencePieceTokenizer, 'template', template)
    command_refuses(run, ['export', run, '--force'], 'chat template', says)

# The place

def test_no_room(run, monkeypatch, tmp_path):
    "Known before a byte is written."
    begun = []
    monkeypatch.setattr(gguf, '_stream', lambda *a: begun.append(a))
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1000))
    command_refuses(tmp_path, ['export', run, '--force'], 'has 1000 B free', 'choose another folder')
    command_refuses(tmp_path, ['export', run, '--out', tmp_path/'other/model.gguf'], 'has 1000 B free')
    assert not begun and not (tmp_path/'other').exists()

def test_an_existing_file_is_kept(run):
    command_refuses(run, ['export', run], 'model.gguf exists already', '--force')
    code, _, err = codette('export', run, '--force', '--no-verify')
    assert code == 0 and (run/'model.gguf').read_bytes()[:4] == b'GGUF' != b'GGUF, of yesterday', err
    assert len((run/'model.gguf').read_bytes()) > 1000 and not litter(run)

def test_a_place_for_no_file(run, tmp_path, monkeypatch):
    "A folder, and the name that the Modelfile would take: known before anything is measured, with --force too."
    from codette_nb import pipeline
    monkeypatch.setattr(pipeline, 'run_split', lambda *a, **kw: 1/0)
    (tmp_path/'folder').mkdir()
    for out, *says in ((tmp_path/'folder', 'is a folder', 'folder/model.gguf'), (tmp_path/'x.Modelfile', 'name of its Modelfile', 'x.gguf')):
        command_refuses(tmp_path, ['export', run, '--out', out, '--force', '--feedback'], *says)
    command_refuses(tmp_path, ['export', run, '--out', tmp_path/'m.gguf', '--quantization', 'q9', '--feedback'], "unknown quantization 'q9'")
    command_refuses(tmp_path, ['export', run, '--out', tmp_path/'m.gguf', '--name', 'a\udcff', '--no-verify'], 'the name')

def test_stopped_while_it_is_verified(run, monkeypatch):
    "Neither name has the file: it was not checked."
    from codette_nb import pipeline
    def stopped(path, *a, **kw): assert path.exists(); raise KeyboardInterrupt
    monkeypatch.setattr(pipeline, 'verify_gguf', stopped)
    before = contents(run)
    code, _, err = codette('export', run, '--force', '--quantization', 'q8')
    assert code == 130 and contents(run) == before, err

@needs_llama
def test_a_file_that_fails_has_no_name(run, monkeypatch):
    "The encoder is made wrong: llama.cpp disagrees, the old file stays, the new one is not to be taken for it."
    from codette_nb.quantize import gguf as g
    real = g.quantise
    monkeypatch.setattr(g, 'quantise', lambda x, *a: real(x[::-1], *a))  # rows in the wrong order
    before = (run/'model.gguf').read_bytes()
    code, _, err = codette('export', run, '--force', '--quantization', 'q8')
    assert code == 1 and 'llama.cpp does not agree with the model' in err and err.count('\n') == 1
    assert (run/'model.gguf').read_bytes() == before
    code, _, err = codette('export', run, '--out', run/'new.gguf', '--quantization', 'q8')
    assert code == 1 and not (run/'new.gguf').exists()

# Interrupted

SLOW = '''
import sys, time
import codette_nb.quantize.gguf as g
real = g.quantise
def slow(*a): time.sleep(.3); return real(*a)
g.quantise = slow
from codette_nb.cli import run
sys.exit(run())
'''

@pytest.mark.skipif(os.name != 'posix', reason='signals as POSIX has them')
@pytest.mark.parametrize('kind', [signal.SIGINT, signal.SIGKILL])
def test_interrupted(run, kind):
    before, best = contents(run), find_checkpoint(run)
    process = subprocess.Popen([sys.executable, '-c', f'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{SLOW}', 'export', str(run), '--force', '--quantization', 'q4_k_m'],
                               env=os.environ | {'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not any(p.stat().st_size > 5000 for p in run.glob('.*.tmp')): # in the middle of the file
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(.01)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    if kind == signal.SIGINT: assert process.returncode == 130 and 'stopped' in err and 'Traceback' not in err and not litter(run), err
    else: assert process.returncode == -signal.SIGKILL
    assert {k: v for k, v in contents(run).items() if not k.endswith('.tmp')} == before   # the old file, byte for byte
    code, _, err = codette('export', run, '--force', '--no-verify')                         # and the next export is none the worse
    assert code == 0 and find_checkpoint(run) == best, err

# Files of others

@pytest.mark.parametrize('argv', [['inspect'], ['chat', 'Hello'], ['serve', '--port', '0'], ['deploy']])
def test_a_malformed_file(tiny_run, tmp_path, argv):
    data = (tiny_run/'model.gguf').read_bytes()
    for name, lie in {'cut': data[:len(data)//2], 'empty': b'', 'other': b'PNG' + data[3:], 'count': data[:8] + b'\xff'*8 + data[16:]}.items():
        (tmp_path/f'{name}.gguf').write_bytes(lie)
        command_refuses(tmp_path, [argv[0], tmp_path/f'{name}.gguf', *argv[1:]], f'{name}.gguf')

def test_types_refuses(run, tmp_path):
    command_refuses(tmp_path, ['types', run, '--types', 'q4_0,q9'], "'q9'", 'q4_k_m')
    command_refuses(tmp_path, ['types', run, '--types', 'q4_0,q4'], "'q4_0'")
    command_refuses(tmp_path, ['types', run, '--tokens', 0], '--tokens is 0')
    command_refuses(tmp_path, ['types', run, '--picture', tmp_path/'types.jpg'], 'choose one of png')
    command_refuses(tmp_path, ['types', tmp_path/'none'], 'none')
    (tmp_path/'types.png').write_bytes(b'mine')
    command_refuses(tmp_path, ['types', run, '--picture', tmp_path/'types.png'], 'exists already')

@needs_llama
def test_types(run, tmp_path):
    before = contents(run)
    code, out, err = codette('types', run, '--types', 'q8,q4_0', '--tokens', 400, '--picture', tmp_path/'types.html')
    assert code == 0 and 'held-out text of the run' in out and 'q4_0' in out and contents(run) == before, err
    assert b'data:image/png' in (tmp_path/'types.html').read_bytes()
    (tmp_path/'text.txt').write_text('The wind carries a river near the harbour. '*80)
    code, out, err = codette('types', run, '--types', 'q8', '--tokens', 300, '--data', tmp_path/'text.txt', '--json')
    assert code == 0 and json.loads(out)['types']['q8']['kl'] < .02 and json.loads(out)['text'] == 'text.txt', err

@needs_llama
def test_types_stopped(run, tmp_path, monkeypatch):
    "Ctrl-C in the middle: what was measured is printed and drawn, and the exit code says that it is not all."
    from codette_nb.quantize import compare
    real, asked = compare.in_llama, []
    def in_llama(*a, **kw):
        asked.append(a)
        if len(asked) > 1: raise KeyboardInterrupt
        return real(*a, **kw)
    monkeypatch.setattr(compare, 'in_llama', in_llama)
    code, out, err = codette('types', run, '--types', 'q8,q4_0,q2_k', '--tokens', 300, '--picture', tmp_path/'types.png')
    assert code == 130 and 'stopped: q4_0, q2_k not measured' in out and 'Traceback' not in err, (out, err)
    assert (tmp_path/'types.png').read_bytes()[1:4] == b'PNG' and contents(run)['model.gguf'] == b'GGUF, of yesterday'
