"""Why the defaults are what they are: settings of training compared at equal time, one after the other, at three sizes, on two texts.

    python benchmarks/defaults.py [--seconds 12] [--text book.txt] [--sizes 64x2 128x4 nano] [--runs FOLDER] [--json defaults.json]

On the package's own mix and on plain English (Python's documentation, or a text of your own), with one vocabulary for all. Each question
changes one setting of a base; every run gets as many steps as its setting makes in the same time here, and is measured in bits per byte on text
held out. With --runs it goes on where it stopped, after Ctrl-C too.
"""
import argparse, contextlib, json, platform, re, statistics, sys, tempfile, time
from dataclasses import replace
from pathlib import Path

# What every setting is compared with; no longer the defaults, where the comparison found better ones.
BASE = dict(optimizer='muon', lr=4e-3, muon_lr=.02, momentum=.95, beta2=.95, zero_init=False, schedule='wsd', decay=.5, floor=.1, batch_ramp=0., length_ramp=0.)
QUESTIONS = dict(
    optimizer=[dict(optimizer='adamw', lr=lr) for lr in (4e-3, 1e-2)] + [dict()],
    muon_lr=[dict(muon_lr=lr) for lr in (.01, .02, .04)],
    adamw_rate_beside_muon=[dict(lr=lr) for lr in (4e-3, 1e-2, 2e-2)],
    momentum=[dict(momentum=m) for m in (.9, .95)],
    beta2=[dict(beta2=b) for b in (.95, .99)],
    batch=[dict(batch_size=b) for b in (4, 8, 16)],
    batch_ramp=[dict(batch_ramp=r) for r in (0., .5)],
    length_ramp=[dict(length_ramp=r) for r in (0., .5)],
    zero_init=[dict(zero_init=z) for z in (False, True)],
    schedule=[dict(schedule='wsd'), dict(schedule='cosine')],
    low_memory=[dict(low_memory=True, lr=lr) for lr in (3e-4, 1e-3, 3e-3, 1e-2)], # with the steps that Muon makes in the time
    together=[dict(), dict(lr=1e-2, beta2=.99), dict(lr=1e-2, beta2=.99, length_ramp=.5), dict(lr=1e-2, beta2=.99, length_ramp=.5, momentum=.9, zero_init=True)],
)
# width, layers, heads, context, windows, and how many times as long as asked for it trains
SIZES = {'64x2': (64, 2, 2, 128, 8, 2/3), '128x4': (128, 4, 4, 256, 8, 1), 'nano': (256, 4, 4, 256, 16, 2)}

def texts(book):
    "name → (training, held-out): the mix, and plain English."
    from codette_nb.data.corpora import python_docs, read_corpus
    from codette_nb.data.mixer import Mixer, Mixing
    split = Mixer(Mixing(8000), {}).split(quiet=True)
    prose = read_corpus(book).records if book else python_docs()
    return {'mix': (split.train, split.held_out['seen families'][:400]), 'prose': ([r for i, r in enumerate(prose) if i % 10], prose[::10])}

def experiment(size, train, held, vocab, known):
    from codette_nb.data.records import render
    from codette_nb.data.tokenizer import SentencePieceTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.train.config import TrainingConfig
    from codette_nb.train.experiments import Experiment
    width, layers, heads, context, batch, _ = SIZES[size]
    tokenizer = SentencePieceTokenizer(vocab).fit([render(r) for r in train[:4000]])
    from codette_nb.train.probe import settle
    shape = TransformerConfig(tokenizer.vocab_size, context, width, layers, heads)
    base = TrainingConfig.laptop(**BASE, batch_size=batch, eval_windows=48, save_every=10**6, sample_every=0, compile='none', keep=1)
    return Experiment(shape, tokenizer, train, held, replace(base, **known) if known else settle(base, shape)[0]) # one number format and one number of threads for all

def step_time(exp, change):
    "Seconds of an optimizer step here: the lower quartile of some."
    from codette_nb.train.experiments import Trial
    with tempfile.TemporaryDirectory() as folder:
        trial, times = Trial(exp.trainer(Path(folder)/'run', change)), []
        for _ in range(22):
            begin = time.perf_counter(); trial.step(1e-3)
            times.append(time.perf_counter() - begin)
    return statistics.quantiles(times[2:])[0]

PACES = 'optimizer', 'muon_passes', 'batch_size' # what a step's time depends on

