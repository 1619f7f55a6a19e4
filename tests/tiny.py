"A model and a text so small that a test can train: the `codette` command in this process or in another, on a shrunken `nano`."
import io, json, os, random, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

BOOK = ['--samples', '0', '--size', 'nano', '--context', '64', '--batch', '4', '--vocab', '400', '--device', 'cpu']

def write_book(path, paragraphs=100, seed=0):
    "A text of simple sentences, different for each seed; returns the path."
    r = random.Random(seed)
    who = 'the wind', 'a river', 'my brother', 'the old clock', 'an engine', 'our garden', 'the teacher', 'that cat'
    does = 'carries', 'watches', 'finds', 'breaks', 'paints', 'follows', 'remembers', 'counts'
    where = 'harbour', 'winter', 'station', 'mountain', 'letter', 'window', 'forest', 'bridge', 'summer'
    line = lambda: f'{r.choice(who).capitalize()} {r.choice(does)} {r.choice(who)} near the {r.choice(where)} {r.randint(1, 99)}.'
    Path(path).write_text('\n\n'.join(' '.join(line() for _ in range(6)) for _ in range(paragraphs)), encoding='utf-8')
    return str(path)

def shrink(set=setattr):
    "Make `nano` tiny, measure often, and let the device be the CPU in float32 whatever a timing would say; `set` as `monkeypatch.setattr`."
    import codette_nb.model.config as config, codette_nb.pipeline as pipeline, codette_nb.train.plan as plan, codette_nb.train.probe as probe
    from codette_nb.core import Device
    from codette_nb.train.config import TrainingConfig
    small = config.PRESETS | {'nano': replace(config.PRESETS['nano'], hidden_size=64, num_layers=2, num_heads=2, intermediate_size=256)}
    for module in (config, plan): set(module, 'PRESETS', small)
    class Laptop(TrainingConfig):
        @classmethod
        def laptop(cls, **changes):
            return TrainingConfig.laptop(**dict(dtype='float32', threads=1, compile='none', eval_every=8, eval_windows=8, sample_every=0, log_every=2) | changes)
    for module in (pipeline, plan): set(module, 'TrainingConfig', Laptop)
    real = probe.detect_device
    def detect_device(prefer='auto'):
        return Device('cpu', 'test', 'float32', 1., 1, 0) if prefer in ('auto', 'cpu') else real(prefer)
    for module in (probe, plan, pipeline): set(module, 'detect_device', detect_device)

def codette(*argv):
    "Run the command in this process: exit code, standard output, error stream."
    from codette_nb.cli import run
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: code = run(list(map(str, argv)))
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()

# SLOW: seconds that each checkpoint waits half-way. FULL: checkpoints after which no file may grow beyond 64 KiB.
PROGRAM = '''
import os, sys, time
sys.path.insert(0, {tests!r})
import tiny
tiny.shrink()
import codette_nb.train.checkpoint as ck
save, slow, full = ck.save_tokenizer, float(os.environ.get('SLOW', 0)), int(os.environ.get('FULL', -1))
def save_tokenizer(*a):
    global full
    time.sleep(slow)
    save(*a)
    full -= 1
    if full == 0:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
ck.save_tokenizer = save_tokenizer
from codette_nb.cli import run
sys.exit(run())
'''.format(tests=str(Path(__file__).parent))

def start(*argv, cwd=None, **env):
    "Begin the command in another process, which can be killed."
    env = os.environ | {'OMP_NUM_THREADS': '1'} | {k: str(v) for k, v in env.items()}
    return subprocess.Popen([sys.executable, '-c', PROGRAM, *map(str, argv)], cwd=cwd, env=env, text=True, encoding='utf-8',
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def finish(process, timeout=120):
    "Wait for its end: exit code, standard output, error stream."
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err

def events(run):
    "The metrics of a run without what a clock decides."
    clock = 'time', 'elapsed', 'time_left', 'tokens_per_second', 'data', 'choice'
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in open(Path(run)/'metrics.jsonl', encoding='utf-8')]

def contents(folder):
    "Every file under a folder with its bytes, to see that nothing was changed."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}

def litter(folder):
    "Temporary files and folders that were left behind."
    return [p for p in Path(folder).rglob('*') if p.name.startswith('.') or p.name.endswith('.tmp') or '.unverified' in p.name]
