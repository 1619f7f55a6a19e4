"""Why the defaults are what they are: settings of training compared at equal time, one after the other, at three sizes, on two texts.

    python benchmarks/defaults.py [--seconds 15] [--text book.txt] [--sizes 64x2 128x4 nano] [--runs FOLDER] [--json defaults.json]

On the package's own mix and on plain English (Python's documentation, or a text of your own), with one vocabulary for all. Each question
changes one setting of the laptop defaults; every run trains for the same time, on the same text, and is measured in bits per byte on text
held out. With --runs it goes on where it stopped, after Ctrl-C too.
"""
import argparse, contextlib, json, platform, sys, tempfile
from pathlib import Path

QUESTIONS = dict(
    optimizer=[dict(optimizer='adamw', lr=lr) for lr in (3e-3, 6e-3)] + [dict()],
    muon_lr=[dict(muon_lr=lr) for lr in (.01, .02, .04)],
    adamw_rate_beside_muon=[dict(lr=lr) for lr in (2e-3, 4e-3, 1e-2)],
    momentum=[dict(momentum=m) for m in (.9, .95)],
    beta2=[dict(beta2=b) for b in (.95, .99)],
    passes=[dict(muon_passes=n) for n in (4, 5)],
    batch=[dict(batch_size=b) for b in (4, 8, 16)],
    batch_ramp=[dict(batch_ramp=r) for r in (0., .5)],
    length_ramp=[dict(length_ramp=r) for r in (0., .5)],
    zero_init=[dict(zero_init=z) for z in (False, True)],
    schedule=[dict(schedule='wsd', decay=.5), dict(schedule='wsd', decay=.7), dict(schedule='cosine')],
    floor=[dict(floor=f) for f in (0., .1)],
    together=[dict(), dict(momentum=.9, batch_ramp=.5, zero_init=True), dict(momentum=.9, batch_ramp=.5, zero_init=True, muon_lr=.04, lr=1e-2, beta2=.99)],
)
SIZES = {'64x2': (64, 2, 2, 128, 8), '128x4': (128, 4, 4, 256, 8), 'nano': (256, 4, 4, 256, 16)} # width, layers, heads, context, windows

def texts(book):
    "name → (training, held-out): the mix, and plain English."
    from codette_nb.data.corpora import python_docs, read_corpus
    from codette_nb.data.mixer import Mixer, Mixing
    split = Mixer(Mixing(8000), {}).split(quiet=True)
    prose = read_corpus(book).records if book else python_docs()
    return {'mix': (split.train, split.held_out['seen families'][:400]), 'prose': ([r for i, r in enumerate(prose) if i % 10], prose[::10])}

def experiment(size, train, held, vocab):
    from codette_nb.data.records import render
    from codette_nb.data.tokenizer import SentencePieceTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.train.config import TrainingConfig
    from codette_nb.train.experiments import Experiment
    width, layers, heads, context, batch = SIZES[size]
    tokenizer = SentencePieceTokenizer(vocab).fit([render(r) for r in train[:4000]])
    shape = TransformerConfig(tokenizer.vocab_size, context, width, layers, heads)
    base = TrainingConfig.laptop(batch_size=batch, eval_windows=48, save_every=10**6, sample_every=0, compile='none', keep=1)
    return Experiment(shape, tokenizer, train, held, base)

def compare(name, exp, folder, seconds, only):
    "Rows of one size on one text."
    from codette_nb.train.experiments import sweep
    rows, known = [], {}
    for question, changes in QUESTIONS.items():
        if only and question not in only: continue
        for change in changes:
            key = json.dumps({k: v for k, v in change.items() if v != getattr(exp.config, k)}, sort_keys=True) # the base is run once
            if key not in known:
                out = folder/name.replace(' ', '-')/(key.translate(str.maketrans('{}":, ', '      ')).replace(' ', '') or 'base')
                known[key] = sweep(exp, out, seconds=seconds, quiet=True, **json.loads(key)).rows[0]
            r = known[key]
            rows.append(dict(question=question, change=change, base=key == '{}', **{k: r[k] for k in ('bits_per_byte', 'best_loss', 'steps', 'tokens', 'tokens_per_second', 'ended')}))
            print(f"{name:12} {question:24} {json.dumps(change):40} {r['bits_per_byte'] or float('nan'):.4f} bits/byte  {r['steps'] or 0:,.0f} steps  {r['tokens_per_second'] or 0:,.0f} tokens/s", flush=True)
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seconds', type=float, default=15, help='of training for each run (default: %(default)s)')
    p.add_argument('--sizes', nargs='+', default=list(SIZES), choices=list(SIZES))
    p.add_argument('--questions', nargs='+', default=(), choices=list(QUESTIONS), help='only these (default: all)')
    p.add_argument('--text', help='a text file in place of the documentation of Python')
    p.add_argument('--vocab', type=int, default=2048, help='pieces (default: %(default)s)')
    p.add_argument('--runs', type=Path, help='folder to keep the runs in, and to go on from')
    p.add_argument('--json', type=Path, help='file to write the figures to')
    a = p.parse_args()
    with contextlib.nullcontext(a.runs) if a.runs else tempfile.TemporaryDirectory() as folder:
        found = [dict(size=size, text=text, rows=compare(f'{size} {text}', experiment(size, *parts, a.vocab), Path(folder), a.seconds, a.questions))
                 for text, parts in texts(a.text).items() for size in a.sizes]
    if a.json: a.json.write_text(json.dumps(dict(seconds=a.seconds, vocab=a.vocab, machine=f'{platform.system()} {platform.machine()}', found=found), indent=1) + '\n', encoding='utf-8')

if __name__ == '__main__': sys.exit(main())
