"From a checkpoint to a GGUF file that llama.cpp reads as PyTorch meant it, for every tokenizer and every format."
import errno, json, multiprocessing, os, subprocess, sys, time, urllib.request
import pytest, torch
from codette_nb.core import CodetteError
from codette_nb.data.records import render_chat
from codette_nb.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, SimpleTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.transformer import create_codette_model
from codette_nb.quantize import gguf, verify
from codette_nb.quantize.gguf import GGUFConverter, convert_checkpoint_to_gguf
from codette_nb.quantize.reader import read_gguf
from codette_nb.quantize.runtime import LlamaCpp, _openai
from codette_nb.quantize.verify import llama_library, sample_texts, verify_gguf
from codette_nb.train.checkpoint import save_checkpoint
from test_modelfile import CHATS

needs_llama = pytest.mark.skipif(llama_library() is None, reason='needs an xllamacpp that exposes the C functions of llama.cpp')
KINDS = {'sentencepiece': lambda: SentencePieceTokenizer(512).fit(sample_texts()),
         'words': lambda: SimpleTokenizer(512).fit(sample_texts()), 'bytes': lambda: ByteTokenizer(size=512)}

@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
    "A model of random weights with one kind of tokenizer, and its checkpoint."
    torch.manual_seed(0)
    tok = KINDS[request.param]()
    model = create_codette_model(TransformerConfig(tok.vocab_size, 128, 96, 2, 4))
    with torch.no_grad():
        for n, p in model.named_parameters(): p.add_(torch.randn_like(p)*(.15 if p.dim() == 2 else .05))
    return model, tok, save_checkpoint(tmp_path_factory.mktemp(request.param)/'checkpoint', model, tok)

@needs_llama
@pytest.mark.parametrize('quantization', ['fp32', 'fp16', 'bf16', 'q8', 'q4_0'])
def test_llama_cpp_agrees(made, quantization, tmp_path):
    model, tok, checkpoint = made
    path = convert_checkpoint_to_gguf(checkpoint, tok, tmp_path/'models'/'codette.gguf', quantization=quantization)
    full = quantization == 'fp16'
    r = verify_gguf(path, checkpoint if full else model, tok, strings=3000 if full else 300, tokens=512)
    assert r.passed, r
    assert r.token_differences == [] and r.pieces == 512 and r.logits.positions > 400
    if full: assert r.logits.kl <= 1e-4 and r.logits.decisive > 50 and r.logits.overturned == 0

def test_the_call_of_the_documentation(made, tmp_path, monkeypatch):
    model, tokenizer, _ = made
    monkeypatch.chdir(tmp_path)
    save_checkpoint('checkpoints/model_best', model, tokenizer)
    gguf_path = convert_checkpoint_to_gguf('checkpoints/model_best', tokenizer, 'models/codette.gguf', quantization='fp16')
    assert gguf_path.is_file() and read_gguf(gguf_path).metadata['general.file_type'] == 1

def test_a_full_disk_leaves_no_file(made, tmp_path, monkeypatch):
    def full(*a): raise OSError(errno.ENOSPC, 'No space left on device')
    conv = GGUFConverter(made[2])
    monkeypatch.setattr(gguf, 'quantise', full)
    with pytest.raises(CodetteError, match='the disk is full'): conv.write(tmp_path/'model.gguf')
    assert list(tmp_path.iterdir()) == []

@needs_llama
def test_no_room_for_the_logits(made, tmp_path):
    "The temporary folder is full: that is said, and the file is not blamed."
    path = convert_checkpoint_to_gguf(made[2], None, tmp_path/'model.gguf', 'q8')
    (tmp_path/'job.json').write_text(json.dumps(dict(gguf=str(path), strings=[], sequences=[[1]*100])))
    full = 'import shutil, sys; shutil.disk_usage = lambda p: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1000); from codette_nb.quantize.verify import _worker; _worker(sys.argv[1])'
    assert subprocess.run([sys.executable, '-c', full, tmp_path], capture_output=True, timeout=60).returncode == 0
    assert 'has 1000 B free' in json.loads((tmp_path/'answer.json').read_text())['full'] and not (tmp_path/'logits.npy').exists()
    with pytest.MonkeyPatch.context() as m, pytest.raises(CodetteError, match='no room'):
        m.setattr(verify, '_ask', lambda *a: dict(full='no room'))
        verify_gguf(path, made[2])

