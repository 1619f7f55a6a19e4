"`codette deploy` against a server that behaves as Ollama's documentation says, and `codette serve` as it is."
import hashlib, json, os, re, signal, subprocess, sys, threading, urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from tiny import codette
from codette_nb.core import CodetteError
from codette_nb.quantize import ollama
from codette_nb.quantize.ollama import OLLAMA_TEMPLATE, Ollama, create_fields, deploy, write_modelfile
from codette_nb.quantize.verify import llama_library

class FakeOllama(BaseHTTPRequestHandler):
    "Blobs are held to their names, models are made of blobs that are there, answers come line by line."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass

    def reply(self, status, body=b'', kind='application/json'):
        self.send_response(status)
        self.send_header('Content-Type', kind); self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def error(self, status, said): self.reply(status, json.dumps({'error': said}).encode())

    def stream(self, objects):
        self.send_response(200)
        self.send_header('Content-Type', 'application/x-ndjson'); self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        for o in objects:
            line = json.dumps(o).encode() + b'\n'
            self.wfile.write(b'%x\r\n%s\r\n' % (len(line), line)); self.wfile.flush()
        self.wfile.write(b'0\r\n\r\n')

    def do_HEAD(self): self.reply(200 if self.path.removeprefix('/api/blobs/') in self.server.blobs else 404)

    def do_GET(self):
        if self.path == '/api/version': self.reply(200, json.dumps({'version': self.server.version}).encode())
        else: self.error(404, 'not found')

    def do_POST(self):
        s, length = self.server, int(self.headers['Content-Length'])
        s.seen.append(self.path)
        if fault := s.faults.get(self.path.split('sha256')[0]): return fault(self, length)
        if self.path.startswith('/api/blobs/'):
            data, digest = self.rfile.read(length), self.path.removeprefix('/api/blobs/')
            if 'sha256:' + hashlib.sha256(data).hexdigest() != digest: return self.error(400, 'digest mismatch')
            s.blobs[digest] = data
            return self.reply(201)
        body = json.loads(self.rfile.read(length))
        s.bodies[self.path] = body
        if self.path == '/api/create':
            for d in body['files'].values():
                if d not in s.blobs: return self.error(400, f'blob {d} not found')
            s.models[body['model']] = body
            return self.stream([{'status': x} for x in ('parsing GGUF', 'using existing layer', 'writing manifest', 'success')])
        if body['model'] not in s.models: return self.error(404, f"model '{body['model']}' not found")
        if self.path == '/api/show': return self.reply(200, json.dumps({'template': s.models[body['model']].get('template', '')}).encode())
        if self.path == '/api/chat':
            words = 'I', ' am', ' a', ' model', '.'
            return self.stream([{'message': {'role': 'assistant', 'content': w}, 'done': False} for w in words]
                               + [{'message': {'role': 'assistant', 'content': ''}, 'done': True, 'done_reason': 'stop', 'eval_count': 5}])
        self.error(404, 'not found')

@contextmanager
def fake(faults=None, version='0.12.3'):
    server = ThreadingHTTPServer(('127.0.0.1', 0), FakeOllama)
    server.blobs, server.models, server.bodies, server.seen, server.faults, server.version, server.daemon_threads = {}, {}, {}, [], faults or {}, version, True
    server.handle_error = lambda *a: None # a client that hangs up is no news
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.host = f'127.0.0.1:{server.server_port}'
    try: yield server
    finally: server.shutdown(); server.server_close()

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A run folder with a model of random weights, exported."
    import torch
    from codette_nb.data.tokenizer import ByteTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.quantize.gguf import convert_checkpoint_to_gguf
    from codette_nb.train.checkpoint import save_checkpoint
    torch.manual_seed(0)
    tok, folder = ByteTokenizer(), tmp_path_factory.mktemp('run')
    model = create_codette_model(TransformerConfig(tok.vocab_size, 256, 64, 2, 4))
    save_checkpoint(folder/'checkpoints/model_best', model, tok)
    convert_checkpoint_to_gguf(folder, None, folder/'model.gguf', name='My Model')
    write_modelfile(folder/'Modelfile', 'model.gguf', system='You are codette.', context_length=256)
    return folder

