"""The best format for each tensor, and a finish for a file type, beside the file types as they are; all in llama.cpp.

    python benchmarks/quantize_better.py runs/quality
    python benchmarks/quantize_better.py runs/quality --only allocate --measured
    python benchmarks/quantize_better.py runs/quality --only finish --types q4_0 --steps 200

`allocate`: for the size of each file type, the mix of formats that is expected to cost least, estimated from gradients on training
text; and with error feedback at the size of Q4_K_M. With --measured, twelve random mixes and the best ones are rounded in PyTorch and
their divergence compared with the sum of what was estimated and of what was measured for each format by itself (which takes minutes).
`finish`: some steps of training for a file type, with the model itself as teacher; the control takes as many steps of ordinary
training at the same rate and is rounded then. KL is the mean divergence from the model as it was, in full precision, in nats a token,
on held-out text of the run, with 95 % intervals over sequences. The figures are added to the JSON file as they come.
"""
import argparse, random, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from codette_nb.core import read_json, write_json
from codette_nb.data.records import render
from codette_nb.pipeline import measured_part, run_split, training_set
from codette_nb.quantize.allocate import CANDIDATES, Reference, rounded, sensitivity, text_windows
from codette_nb.quantize.calibrate import calibrate, calibration_windows
from codette_nb.quantize.finish import FINISH, against, finishing
from codette_nb.quantize.gguf import GGUFConverter, tensor_names
from codette_nb.quantize.sequence import LayerByLayer
from codette_nb.quantize.verify import sequences
from codette_nb.train.checkpoint import load_checkpoint, stored_name
from codette_nb.train.trainer import CodetteTrainer

def figures(c): return dict(kl=c.kl, kl_low=c.kl_low, kl_high=c.kl_high, agree=c.agree, perplexity=c.perplexity_there)

def show(size, label, f, base=None):
    ratio = f"  x{f['kl']/base['kl']:.2f}" if base else ''
    print(f"{size:8} {label:22} {f['bytes']:>10,} bytes  KL {f['kl']:.3e} ({f['kl_low']:.3e} to {f['kl_high']:.3e})  perplexity {f['perplexity']:.4f}{ratio}", flush=True)

class Bench:
    "What all parts need: the run, its text, its model."
    def __init__(self, a):
        self.a, self.folder = a, Path(tempfile.mkdtemp())
        self.recipe, self.split = run_split(a.run, quiet=True)
        self.model, self.tokenizer = load_checkpoint(a.run)
        texts = [render(r) for records in measured_part(self.split.held_out).values() for r in records]
        self.seqs = sequences(self.tokenizer, random.Random(0).sample(texts, len(texts)), min(256, self.model.config.context_length), a.tokens)
        self.train = [render(r) for r in self.split.train]

    def file(self, checkpoint=None, **given):
        path = self.folder/'model.gguf'
        size = GGUFConverter(checkpoint or self.a.run, self.tokenizer, **given).write(path, force=True, quiet=True).file_bytes
        return figures(against(path, self.model, self.seqs)) | dict(bytes=size)

    def keep(self, part, **what):
        path = Path(self.a.json)
        old = read_json(path) if path.exists() else {}
        common = dict(run=Path(self.a.run).name, tokens=sum(map(len, self.seqs)), sequences=len(self.seqs), parameters=self.model.num_parameters())
        write_json(path, old | common | {part: old.get(part, {}) | what})

def feedback(b):
    names = tensor_names(b.model.config)
    windows = calibration_windows(b.tokenizer, b.train, b.model.config.context_length, 60_000)
    stats = calibrate(b.model, windows, names, quiet=True)
    return LayerByLayer(b.model, windows, names, stats, text="the run's training text")

def allocate(b):
    t = time.time()
    s = sensitivity(b.a.run, b.train, quiet=True)
    print(f'estimated in {time.time() - t:.0f} s', flush=True)
    b.keep('allocate', estimated_seconds=time.time() - t)
    for q in b.a.sizes:
        plain = b.file(quantization=q)
        mix = s.choose(plain['bytes'])
        found = dict(plain=plain, mix=b.file(quantization=q, formats=mix.formats) | dict(expected=mix.kl, formats=mix.formats))
        show(q, q, plain); show(q, 'best mix', found['mix'], plain)
        if q == 'q4_k_m' and not b.a.no_feedback:
            f = feedback(b)
            found |= dict(feedback=b.file(quantization=q, feedback=f), both=b.file(quantization=q, formats=mix.formats, feedback=f))
            show(q, 'error feedback', found['feedback'], plain); show(q, 'mix and feedback', found['both'], plain)
        b.keep('allocate', **{q: found})
    if b.a.measured: additivity(b, s)

