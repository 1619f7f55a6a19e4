"""Tokens a second of training, beside a plain loop and beside what the machine's matrix product allows.

    python benchmarks/throughput.py [--rounds 5] [--json throughput.json]

6 layers × 384 wide, 6 heads, vocabulary 8,192, 8 windows of 256 tokens to a step, AdamW. In turns: a plain loop in float32 (SDPA,
cross-entropy over all logits, AdamW as torch gives it on a CPU), the same under bfloat16 autocast, and `CodetteTrainer` in bfloat16 as it is,
with its layers compiled, and compiled with their products in int8, its own log and batches made ahead included (what int8 does to the loss is in
int8.py). Beside them, in the same round, a bfloat16 product of 1024 × 1024 matrices: the ceiling. The share of it counts 6 × parameters × tokens, as multiplications and additions. Then what a step of Muon costs beside
one of AdamW, and in processes of their own what compiling costs, the first time and when its results lie in the cache. Figures are medians.
"""
import argparse, json, os, platform, statistics, string, subprocess, sys, tempfile, time
from pathlib import Path
import codette_nb # before PyTorch: for all of them its threads wait a little longer (31c_train.probe)
import torch
from codette_nb.core import text_table, write_json
from codette_nb.data.packing import TextDataset
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import TransformerConfig, num_parameters
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.config import TrainingConfig
from codette_nb.train.optim import Optimizer
from codette_nb.train.probe import kept_memory
from codette_nb.train.trainer import CodetteTrainer
from reference import Reference

TIMES, SHARE = 3, .55
WARM = 5 # steps that the memory of a new model takes to be all there; a run has them once, here each round has a new model, while the loops keep theirs
SHAPE, BATCH = TransformerConfig(8192, 256, 384, 6, 6), 8
TOKENS = BATCH*SHAPE.context_length

def ceiling(n=1024, dtype=torch.bfloat16, repeats=30):
    "Operations a second of a matrix product."
    a, b, took = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype), []
    for _ in range(repeats):
        t = time.perf_counter(); a@b; took.append(time.perf_counter() - t)
    return 2*n**3/statistics.median(took)