# What arrives.

def test_from_file_to_answer(run):
    with fake() as server:
        code, out, err = codette('deploy', run, '--host', server.host)
        assert code == 0, err
        assert re.search(r'^my-model is made in Ollama 0.12.3 at http://127.0.0.1:\d+: .* sent$', out, re.M) and out.endswith('\nollama run my-model\n')
        assert '> Who are you?\nI am a model.\n' in out
        digest, = server.blobs
        assert server.blobs[digest] == (run/'model.gguf').read_bytes()
        made = server.bodies['/api/create']
        assert made == dict(model='my-model', stream=True, files={'model.gguf': digest}, template=OLLAMA_TEMPLATE, system='You are codette.',
                            parameters=dict(temperature=.8, top_p=.95, stop=['<|im_end|>', '<|im_start|>'], num_ctx=256))
        assert server.bodies['/api/chat']['messages'] == [{'role': 'user', 'content': 'Who are you?'}]

def test_what_is_there_is_not_sent_again(run):
    with fake() as server:
        first = deploy(run, 'one', server.host, quiet=True)
        again = deploy(run/'model.gguf', 'me/two:q8', server.host, question='', quiet=True)
        assert (first.sent, again.sent, again.answer, first.digest) == (True, False, '', again.digest) and set(server.models) == {'one', 'me/two:q8'}
        assert [p for p in server.seen if 'blobs' in p] == [f'/api/blobs/{first.digest}'] and server.seen.count('/api/chat') == 1

def test_a_model_is_replaced_only_by_force(run):
    with fake() as server:
        deploy(run, 'mine', server.host, quiet=True)
        before = len(server.seen)
        code, out, err = codette('deploy', run, '--name', 'mine', '--host', server.host)
        assert (code, out) == (1, '') and 'has a model mine already' in err and err.count('\n') == 1
        assert server.seen[before:] == ['/api/show']
        code, out, _ = codette('deploy', run, '--name', 'mine', '--host', server.host, '--force', '--ask', 'And now?', '--json')
        said = json.loads(out)
        assert code == 0 and (said['name'], said['sent'], said['question'], said['answer']) == ('mine', False, 'And now?', 'I am a model.')

def test_without_a_modelfile(run, tmp_path):
    "The file's own chat template says whether ours fits."
    path = tmp_path/'model.gguf'
    raw = (run/'model.gguf').read_bytes()
    path.write_bytes(raw)
    assert create_fields(path) == dict(template=OLLAMA_TEMPLATE, parameters=ollama.PARAMETERS | dict(num_ctx=256))
    path.write_bytes(raw.replace(b"'<|im_start|>system", b"'<|IM_START|>system", 1))
    with pytest.raises(CodetteError, match='the chat template is none that is known in the language of Ollama'): create_fields(path)

@pytest.mark.parametrize('text, says', [('FROM ./other.gguf', 'is FROM ./other.gguf'), ('FROM llama3', 'is FROM llama3'), ('FROM ./model.gguf\nADAPTER ./x', 'for adapter'),
                                        ('FROM ./model.gguf\nMESSAGE user hello', 'for message'), ('TEMPLATE x', 'has no FROM line')])
def test_a_modelfile_that_is_not_sent(run, tmp_path, text, says):
    (tmp_path/'model.gguf').write_bytes((run/'model.gguf').read_bytes())
    (tmp_path/'Modelfile').write_text(text, 'utf-8')
    with fake() as server, pytest.raises(CodetteError, match=says): deploy(tmp_path, host=server.host)
    assert server.seen == []

# What goes wrong.

def refused(*argv):
    "The sentence with which the command is refused."
    code, out, err = codette('deploy', *argv)
    assert (code, out) == (1, '') and err.startswith('codette: ') and err.count('\n') == 1, (code, out, err)
    return err

