"A teacher behind a real llama-server, which serves a GGUF file made by this package: stored, repeated, cut off, killed, gone on with."
import asyncio, json, os, signal, subprocess, sys, time
from dataclasses import replace
import pytest
from tiny import codette
from codette_nb.core import CodetteError
from codette_nb.data.records import Record, read_jsonl

openai = pytest.importorskip('openai', reason='openai is not installed: pip install codette_nb[teacher]')
from codette_nb.data.teacher import Teacher, listen, request, as_prompt, teach

WHO = 'A cat', 'The moon', 'An oak', 'Rain', 'My clock', 'A whale'
FACTS = {f'What is {w.lower()}?': f'{w} is {what}.' for w, what in zip(WHO, (
    'an animal that sleeps by day', 'a stone that shines by night', 'a tree that lives for ages', 'water that falls from clouds',
    'a wheel that counts the hours', 'a beast as long as a ship'))}
QUESTIONS = list(FACTS)
MANY = [f'{q} {i}' for i in range(5) for q in QUESTIONS]   # never learnt: what comes is the model's own

SERVE = '''
import sys, time, xllamacpp as x
p = x.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = sys.argv[1], 512, 2, 1
p.verbosity, p.warmup, p.ui, p.offline = -1, False, False, True
p.hostnames, p.port = ['127.0.0.1'], 0
server = x.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
'''