def additivity(b, estimated):
    t = time.time()
    measured = sensitivity(b.a.run, b.train, method='measured', quiet=True)
    seconds, r = time.time() - t, random.Random(0)
    reference = Reference(b.model, text_windows(b.tokenizer, b.train, 256, 4096, seed=5))
    own = {stored_name(k): p for k, p in b.model.named_parameters()}
    stored = {t.name: t.source for t in GGUFConverter(b.a.run, b.tokenizer, 'q8').plan}
    names = {stored_name(k): k for k, _ in b.model.named_parameters()}
    together = lambda mix: reference.kl({names[stored[n]]: rounded(own[stored[n]], f) for n, f in mix.items()})
    mixes = [{n: r.choice(CANDIDATES[:5]) for n in estimated.costs} for _ in range(12)] + [estimated.file_type(q).formats for q in ('q2_k', 'q3_k_m', 'q4_k_m', 'q5_k_m')]
    true = np.array([together(m) for m in mixes])
    rank, out = lambda x: np.argsort(np.argsort(x)), dict(measured_seconds=seconds, mixes=len(mixes))
    for s in (measured, estimated):
        said = np.array([s.mix(m).kl for m in mixes])
        best = {q: together(s.choose(s.file_type(q).file_bytes).formats) for q in ('q2_k', 'q3_k_m', 'q4_k_m', 'q5_k_m')}
        out[s.method] = dict(true_over_sum=float(np.median(true/said)), least=float((true/said).min()), most=float((true/said).max()),
                             rank_correlation=float(np.corrcoef(rank(true), rank(said))[0, 1]), kl_of_its_mix=best)
        print(f'{s.method:10} all at once is x{out[s.method]["true_over_sum"]:.2f} of the sum; rank correlation {out[s.method]["rank_correlation"]:.3f}; its mixes: '
              + ', '.join(f'{q} {v:.2e}' for q, v in best.items()), flush=True)
    b.keep('additivity', **out)

def finish(b):
    data, held = training_set(b.recipe, b.split, b.tokenizer), measured_part(b.split.held_out)
    given = dict(device='cpu', dtype='float32', threads=1, compile='none', save_every=b.a.steps, seed=0)
    def fit(trainer): trainer.fit(quiet=True); return trainer
    control = None
    for q in b.a.types:
        t = fit(finishing(b.a.run, data, held, b.folder/f'for-{q}', q, b.a.steps, force=True, **given))
        if control is None:
            model = load_checkpoint(b.a.run)[0]
            control = fit(CodetteTrainer(model, b.tokenizer, data, held, t.config, b.folder/'control'))
        found = dict(steps=b.a.steps, batch_size=t.config.batch_size, lr=t.config.lr, seconds=t.elapsed, control_seconds=control.elapsed, before=b.file(quantization=q),
                     control=b.file(control.out, quantization=q), finished=b.file(t.out, quantization=q))
        for k in ('before', 'control', 'finished'): show(q, k, found[k], found['before'])
        b.keep('finish', **{q: found})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', help='run folder')
    p.add_argument('--only', choices=('allocate', 'finish'), help='one part (default: both)')
    p.add_argument('--sizes', nargs='+', default=['q2_k', 'q3_k_m', 'q4_0', 'q4_k_m', 'q5_k_m'], metavar='TYPE', help='file types whose sizes are budgets (default: %(default)s)')
    p.add_argument('--types', nargs='+', default=['q4_0', 'q4_k_m', 'q2_k'], metavar='TYPE', help='file types to finish for (default: %(default)s)')
    p.add_argument('--steps', type=int, default=60, metavar='N', help='of a finish (default: %(default)s)')
    p.add_argument('--tokens', type=int, default=10_000, metavar='N', help='held-out tokens to measure on (default: %(default)s)')
    p.add_argument('--measured', action='store_true', help='measure each format by itself too, and how well costs add up')
    p.add_argument('--no-feedback', action='store_true', help='leave error feedback out')
    p.add_argument('--json', default=Path(__file__).with_suffix('.json'), help='file to write the figures to (default: beside this file)')
    a = p.parse_args()
    begin = time.time()
    b = Bench(a)
    print(f'{sum(map(len, b.seqs)):,} held-out tokens in {len(b.seqs)} sequences, text made in {time.time() - begin:.0f} s', flush=True)
    if a.only != 'finish': allocate(b)
    if a.only != 'allocate': finish(b)
    print(f'{time.time() - begin:.0f} s in all')

if __name__ == '__main__': main()
