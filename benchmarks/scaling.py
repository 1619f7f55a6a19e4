"""What a model of N parameters comes to after D bytes of this package's own mix: the runs behind the forecast of `codette plan`.

    python benchmarks/scaling.py [--seconds 280] [--only 2x64,3x128] [--json scaling.json]

Each run has a whole schedule of its own, so that every loss is that of a finished model and none is taken before the rate has fallen.
Runs that the file holds already are not repeated: call it again until nothing is left (about 15 minutes of two cores in all).
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

# shape: layers, width, heads, pieces. What is run: (steps, windows to a batch, one record in so many)
SHAPES = {'2x64': (2, 64, 2, 2048), '2x128': (2, 128, 2, 2048), '3x192': (3, 192, 3, 2048), '4x256': (4, 256, 4, 2048),
          '6x384/4096': (6, 384, 6, 4096)}
RUNS = {'2x64': [(64, 16, 1), (256, 16, 1), (256, 16, 8)],
        '2x128': [(64, 16, 1), (256, 16, 1), (768, 16, 1), (768, 16, 4), (1536, 16, 1), (1024, 4, 1), (64, 64, 1)],
        '3x192': [(64, 16, 1), (256, 16, 1), (512, 16, 1), (1024, 16, 1)],
        '4x256': [(48, 16, 1), (160, 16, 1), (1024, 16, 1)],
        '6x384/4096': [(40, 16, 1)]}

def one(split, tokenizer, shape, steps, windows, part, threads):
    "Train one model from nothing; what it came to."
    layers, width, heads, vocab = SHAPES[shape]
    config = TransformerConfig(vocab, CONTEXT, width, layers, heads)
    training = TrainingConfig.laptop(max_steps=steps, batch_size=windows, eval_every=steps, save_every=steps, sample_every=0, eval_windows=128, compile='none', threads=threads)
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
    return dict(shape=shape, steps=steps, windows=windows, part=part, parameters=num_parameters(config), vocabulary=vocab, tokens=tokens,
                bytes=round(tokens*bytes_per_token), unique_bytes=n_bytes, batch_bytes=round(windows*CONTEXT*bytes_per_token),
                seconds=time.perf_counter() - t, bits_per_byte={k: v['bits_per_byte'] for k, v in sets.items()})

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='example: python benchmarks/scaling.py --seconds 280')
    parser.add_argument('--seconds', type=float, default=1e9, help='begin no run that would end later (default: no limit)')
    parser.add_argument('--only', default=None, help='shapes, with commas between (default: all)')
    parser.add_argument('--samples', type=int, default=10000, help='generated records (default: 10000, about as many as quick-train makes for five minutes)')
    parser.add_argument('--threads', type=int, default=0, help='CPU threads (default: as many as are fastest)')
    parser.add_argument('--fresh', action='store_true', help='forget what the file holds')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    begun = time.perf_counter()
    rows = [] if args.fresh or not args.json.exists() else json.loads(args.json.read_text(encoding='utf-8'))['runs']
    split = Mixer(Mixing(args.samples, weights=dict(prose=2.)), {'prose': python_docs()}).split(quiet=True)
    tokenizers, done, rate = {}, {(r['shape'], r['steps'], r['windows'], r['part']) for r in rows}, {}
    print(f"{'shape':>12}{'parameters':>12}{'steps':>7}{'windows':>9}{'tokens':>11}{'readings':>10}{'seconds':>9}   bits per byte")
    for shape in args.only.split(',') if args.only else SHAPES:
        for steps, windows, part in RUNS[shape]:
            if (shape, steps, windows, part) in done: continue
            if shape in rate and time.perf_counter() - begun + rate[shape]*steps*windows > args.seconds: continue
            if time.perf_counter() - begun > .8*args.seconds: continue
            vocab = SHAPES[shape][3]
            if vocab not in tokenizers: tokenizers[vocab] = SentencePieceTokenizer(vocab).fit(dict.fromkeys(render(r) for r in split.train))
            r = one(split, tokenizers[vocab], shape, steps, windows, part, args.threads)
            rate[shape] = r['seconds']/(steps*windows)
            rows.append(r)
            print(f"{shape:>12}{r['parameters']:12,}{steps:7}{windows:9}{r['tokens']:11,}{r['bytes']/r['unique_bytes']:10.2f}{r['seconds']:9.1f}   "
                  + ', '.join(f'{k} {v:.3f}' for k, v in r['bits_per_byte'].items()), flush=True)
            write_json(args.json, dict(python=platform.python_version(), torch=torch.__version__, context=CONTEXT, samples=args.samples,
                                       runs=sorted(rows, key=lambda r: (r['parameters'], r['vocabulary'], r['part'], r['windows'], r['tokens']))))
    left = sum(map(len, RUNS.values())) - len(rows)
    print(f'{len(rows)} runs, {left} left')
    return 0

if __name__ == '__main__': sys.exit(main())
