"""What a model of N parameters comes to after D bytes of this package's own mix: the runs behind the forecast of `codette plan`.

    python benchmarks/scaling.py [--seconds 280] [--only 2x64,3x128] [--json scaling.json]

Each run has a whole schedule of its own, so that every loss is that of a finished model and none is taken before the rate has fallen.
Runs that the file holds already are not repeated: call it again until nothing is left (about half an hour of two cores in all).
"""
import argparse, json, platform, sys, tempfile, time
from pathlib import Path
import torch
from codette_nb.core import write_json
from codette_nb.data.corpora import python_docs
from codette_nb.data.mixer import Mixer, Mixing
from codette_nb.data.records import render
from codette_nb.data.tokenizer import SentencePieceTokenizer
from codette_nb.model.config import TransformerConfig, num_parameters
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.config import TrainingConfig
from codette_nb.train.trainer import CodetteTrainer

CONTEXT, WINDOWS = 256, 16 # tokens to a window, windows to a batch

# shape: layers, width, heads, pieces. What is run: (steps, windows to a batch, one record in so many, generated records)
SHAPES = {'2x64': (2, 64, 2, 2048), '2x128': (2, 128, 2, 2048), '3x192': (3, 192, 3, 2048), '4x256': (4, 256, 4, 2048),
          '6x384/4096': (6, 384, 6, 4096)}
RUNS = {'2x64': [(64, 16, 1, 10_000), (256, 16, 1, 10_000), (256, 16, 8, 10_000)],
        '2x128': [(64, 16, 1, 10_000), (256, 16, 1, 10_000), (768, 16, 1, 10_000), (768, 16, 4, 10_000), (1536, 16, 1, 10_000), (1024, 4, 1, 10_000),
                  (64, 64, 1, 10_000), (256, 16, 1, 0), (256, 16, 1, 1000), (768, 16, 1, 1000), (256, 16, 1, 3000), (768, 16, 1, 3000), (768, 16, 1, 30_000)],
        '3x192': [(64, 16, 1, 10_000), (256, 16, 1, 10_000), (512, 16, 1, 10_000), (1024, 16, 1, 10_000)],
        '4x256': [(48, 16, 1, 10_000), (160, 16, 1, 10_000), (1024, 16, 1, 10_000), (160, 16, 1, 1000)],
        '6x384/4096': [(40, 16, 1, 10_000)]}

def text_of(records):
    "What there is of each kind of text: its share of all that is read, and how many bytes of it are different."
    size = lambda texts: sum(len(x.encode()) for x in texts)
    kinds = {'prose': [render(r) for r in records if r.source == 'prose'], 'generated': [render(r) for r in records if r.source != 'prose']}
    return {k: dict(share=size(v)/size(x for w in kinds.values() for x in w), unique_bytes=size(dict.fromkeys(v))) for k, v in kinds.items()}

def one(split, tokenizer, shape, steps, windows, part, samples, threads, **changes):
    "Train one model from nothing; what it came to."
    layers, width, heads, vocab = SHAPES[shape]
    config = TransformerConfig(vocab, CONTEXT, width, layers, heads)
    training = TrainingConfig.laptop(max_steps=steps, batch_size=windows, eval_every=steps, save_every=steps, sample_every=0, eval_windows=128, compile='none', threads=threads, **changes)
    texts = split.train[::part]
    n_bytes = sum(len(render(r).encode()) for r in texts)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        t = time.perf_counter()
        trainer = CodetteTrainer(CustomTransformer(config), tokenizer, texts, split.held_out, training, out)
        seen = []
        trainer.listeners.append(lambda e: seen.append(e) if e['event'] in ('eval', 'step') else None)
        trainer.fit(quiet=True)
    sets = [e for e in seen if e['event'] == 'eval'][-1]['sets']
    tokens, bytes_per_token = [e for e in seen if e['event'] == 'step'][-1]['tokens'], n_bytes/trainer.train_set.num_tokens
    return dict(shape=shape, steps=steps, windows=windows, part=part, samples=samples, parameters=num_parameters(config), vocabulary=vocab, tokens=tokens,
                bytes=round(tokens*bytes_per_token), text=text_of(texts), batch_bytes=round(windows*CONTEXT*bytes_per_token),
                seconds=time.perf_counter() - t, bits_per_byte={k: v['bits_per_byte'] for k, v in sets.items()})

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='example: python benchmarks/scaling.py --seconds 280')
    parser.add_argument('--seconds', type=float, default=1e9, help='begin no run that would end later (default: no limit)')
    parser.add_argument('--only', default=None, help='shapes, with commas between (default: all)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: as many as are fastest)')
    parser.add_argument('--fresh', action='store_true', help='forget what the file holds')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    begun = time.perf_counter()
    rows = [] if args.fresh or not args.json.exists() else json.loads(args.json.read_text(encoding='utf-8'))['runs']
    docs, splits, tokenizers, rate = {'prose': python_docs()}, {}, {}, {}
    run_of = lambda r: (r['shape'], r['steps'], r['windows'], r['part'], r['samples'])
    done = set(map(run_of, rows))
    print(f"{'shape':>12}{'parameters':>12}{'steps':>7}{'windows':>9}{'records':>9}{'tokens':>11}{'prose':>7}{'seconds':>9}   bits per byte")
    for shape in args.only.split(',') if args.only else SHAPES:
        for steps, windows, part, samples in RUNS[shape]:
            if (shape, steps, windows, part, samples) in done: continue
            if shape in rate and time.perf_counter() - begun + rate[shape]*steps*windows > args.seconds: continue
            if time.perf_counter() - begun > .8*args.seconds: continue
            vocab = SHAPES[shape][3]
            if samples not in splits: splits[samples] = Mixer(Mixing(samples, weights=dict(prose=2.)), docs).split(quiet=True)
            split, key = splits[samples], (vocab, samples)
            if key not in tokenizers: tokenizers[key] = SentencePieceTokenizer(vocab).fit(dict.fromkeys(render(r) for r in split.train))
            r = one(split, tokenizers[key], shape, steps, windows, part, samples, args.threads)
            rate[shape] = r['seconds']/(steps*windows)
            rows.append(r)
            print(f"{shape:>12}{r['parameters']:12,}{steps:7}{windows:9}{samples:9,}{r['tokens']:11,}{r['text']['prose']['share']:7.0%}{r['seconds']:9.1f}   "
                  + ', '.join(f'{k} {v:.3f}' for k, v in r['bits_per_byte'].items()), flush=True)
            write_json(args.json, dict(python=platform.python_version(), torch=torch.__version__, context=CONTEXT,
                                       runs=sorted(rows, key=lambda r: (r['parameters'], r['vocabulary'], r['samples'], r['part'], r['windows'], r['tokens']))))
    left = sum(map(len, RUNS.values())) - len(rows)
    print(f'{len(rows)} runs, {left} left')
    return 0

if __name__ == '__main__': sys.exit(main())