def free_port():
    import socket
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

def test_no_ollama(run, monkeypatch):
    where = f'127.0.0.1:{free_port()}'
    said = refused(run, '--host', where)
    assert f'no Ollama answers at http://{where}' in said and 'ollama serve' in said and 'codette chat' in said
    monkeypatch.setenv('OLLAMA_HOST', where)
    assert f'no Ollama answers at http://{where}' in refused(run)

def cut(handler, length):
    "Reads half of what is sent and hangs up."
    handler.rfile.read(length//2)
    handler.close_connection = True
    handler.connection.close()

def drain(handler, length): handler.rfile.read(length)
def answers(status, said): return lambda h, n: (drain(h, n), h.error(status, said))
def says(raw): return lambda h, n: (drain(h, n), h.reply(200, raw))

def breaks_off(header, begun):
    "Begins an answer, or not even that, and hangs up."
    def does(handler, length):
        drain(handler, length)
        if header: handler.wfile.write(f'HTTP/1.1 200 OK\r\n{header}\r\n\r\n'.encode() + begun); handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()
    return does

FAULTS = {
    'blob: 500': ('/api/blobs/', answers(500, 'no space left on device'), 'refuses (HTTP 500): no space left on device'),
    'blob: cut': ('/api/blobs/', cut, 'broke off'),
    'blob: another digest': ('/api/blobs/', answers(400, 'digest mismatch, expected "a", got "b"'), 'HTTP 400): digest mismatch'),
    'create: 500': ('/api/create', answers(500, 'unsupported architecture'), 'unsupported architecture'),
    'create: an error in its stream': ('/api/create', says(b'{"status": "parsing GGUF"}\n{"error": "invalid file magic"}\n'), 'invalid file magic'),
    'create: no end': ('/api/create', says(b'{"status": "parsing GGUF"}\n'), 'stopped while it made my-model (parsing GGUF)'),
    'create: nothing': ('/api/create', says(b''), 'stopped while it made my-model'),
    'create: breaks off': ('/api/create', breaks_off('Content-Length: 1000', b'{"status": "parsing GGUF"}\n'), 'stopped while it made my-model (parsing GGUF)'),
    'create: a chunk breaks off': ('/api/create', breaks_off('Transfer-Encoding: chunked', b'1000\r\n{"status": "pars'), 'broke off'),
    'create: hangs up': ('/api/create', breaks_off('', b''), 'broke off'),
    'create: no JSON': ('/api/create', says(b'<html>\x1b[2J</html>\n'), 'is no Ollama'),
    'create: another JSON': ('/api/create', says(b'[1, 2]\n'), 'is no Ollama'),
    'show: 500': ('/api/show', answers(500, ''), 'HTTP 500'),
    'chat: 500': ('/api/chat', answers(500, 'llama runner process has terminated'), 'llama runner process has terminated'),
    'chat: no end': ('/api/chat', says(b'{"message": {"content": "I"}, "done": false}\n'), 'in the middle of its answer'),
    'chat: no message': ('/api/chat', says(b'{"message": 7, "done": false}\n'), 'in the middle of its answer'),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_a_fault_is_named(run, fault):
    path, does, want = FAULTS[fault]
    with fake({path: does}) as server: said = refused(run, '--host', server.host)
    assert want in said and said.strip().isprintable()
    if 'chat' not in fault: assert not server.models

def test_an_ollama_that_is_none(run):
    with fake(version='0.5.4') as server: assert 'too old' in refused(run, '--host', server.host)
    with fake() as server:
        FakeOllama.do_GET, real = (lambda h: h.reply(200, b'Hello')), FakeOllama.do_GET
        try: assert 'is no Ollama' in refused(run, '--host', server.host)
        finally: FakeOllama.do_GET = real

def test_silence_has_an_end(run):
    with fake({'/api/create': lambda h, n: (drain(h, n), threading.Event().wait(3))}) as server:
        with pytest.raises(CodetteError, match='nothing came for 0 seconds'): deploy(run, host=server.host, timeout=.3, quiet=True)

@pytest.mark.parametrize('name', ['two words', '../etc', 'ä', '', 'a:b:c', 'x'*81])
def test_a_name_with_wrong_characters(run, name):
    with fake() as server:
        assert 'is no name for Ollama' in refused(run, '--name', name, '--host', server.host)
        assert server.seen == []

def test_a_file_that_vanishes(run, tmp_path, monkeypatch):
    path = tmp_path/'model.gguf'
    path.write_bytes((run/'model.gguf').read_bytes())
    with fake() as server:
        monkeypatch.setattr(Ollama, 'knows', lambda *a: path.unlink())
        with pytest.raises(CodetteError, match='vanished before it was sent'): deploy(path, host=server.host)
        assert server.seen == []
    assert 'there is no model' in refused(path, '--host', server.host)

def test_a_file_that_shrinks(run, tmp_path, monkeypatch):
    path = tmp_path/'model.gguf'
    path.write_bytes((run/'model.gguf').read_bytes())
    real = ollama._Sent
    def shorter(*a): os.truncate(path, 5000); return real(*a)
    monkeypatch.setattr(ollama, '_Sent', shorter)
    with fake() as server, pytest.raises(CodetteError, match='became shorter while it was sent'): deploy(path, host=server.host, quiet=True)
    assert not server.models

def test_what_is_no_model(run, tmp_path):
    (tmp_path/'model.gguf').write_text('This is a text and no model at all.')
    (tmp_path/'cut.gguf').write_bytes((run/'model.gguf').read_bytes()[:50_000])
    with fake() as server:
        assert 'is not a GGUF file' in refused(tmp_path, '--host', server.host)
        assert 'is not a whole GGUF file' in refused(tmp_path/'cut.gguf', '--host', server.host)
        assert 'is no address' in refused(run, '--host', 'http://a/b')
        assert server.seen == []

# codette serve

def start(*argv):
    "`codette serve` in a process of its own, once it listens, and its address."
    # a test run in the background ignores Ctrl-C, and its children would too
    code = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from codette_nb.cli import entry; entry()'
    p = subprocess.Popen([sys.executable, '-c', code, 'serve', *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    timer = threading.Timer(120, p.kill); timer.daemon = True; timer.start()
    return p, p.stdout.readline()

@pytest.mark.skipif(llama_library() is None, reason='needs xllamacpp')
def test_serve(run):
    from codette_nb.data.records import render_chat
    from codette_nb.quantize.runtime import LlamaCpp
    p, line = start(run, '--port', 0, '--threads', 1, '--parallel', 2)
    try:
        url = re.search(r'http://127\.0\.0\.1:\d+', line)[0]
        def post(path, body):
            request = urllib.request.Request(url + path, json.dumps(body).encode(), {'Content-Type': 'application/json'})
            with urllib.request.urlopen(request, timeout=60) as f: return json.load(f)
        ask = dict(messages=[{'role': 'user', 'content': 'Who are you?'}], temperature=0, max_tokens=20)
        assert post('/apply-template', ask)['prompt'] == render_chat(ask['messages'], add_generation_prompt=True)
        said = post('/v1/chat/completions', ask)['choices'][0]['message']['content']
        with LlamaCpp(run, threads=1) as here: assert said == here.chat(ask['messages'], stream=False, temperature=0, max_tokens=20)
        code, _, err = codette('serve', run, '--port', url.rsplit(':')[-1])
        assert code == 1 and 'cannot be listened on' in err and err.count('\n') == 1
    finally:
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    assert p.returncode == 0 and 'stopped' in out and not err

def test_serve_what_is_no_model(tmp_path):
    for argv, says in (([tmp_path], 'holds no model.gguf'), ([tmp_path/'x.gguf'], 'there is no model'), ([tmp_path, '--port', '99999'], 'model')):
        code, out, err = codette('serve', *argv)
        assert (code, out) == (1, '') and says in err and err.count('\n') == 1
