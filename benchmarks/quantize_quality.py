"""What rounding costs, measured in llama.cpp: its own quantiser, the same with importance, and this package's with feedback.

    python benchmarks/quantize_quality.py runs/quality
    python benchmarks/quantize_quality.py runs/quality --types q4_0 q4_k_m --tokens 20000
    python benchmarks/quantize_quality.py runs/quality --train book.txt --minutes 35    # trains the model first

Every file is written from the run's best checkpoint and run in llama.cpp, exactly (no flash attention, f32 key-value cache), on
held-out text of the run, as many tokens of each of its held-out sets. `KL` is the mean divergence from the fp32 file in nats a
token, `ratio` that to llama.cpp with importance; the intervals are 95 % of 2,000 bootstrap samples over sequences, for the ratio
the same sequences in both. Importance, second moments and gradients come from the training part only. llama.cpp's own files are
written by this package's encoders, whose bytes equal llama.cpp's (tests/test_llama_quantize.py).
"""
import argparse, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from codette_nb.core import write_json
from codette_nb.data.records import render
from codette_nb.pipeline import run_split
from codette_nb.quantize.calibrate import calibrate, calibration_windows
from codette_nb.quantize.gguf import GGUFConverter, tensor_names
from codette_nb.quantize.sequence import LayerByLayer
from codette_nb.quantize.verify import exact_settings, in_llama
from codette_nb.train.checkpoint import load_checkpoint

TYPES = ('q4_0', 'q4_k_m', 'q5_k_m', 'q6_k', 'q4_k_s', 'q3_k_m', 'q2_k', 'q8')

def train(run, texts, minutes):
    "A nano model on generated records and some text files, for at least so many minutes on this machine."
    data = [x for t in texts for x in ('--data', f'{t}:2')]
    subprocess.run([sys.executable, '-m', 'codette_nb.cli', 'train', '--size', 'nano', '--samples', '40000', '--batch', '16', '--steps', str(round(104*minutes)),
                    '--out', run, '--no-verify', *data], check=True)