def paced(exp, change): return {k: change[k] for k in PACES if change.get(k, getattr(exp.config, k)) != getattr(exp.config, k)}

def paces(exp, questions):
    "Seconds of a step for every setting whose steps differ in cost. Measured before anything is trained: other work on the machine does not count later."
    step_time(exp, {}) # the first in a process is slow
    return {k: step_time(exp, json.loads(k)) for k in dict.fromkeys(json.dumps(paced(exp, change)) for q in questions for change in QUESTIONS[q])}

def compare(name, exp, folder, seconds, questions, pace):
    "Rows of one size on one text."
    from codette_nb.train.experiments import sweep
    rows, known = [], {}
    for question in questions:
        for change in QUESTIONS[question]:
            key = json.dumps({k: v for k, v in change.items() if v != getattr(exp.config, k)}, sort_keys=True) # the base is run once
            if key not in known:
                tokens = .5*(1/4 + 1/2)/2 + .5 if change.get('batch_ramp') else 1 # this ramp reads fewer tokens in its steps, and so makes more of them
                steps = round(seconds/pace[json.dumps(paced(exp, change))]/tokens)
                out = folder/name.replace(' ', '-')/(re.sub(r'[^a-z0-9.]+', '-', key.lower()).strip('-') or 'base')
                known[key] = sweep(exp, out, steps=steps, quiet=True, **json.loads(key)).rows()[0]
            r = known[key]
            rows.append(dict(question=question, change=change, base=key == '{}', **{k: r[k] for k in ('bits_per_byte', 'best_loss', 'steps', 'tokens', 'ended')}))
            print(f"{name:12} {question:24} {json.dumps(change):40} {r['bits_per_byte'] or float('nan'):.4f} bits/byte  {r['steps'] or 0:,.0f} steps", flush=True)
    return rows

def note(path, common, part):
    "Put the rows of one size on one text into the file, in the place of those that it has of the same questions."
    old = json.loads(path.read_text(encoding='utf-8'))['found'] if path.exists() else []
    asked = {r['question'] for r in part['rows']}
    for o in old:
        if (o['size'], o['text']) == (part['size'], part['text']): part['rows'] = [r for r in o['rows'] if r['question'] not in asked] + part['rows']
    found = [o for o in old if (o['size'], o['text']) != (part['size'], part['text'])] + [part]
    path.write_text(json.dumps(common | dict(machine=f'{platform.system()} {platform.machine()}', found=found), indent=1) + '\n', encoding='utf-8')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=12, help='of training for each run of 128x4, two thirds for 64x2, twice for nano (default: %(default)s)')
    p.add_argument('--sizes', nargs='+', default=list(SIZES), choices=list(SIZES))
    p.add_argument('--texts', nargs='+', default=['mix', 'prose'], choices=['mix', 'prose'])
    p.add_argument('--questions', nargs='+', default=list(QUESTIONS), choices=list(QUESTIONS), help='only these (default: all)')
    p.add_argument('--text', help='a text file in place of the documentation of Python')
    p.add_argument('--vocab', type=int, default=2048, help='pieces (default: %(default)s)')
    p.add_argument('--runs', type=Path, help='folder to keep the runs in, and to go on from')
    p.add_argument('--json', type=Path, help='file to write the figures to')
    a = p.parse_args()
    with contextlib.nullcontext(a.runs) if a.runs else tempfile.TemporaryDirectory() as folder:
        file = Path(folder)/'machine.json' # so that a run that goes on gives each setting what it gave the others
        known = json.loads(file.read_text()) if file.exists() else {}
        todo = {(size, text): experiment(size, *parts, a.vocab, known.get(size, {}).get('settings')) for text, parts in texts(a.text).items() if text in a.texts for size in a.sizes}
        for (size, _), exp in todo.items(): # a step costs the same on any text
            if size not in known: known[size] = dict(settings={k: getattr(exp.config, k) for k in ('device', 'dtype', 'threads')}, paces=paces(exp, QUESTIONS))
        file.write_text(json.dumps(known))
        for (size, text), exp in todo.items():
            rows = compare(f'{size} {text}', exp, Path(folder), a.seconds*SIZES[size][-1], a.questions, known[size]['paces'])
            if a.json: note(a.json, dict(seconds=a.seconds, vocab=a.vocab, base=BASE), dict(size=size, text=text, rows=rows))

if __name__ == '__main__': sys.exit(main())