def test_an_interrupted_export_keeps_the_old_file(made, tmp_path, monkeypatch):
    def stop(*a): raise KeyboardInterrupt
    path = convert_checkpoint_to_gguf(made[2], None, tmp_path/'model.gguf', 'q8')
    before = path.read_bytes()
    with pytest.raises(CodetteError, match='exists already'): convert_checkpoint_to_gguf(made[2], None, path)
    monkeypatch.setattr(gguf, 'quantise', stop)
    with pytest.raises(KeyboardInterrupt): convert_checkpoint_to_gguf(made[2], None, path, force=True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

@pytest.mark.parametrize('keep', [0, 10, 1000, 60_000, -100])
def test_a_truncated_file_is_reported(made, tmp_path, keep):
    model, tok, checkpoint = made
    path = convert_checkpoint_to_gguf(checkpoint, tok, tmp_path/'model.gguf', 'q8')
    path.write_bytes(path.read_bytes()[:keep])
    r = verify_gguf(path, model, tok)
    assert r.status == 'failed' and 'not a whole GGUF file' in r.reasons[0]
    with pytest.raises(CodetteError, match='not a whole GGUF file'): LlamaCpp(path)

def test_without_a_binding_nothing_passes(made, tmp_path, monkeypatch):
    model, tok, checkpoint = made
    path = convert_checkpoint_to_gguf(checkpoint, tok, tmp_path/'model.gguf')
    monkeypatch.setattr(verify, '_ask', lambda *a: dict(missing='xllamacpp is not installed'))
    r = verify_gguf(path, model, tok)
    assert r.status == 'not checked' and not r.passed and 'not checked' in r._repr_html_()

def test_the_template_in_the_file_is_ours(made, tmp_path):
    "llama.cpp reads Jinja with a program of its own: the prompt that its server makes of a chat is compared with ours."
    pytest.importorskip('xllamacpp')
    llama = LlamaCpp(convert_checkpoint_to_gguf(made[2], made[1], tmp_path/'model.gguf'))
    def there(messages, tools):
        body = json.dumps(_openai(messages, tools)).encode()
        url, kind = llama._server.listening_address + '/apply-template', {'Content-Type': 'application/json'}
        with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=30) as f: return json.load(f)['prompt']
    try:
        for messages, tools in CHATS:
            if messages[-1]['role'] != 'assistant': # such a last turn is one to continue, for llama.cpp
                assert there(messages, tools) == render_chat(messages, tools, add_generation_prompt=True)
    finally: llama.close()

@pytest.mark.skipif(os.name != 'posix', reason='forks')
def test_killed_export(tmp_path, monkeypatch):
    "What a killed export leaves is removed by the next one into the same folder, and not while the first one lives."
    checkpoint = save_checkpoint(tmp_path/'checkpoint', create_codette_model(TransformerConfig(512, 32, 32, 1, 2)), ByteTokenizer(size=512))
    out, begun = tmp_path/'out', tmp_path/'begun'
    def slow(): # stops in the middle of the file
        monkeypatch.setattr(gguf._Rows, 'tofile', lambda *a: (begun.touch(), time.sleep(120)))
        convert_checkpoint_to_gguf(checkpoint, None, out/'first.gguf', quiet=True)
    p = multiprocessing.get_context('fork').Process(target=slow)
    p.start()
    try:
        while not begun.exists(): assert p.is_alive(); time.sleep(.01)
        [left] = out.iterdir()
        assert left.name == f'.first.gguf.{p.pid}.tmp'
        convert_checkpoint_to_gguf(checkpoint, None, out/'second.gguf', quiet=True)
        assert left.exists()                                     # it is being written
    finally: p.kill(); p.join()
    assert left.exists()
    convert_checkpoint_to_gguf(checkpoint, None, out/'third.gguf', quiet=True)
    assert {f.name for f in out.iterdir()} == {'second.gguf', 'third.gguf'}