class Server:
    "llama-server in a process of its own; it ends with this one, or with `kill`."
    def __init__(self, gguf):
        self.process = subprocess.Popen([sys.executable, '-c', SERVE, str(gguf)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | {'OMP_NUM_THREADS': '1'})
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith('http://127.0.0.1:')

    def kill(self):
        self.process.kill(); self.process.communicate(timeout=30)

@pytest.fixture(scope='module')
def gguf(tmp_path_factory):
    "A model that has learnt six answers by heart."
    import torch
    from codette_nb.core import set_seed
    from codette_nb.data.tokenizer import ByteTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.quantize.gguf import convert_checkpoint_to_gguf
    from codette_nb.train.checkpoint import save_checkpoint
    set_seed(0)
    tok = ByteTokenizer()
    chats = [Record(messages=({'role': 'user', 'content': q}, {'role': 'assistant', 'content': a})) for q, a in FACTS.items()]
    docs = tok.document(chats)
    n = max(map(len, docs))
    x = torch.tensor([d + [tok.pad_id]*(n - len(d)) for d in map(list, docs)])
    y = x[:, 1:].clone()
    model = create_codette_model(TransformerConfig(tok.vocab_size, 256, 64, 2, 4))
    opt = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(150):
        loss = model(x[:, :-1], y)
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss < .5
    run = tmp_path_factory.mktemp('teacher')
    save_checkpoint(run/'checkpoints/model_best', model, tok)
    convert_checkpoint_to_gguf(run, tok, run/'model.gguf', quantization='fp16')
    return run/'model.gguf'

@pytest.fixture(scope='module')
def server(gguf):
    s = Server(gguf)
    yield s
    s.kill()

@pytest.fixture
def teacher(server): return Teacher('codette', server.url, temperature=0, max_tokens=80, concurrency=1, backoff=.05)

def answers(out): return [json.loads(line) for line in open(f'{out}.answers', encoding='utf-8')]

def test_a_stream_arrives(teacher):
    "Piece by piece, with a finish reason and the server's own count of tokens."
    pieces = []
    class Counting(openai.AsyncOpenAI):
        def _process_response_data(self, **kw):
            pieces.append(kw['data'])
            return super()._process_response_data(**kw)
    async def once():
        async with Counting(api_key='none', base_url=teacher.url) as client: return await listen(client, request(as_prompt(QUESTIONS[0]), teacher))
    answer = asyncio.run(once())
    assert (answer.text, answer.finish) == (FACTS[QUESTIONS[0]], 'stop')
    assert len(pieces) > 5 and answer.tokens_out >= len(answer.text) and answer.tokens_in > len(QUESTIONS[0])

def test_examples_are_stored(teacher, tmp_path):
    report = teach(QUESTIONS, replace(teacher, prices=(1, 2)), tmp_path/'t.jsonl', quiet=True)
    records = list(read_jsonl(tmp_path/'t.jsonl'))
    assert {r.messages[0]['content']: r.messages[1]['content'] for r in records} == FACTS
    assert [r.messages[0]['content'] for r in records] == QUESTIONS
    assert {(r.source, r.category, r.meta['finish']) for r in records} == {('teacher', 'codette', 'stop')}
    assert (report.kept, report.requests, report.retries, report.failed.total()) == (6, 6, 0, 0)
    assert report.cost == pytest.approx((report.tokens_in + 2*report.tokens_out)/1e6) and report.tokens_out > 6*20

def test_nothing_is_asked_twice(teacher, tmp_path):
    first = teach(QUESTIONS, teacher, tmp_path/'t.jsonl', quiet=True)
    whole = (tmp_path/'t.jsonl').read_bytes()
    second = teach(QUESTIONS, replace(teacher, concurrency=4), tmp_path/'t.jsonl', quiet=True)
    assert (second.requests, second.known, second.kept) == (0, 6, first.kept) and (tmp_path/'t.jsonl').read_bytes() == whole

def test_the_order_is_that_of_the_questions(teacher, tmp_path):
    "Whatever is faster, one at a time or four."
    teach(MANY, teacher, tmp_path/'one.jsonl', quiet=True)
    teach(MANY, replace(teacher, concurrency=4), tmp_path/'four.jsonl', quiet=True)
    asked = [[r.messages[0]['content'] for r in read_jsonl(tmp_path/f'{n}.jsonl')] for n in ('one', 'four')]
    assert asked[1] == sorted(asked[1], key=MANY.index) and asked[0] == sorted(asked[0], key=MANY.index)
    assert len(answers(tmp_path/'four.jsonl')) == len(MANY)

def test_seeds_repeat(teacher, tmp_path):
    def drawn(seed, name):
        wild = replace(teacher, temperature=2., seed=seed, max_tokens=40, extra={'top_k': 0, 'top_p': 1, 'min_p': 0})
        teach(MANY[:6], wild, tmp_path/name, quiet=True)
        return [a['text'] for a in answers(tmp_path/name)]
    assert drawn(1, 'a') == drawn(1, 'b') != drawn(2, 'c')

def test_an_answer_that_is_cut_off_is_not_kept(teacher, tmp_path):
    report = teach(QUESTIONS, replace(teacher, max_tokens=5), tmp_path/'t.jsonl', quiet=True)
    assert (report.kept, dict(report.dropped)) == (0, {'truncated': 6})
    assert {a['finish'] for a in answers(tmp_path/'t.jsonl')} == {'length'} and (tmp_path/'t.jsonl').read_bytes() == b''
    assert teach(QUESTIONS, teacher, tmp_path/'t.jsonl', quiet=True).kept == 6   # other settings, other answers

def test_a_prompt_that_is_too_long(teacher, tmp_path):
    report = teach([QUESTIONS[0], 'long ' * 500, QUESTIONS[1]], teacher, tmp_path/'t.jsonl', quiet=True)
    assert (report.kept, report.failed.total(), report.requests) == (2, 1, 3)
    assert 'context size' in str(report)

CLIENT = '''
import asyncio, json, signal, sys
from codette_nb.data.teacher import Teacher, teach
questions, settings, out, loop = json.loads(sys.argv[1])
async def within(): teach(questions, Teacher(**settings), out, quiet=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores Ctrl-C, and its children would too
# as in a notebook, whose loop leaves Ctrl-C to Python
asyncio.new_event_loop().run_until_complete(within()) if loop else teach(questions, Teacher(**settings), out, quiet=True)
'''

def client(teacher, out, loop=False):
    settings = dict(model=teacher.model, url=teacher.url, temperature=0, max_tokens=80, concurrency=2, rate_per_minute=600, retries=2, backoff=.1)
    return subprocess.Popen([sys.executable, '-c', CLIENT, json.dumps([MANY, settings, str(out), loop])], stderr=subprocess.PIPE, text=True,
                            env=os.environ | {'OMP_NUM_THREADS': '1'})

def wait_for(out, n, process):
    end = time.monotonic() + 60
    while not os.path.exists(f'{out}.answers') or len(open(f'{out}.answers', 'rb').read().splitlines()) < n:
        assert process.poll() is None and time.monotonic() < end, process.stderr.read() if process.poll() is not None else 'slow'
        time.sleep(.01)

@pytest.mark.parametrize('how', ['kill', 'interrupt', 'interrupt within a loop'])
def test_a_client_that_is_stopped_goes_on(how, teacher, tmp_path):
    "What was answered is on the disk, and is not asked again."
    if how != 'kill' and os.name != 'posix': pytest.skip('Ctrl-C cannot be sent to one process on Windows')
    out = tmp_path/'t.jsonl'
    process = client(teacher, out, 'loop' in how)
    wait_for(out, 8, process)
    process.send_signal(signal.SIGKILL if how == 'kill' else signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    if how != 'kill': assert err.rstrip().endswith('KeyboardInterrupt'), err
    before = len(open(f'{out}.answers', 'rb').read().splitlines())
    assert 8 <= before < len(MANY)
    report = teach(MANY, teacher, out, quiet=True)
    assert report.prompts == len(MANY) and report.requests == len(MANY) - report.known and report.known >= before - 1
    assert len({a['prompt'] for a in answers(out)}) == len(answers(out)) == len(MANY)
    fresh = teach(MANY, teacher, tmp_path/'fresh.jsonl', quiet=True)
    stored = lambda path: {r.messages[0]['content'] for r in read_jsonl(path)}
    assert report.kept == fresh.kept and stored(out) == stored(tmp_path/'fresh.jsonl')

def test_a_server_that_vanishes(gguf, teacher, tmp_path):
    "The call ends with one sentence; another server, at another address, goes on."
    mortal, out = Server(gguf), tmp_path/'t.jsonl'
    process = client(replace(teacher, url=mortal.url), out)
    wait_for(out, 5, process)
    mortal.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and 'CodetteError' in err.splitlines()[-1] and 'nothing answers there' in err.splitlines()[-1]
    report = teach(MANY, teacher, out, quiet=True)
    assert report.known >= 5 and report.requests == len(MANY) - report.known
    assert len({a['prompt'] for a in answers(out)}) == len(answers(out)) == len(MANY)

def test_nobody_there(teacher, tmp_path):
    with pytest.raises(CodetteError, match='nothing answers there: start the server') as e:
        teach(QUESTIONS, replace(teacher, url='http://127.0.0.1:9'), tmp_path/'t.jsonl', quiet=True)
    assert '\n' not in str(e.value) and not (tmp_path/'t.jsonl').read_bytes()

# The command.

def test_the_command(server, tmp_path):
    (tmp_path/'ask.txt').write_text('\n'.join(QUESTIONS), encoding='utf-8')
    argv = ['teach', 'codette', '--url', server.url, '--prompts', tmp_path/'ask.txt', '--out', tmp_path/'t.jsonl', '--temperature', 0, '--prices', '1,2']
    code, out, err = codette(*argv, '--json')
    assert (code, err) == (0, '') and json.loads(out)['kept'] == 6
    code, out, _ = codette(*argv)
    assert code == 0 and '6 prompts had been answered before' in out and '0 requests' in out
    code, out, err = codette('data', '--n', 20, '--data', tmp_path/'t.jsonl', '--out', tmp_path/'mix.jsonl', '--json')
    assert code == 0 and 'teacher' in {r.source for r in read_jsonl(tmp_path/'mix.jsonl')}, err

@pytest.mark.parametrize('argv, says', [
    (['--prompts', 'ask.txt', '--url', 'http://127.0.0.1:9'], 'nothing answers there'), (['--prompts', 'none.txt'], 'there is no file'), ([], 'nothing to ask'),
    (['--own', 5, '--prices', 'cheap'], 'write two numbers'), (['--own', 5, '--temperature', 9, '--concurrency', 0], 'concurrency is 0'), (['--prompts', 'bad.jsonl'], 'bad.jsonl:1: ')])
def test_what_the_command_refuses(argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'ask.txt').write_text('Why?\n'); (tmp_path/'bad.jsonl').write_text('{"title": 1}\n')
    code, out, err = codette('teach', 'codette', *argv)
    assert (code, out) == (1, '') and says in err and err.startswith('codette: ') and err.count('\n') == 1