def plain(model, opt, ids, steps, half):
    "Tokens a second of the loop that a peer would write."
    for step in range(steps + 1):
        if step == 1: begin = time.perf_counter() # the first warms up
        x, y = ids[step % len(ids), :, :-1], ids[step % len(ids), :, 1:]
        with torch.autocast('cpu', torch.bfloat16, enabled=half): loss = model.loss(x, y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
    return steps*TOKENS/(time.perf_counter() - begin)

def trainer(tok, data, compiled, steps, folder, dtype='bfloat16', **changes):
    "Tokens a second of `CodetteTrainer` once it is warm, and the seconds until its first step was done."
    begin, at = time.perf_counter(), {}
    config = TrainingConfig(**dict(max_steps=steps + WARM, batch_size=BATCH, lr=1e-3, device='cpu', dtype=dtype, threads=torch.get_num_threads(), log_every=1,
                                   compile='layers' if compiled else 'none', eval_every=10*steps, save_every=10*steps, eval_windows=1) | changes)
    t = CodetteTrainer(CustomTransformer(SHAPE), tok, data, TextDataset([string.ascii_lowercase*12], tok, SHAPE.context_length), config, folder)
    t.listeners.append(lambda e: at.__setitem__(e['step'], time.perf_counter()) if e['event'] == 'step' else None)
    t.fit(quiet=True)
    return steps*TOKENS/(at[steps + WARM] - at[WARM]), at[1] - begin

def inputs(seed=0):
    "A byte tokenizer with 8,192 rows, a dataset of letters by chance, and as many ids."
    torch.manual_seed(seed)
    tok, ids = ByteTokenizer(SHAPE.vocab_size), torch.randint(SHAPE.vocab_size, (8, BATCH, SHAPE.context_length + 1))
    return tok, TextDataset([bytes(torch.randint(97, 123, (1 << 17,)).tolist()).decode()], tok, SHAPE.context_length), ids

def rounds(n, steps):
    "Tokens a second of each, and the ceiling, one dictionary a round."
    (tok, data, ids), rows = inputs(), []
    model = Reference(SHAPE.vocab_size, SHAPE.context_length, SHAPE.hidden_size, SHAPE.num_layers, SHAPE.num_heads, bias=True)
    opt = model.adamw(1e-3)
    for i in range(n + 1):
        ours = {}
        for name, compiled, dtype in (('codette_nb', False, 'bfloat16'), ('codette_nb, compiled', True, 'bfloat16'), ('codette_nb, compiled, int8', True, 'int8')):
            with tempfile.TemporaryDirectory() as d: ours[name] = trainer(tok, data, compiled, steps, Path(d)/'run', dtype)[0]
        rows.append({'ceiling': ceiling(), 'plain float32': plain(model, opt, ids, steps, False), 'plain bfloat16': plain(model, opt, ids, steps, True)} | ours)
        if i: print(f"round {i}: ceiling {rows[-1]['ceiling']/1e9:.0f} GFLOP/s; " + ', '.join(f'{k} {v:,.0f}' for k, v in rows[-1].items() if k != 'ceiling'), flush=True)
    return rows[1:] # the first round warms up

def muon(repeats):
    "Milliseconds of a step of the optimizer alone, AdamW's and Muon's."
    model = CustomTransformer(SHAPE)
    for p in model.parameters(): p.grad = torch.randn_like(p)*1e-3
    opts, took = {k: Optimizer(model, k) for k in ('adamw', 'muon')}, dict(adamw=[], muon=[])
    with kept_memory():
        for i in range(repeats + 1):
            for k, opt in opts.items():
                t = time.perf_counter(); opt.step()
                if i: took[k].append(1000*(time.perf_counter() - t))
    return {k: statistics.median(v) for k, v in took.items()}

def child(folder, dtype):
    "Seconds until the first compiled step is done, and of a step after it."
    tok, data, _ = inputs()
    rate, first = trainer(tok, data, True, 3, folder, dtype)
    print(json.dumps(dict(first=first, step=TOKENS/rate)))

def compiling(dtype):
    "What compiling costs with an empty cache and with a full one."
    with tempfile.TemporaryDirectory() as d:
        env = os.environ | dict(TORCHINDUCTOR_CACHE_DIR=f'{d}/cache')
        def run(i): return json.loads(subprocess.run([sys.executable, __file__, '--child', f'{d}/{i}', '--dtype', dtype], env=env, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        cold, warm = run(0), run(1)
    return {k: v['first'] - v['step'] for k, v in (('cold', cold), ('warm', warm))}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5, help='of which medians are taken (default: 5)')
    p.add_argument('--steps', type=int, default=6, help='of each in a round (default: 6)')
    p.add_argument('--json', help='file to write the figures to')
    p.add_argument('--child', help=argparse.SUPPRESS)
    p.add_argument('--dtype', default='bfloat16', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(a.child, a.dtype)
    rows, n = rounds(a.rounds, a.steps), num_parameters(SHAPE)
    opt, first = muon(2*a.rounds), {k: compiling(k) for k in ('bfloat16', 'int8')}
    mid = statistics.median
    names = [k for k in rows[0] if k != 'ceiling']
    speed = {k: dict(tokens_per_second=mid(r[k] for r in rows), times=mid(r[k]/r['plain float32'] for r in rows), share=mid(6*n*r[k]/r['ceiling'] for r in rows)) for k in names}
    step = {k: 1000*TOKENS/v['tokens_per_second'] for k, v in speed.items()}
    saved = {k: step['codette_nb'] - step[name] for k, name in (('bfloat16', 'codette_nb, compiled'), ('int8', 'codette_nb, compiled, int8'))}
    pays = {k: {c: round(1000*v/saved[k]) if saved[k] > 0 else None for c, v in of.items()} for k, of in first.items()} # steps
    extra = opt['muon'] - opt['adamw']
    print(text_table([['', 'tokens/s', 'times', 'share of ceiling', 'ms a step'],
                      *([k, f"{v['tokens_per_second']:,.0f}", f"{v['times']:.2f}", f"{v['share']:.0%}", f'{step[k]:.0f}'] for k, v in speed.items())]))
    print(f"ceiling {mid(r['ceiling'] for r in rows)/1e9:.0f} GFLOP/s; {n:,} parameters, {TOKENS:,} tokens a step")
    print(f"optimizer alone: AdamW {opt['adamw']:.1f} ms, with Muon {opt['muon']:.1f} ms; Muon adds {extra/step['codette_nb']:.1%} to a step")
    for k, of in first.items():
        for c, v in of.items(): print(f"compiling in {k}, {c} cache: {v:.1f} s" + (f', paid for after {pays[k][c]:,} steps' if pays[k][c] else ', never paid for'))
    best = max(speed.values(), key=lambda v: v['times'])
    ok = best['times'] >= TIMES and best['share'] >= SHARE
    print(f"best: {best['times']:.2f} times the float32 loop (at least {TIMES}), {best['share']:.0%} of the ceiling (at least {SHARE:.0%})")
    if a.json: write_json(a.json, dict(python=platform.python_version(), torch=torch.__version__, machine=f'{platform.system()} {platform.machine()}', cores=os.cpu_count(),
                                       threads=torch.get_num_threads(), parameters=n, tokens_per_step=TOKENS, speed=speed, optimizer_ms=opt, muon_share=extra/step['codette_nb'],
                                       compile_seconds=first, compile_pays_after_steps=pays, rounds=rows, ok=ok))
    return 0 if ok else 1

if __name__ == '__main__': sys.exit(main())