def held_windows(tokenizer, split, length, tokens):
    "As many tokens of each held-out set."
    each = -(-tokens//len(split.held_out))
    out = [calibration_windows(tokenizer, [render(r) for r in records], length, each) for records in split.held_out.values()]
    return [w for part in out for w in part if len(w) > 1]

def logp(x):
    x = torch.from_numpy(np.array(x))
    return x.log_softmax(-1)

def logits(path, seqs):
    "A context in which llama.cpp's logits of each sequence are there."
    return in_llama(path, seqs, timeout=1800)

def figures(path, seqs, reference):
    "KL and negative log likelihood of each sequence: sums over its tokens."
    with logits(path, seqs) as a:
        if why := a.get('missing') or a.get('error'): sys.exit(f'{path}: {why}')
        if not exact_settings(a['log']): sys.exit('llama.cpp does not say that it computed exactly')
        kl, nll, same = [], [], []
        for ids, mine, true in zip(seqs, a['logits'], reference):
            p, q = logp(true), logp(mine)
            kl.append(float((p.exp()*(p - q)).sum(dtype=torch.float64)))
            nll.append(-float(q[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum(dtype=torch.float64)))
            same.append(int((p.argmax(-1) == q.argmax(-1)).sum()))
    return np.array(kl), np.array(nll), np.array(same)

def interval(f, n, draws=2000):
    "95 % of f over resampled sequences, all of whose figures f takes by index."
    r = np.random.default_rng(0)
    return np.quantile([f(r.integers(0, n, n)) for _ in range(draws)], [.025, .975]).tolist()

def row(name, how, size, seconds, got, base, n):
    kl, nll, same = got
    ratio = lambda i: kl[i].sum()/base[0][i].sum()
    every, predicted = slice(None), n - 1
    return dict(type=name, rounding=how, bytes=size, seconds=seconds, kl=kl.sum()/n.sum(), kl_interval=interval(lambda i: kl[i].sum()/n[i].sum(), len(n)),
                ratio=ratio(every), ratio_interval=interval(ratio, len(n)), perplexity=float(np.exp(nll.sum()/predicted.sum())),
                loss_interval=interval(lambda i: (nll - base[1])[i].sum()/predicted[i].sum(), len(n)),
                loss_more=(nll - base[1]).sum()/predicted.sum(), same_best=int(same.sum())/int(n.sum()))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', help='run folder')
    p.add_argument('--types', nargs='+', default=TYPES[:4], metavar='TYPE', help=f"(default: {' '.join(TYPES[:4])}; also measured: {' '.join(TYPES[4:])})")
    p.add_argument('--tokens', type=int, default=52_000, help='held-out tokens (default: %(default)s)')
    p.add_argument('--calibrate', type=int, default=60_000, metavar='TOKENS', help='training tokens to calibrate with (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0, help='of the choice of calibration text')
    p.add_argument('--train', nargs='+', metavar='TEXT', help='train the run first, on generated records and these text files')
    p.add_argument('--minutes', type=float, default=35., help='about how long (default: %(default)s)')
    p.add_argument('--json', default=Path(__file__).with_suffix('.json'), help='file to write the figures to (default: beside this file)')
    a = p.parse_args()
    if a.train: train(a.run, a.train, a.minutes)
    begin = time.time()
    recipe, split = run_split(a.run, quiet=True)
    model, tokenizer = load_checkpoint(a.run)
    length = model.config.context_length
    seqs = held_windows(tokenizer, split, length, a.tokens)
    n = np.array([len(s) for s in seqs])
    windows = calibration_windows(tokenizer, [render(r) for r in split.train], length, a.calibrate, a.seed)
    stats = calibrate(model, windows, tensor_names(model.config), quiet=True)
    feedback = LayerByLayer(model, windows, tensor_names(model.config), stats, text="the run's training text")
    print(f'{n.sum():,} held-out tokens in {len(n)} sequences; calibrated with {sum(map(len, windows)):,} training tokens, {time.time() - begin:.0f} s', flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as d:
        def write(kind, **more):
            t, path = time.time(), Path(d)/'model.gguf'
            r = GGUFConverter(a.run, tokenizer, kind, **more).write(path, force=True, quiet=True)
            return path, r.file_bytes, time.time() - t
        path, _, _ = write('fp32')
        with logits(path, seqs) as truth:
            nll = sum(-float(logp(x)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).sum(dtype=torch.float64)) for ids, x in zip(seqs, truth['logits']))
            exact = float(np.exp(nll/(n - 1).sum()))
            print(f'fp32: perplexity {exact:.4f}')
            for kind in a.types:
                got = {}
                for how, more in dict(importance=dict(importance=stats.importance()), plain={}, feedback=dict(importance=stats.importance(), feedback=feedback)).items():
                    path, size, seconds = write(kind, **more)
                    got[how] = figures(path, seqs, truth['logits']), size, seconds
                for how in ('plain', 'importance', 'feedback'):
                    f, size, seconds = got[how]
                    r = row(kind, how, size, seconds, f, got['importance'][0], n)
                    rows.append(r)
                    print(f"{kind:7} {how:10} {size:>10,} bytes  KL {r['kl']:.3e} ({r['kl_interval'][0]:.3e} to {r['kl_interval'][1]:.3e})  ratio {r['ratio']:.3f} "
                          f"({r['ratio_interval'][0]:.3f} to {r['ratio_interval'][1]:.3f})  perplexity {r['perplexity']:.4f}  same best {r['same_best']:.2%}  {seconds:.0f} s", flush=True)
                write_json(Path(a.json), dict(run=Path(a.run).name, tokens=int(n.sum()), sequences=len(n), calibration=sum(map(len, windows)), perplexity=exact,
                                              vocabulary=model.config.vocab_size, layers=model.config.num_layers, width=model.config.hidden_size,
                                              seconds=time.time() - begin, results=rows))
    print(f'{time.time() - begin:.0f} s in all')

if __name__ == '__main__': main()
