"A run so small that it can be killed and resumed many times in a minute; processes that are forked with torch already imported."
import json, multiprocessing, os, random, time
from pathlib import Path
from safetensors.torch import load_file
from codette_nb.train.checkpoint import check_checkpoint
import tiny

CONFIG = dict(max_steps=22, batch_size=4, optimizer='muon', lr=4e-3, schedule='wsd', warmup_steps=3, eval_every=4, eval_windows=4, save_every=5, keep=2,
              log_every=1, sample_every=8, patience=50, batch_ramp=.3, length_ramp=.4, seed=3, device='cpu', dtype='float32', threads=1, compile='none')
CONTROLS = {7: ('lr', dict(factor=.5)), 12: ('weights', dict(weights={'river': 2.}))}

def texts(n, seed):
    "Records of two sources; 8 of them are read in about nine steps."
    from codette_nb.data.records import Record
    r = random.Random(seed)
    words = 'one two three river stone garden seven eight winter morning'.split()
    return [Record(source=('river', 'wind')[i % 2], category='text', text=' '.join(r.choice(words) for _ in range(12)) + '.') for i in range(n)]

def make(run, changes=None, resume=False, controls=True, dropout=.1):
    "The trainer of the run, as it was left where `resume` is true."
    import torch
    from codette_nb.data.tokenizer import ByteTokenizer
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.train.checkpoint import latest_checkpoint
    from codette_nb.train.config import TrainingConfig
    from codette_nb.train.trainer import CodetteTrainer
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = create_codette_model('nano', vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, context_length=32, dropout=dropout)
    trainer = CodetteTrainer(model, ByteTokenizer(300), texts(8, 1), texts(6, 2), TrainingConfig(**CONFIG | (changes or {})), run, resume=resume)
    trainer.sample_prompt = 'one'
    if controls: trainer.listeners.append(lambda e: control(trainer, e))
    if resume: trainer.load(latest_checkpoint(run, begin=True))
    return trainer

def control(trainer, e):
    "What somebody would do by hand while the run goes on; a resumed run does by itself what is in its record."
    if e['event'] != 'step' or e['step'] not in CONTROLS: return
    command, args = CONTROLS[e['step']]
    if not any(c['step'] == e['step'] for c in trainer.controls): trainer.ask(command, **args)

def train(run, changes=None, resume=False):
    "What a process does."
    with open(Path(run).parent/f'{Path(run).name}.err', 'a') as f: os.dup2(f.fileno(), 2)
    make(run, changes, resume).fit(quiet=True)

def process(run, changes=None, resume=False):
    "Begin it."
    os.environ.setdefault('PYTHONPATH', str(Path(__file__).parent))
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'codette_nb.train.trainer', 'resumable'])
    p = context.Process(target=train, args=(str(run), changes, resume))
    p.start()
    return p

def finish(p, seconds=300):
    "Wait for its end; returns its exit code, negative for a signal."
    p.join(seconds)
    if p.is_alive(): p.kill(); p.join(); raise AssertionError('it does not end')
    return p.exitcode

def kill_when(p, seen, seconds=300):
    "SIGKILL at the moment when `seen()`; false if the process had ended by itself."
    end = time.monotonic() + seconds
    while not seen():
        if not p.is_alive(): return False
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(.0005)
    p.kill()
    p.join()
    return True

def lines(run):
    "Lines in the metrics so far."
    try: return (Path(run)/'metrics.jsonl').read_bytes().count(b'\n')
    except OSError: return 0

def unfinished(run, name):
    "Whether a checkpoint of a name is being written."
    try: return any(f.startswith(f'.{name}.') for f in os.listdir(Path(run)/'checkpoints'))
    except OSError: return False

def events(run):
    "The metrics without times; how many batches are made ahead is nobody's business."
    found = tiny.events(run)
    found[0]['config'].pop('prefetch', None)
    return found

def equal(a, b):
    "Two runs ended the same: checkpoints to the bit, events and trainer's state apart from times, and nothing left over."
    assert events(a) == events(b)
    names = [sorted(p.name for p in (r/'checkpoints').iterdir() if not p.name.startswith('superseded-')) for r in (a, b)]
    assert names[0] == names[1]
    for name in names[0]:
        x, y = (check_checkpoint(r/'checkpoints'/name) for r in (a, b))
        for file in ('model.safetensors', 'trainer.safetensors'):
            if not (y/file).exists(): assert name == 'model_best' and not (x/file).exists(); continue
            s, t = load_file(x/file), load_file(y/file)
            assert s.keys() == t.keys()
            for k in s: assert s[k].dtype == t[k].dtype and s[k].numpy().tobytes() == t[k].numpy().tobytes(), (name, file, k)
        if (y/'trainer.json').exists():
            s, t = (json.loads((p/'trainer.json').read_text()) for p in (x, y))
            for d in (s, t): d.pop('elapsed'); d.pop('metrics_bytes')
            assert s == t, name
    s, t = ((r/'controls.jsonl').read_text() if (r/'controls.jsonl').exists() else '' for r in (a, b))
    assert s == t and not tiny.litter(a)
