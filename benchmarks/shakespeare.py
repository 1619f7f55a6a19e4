"""How much sooner than nanoGPT's settings a small byte model gets equally far on a text.

    python benchmarks/shakespeare.py tinyshakespeare.txt [--repeats 5] [--json shakespeare.json]

The text is any file of about 1 MB; its bytes are the tokens, the last tenth is held out. 4 layers × 128 wide, 4 heads, context 64.
The reference is a plain float32 loop with the settings that nanoGPT gives for a CPU: 2,000 steps of 12 × 64, AdamW (weight decay 0.1 on
matrices, betas 0.9 and 0.99), 100 steps of warm-up to 1e-3, cosine to 1e-4, gradients cut at 1, learnt positions, no biases, a tied head.
Its held-out loss at the end is the target. Ours is `CodetteTrainer`, from its construction (its probing of the machine included) to the
step at which the same windows are first predicted as well; they are looked at every 5 steps of the last third. The time of measuring
counts on neither side. Both take turns, each time with another seed; the figure is the median of the ratios. Takes 2 minutes a repeat.
"""
import argparse, math, os, platform, statistics, sys, tempfile, time
from pathlib import Path
import torch
import torch.nn.functional as F
from codette_nb.core import text_table, write_json
from codette_nb.data.packing import TextDataset
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.config import TrainingConfig
from codette_nb.train.trainer import CodetteTrainer
from reference import Reference

RATIO, AIM = 5, 8
LAYERS, WIDTH, HEADS, CONTEXT = 4, 128, 4, 64
STEPS, BATCH, LR, LAST_LR, WARMUP = 2000, 12, 1e-3, 1e-4, 100
OURS = dict(optimizer='muon', max_steps=155, batch_size=32, batch_ramp=.5, lr=2e-2, muon_lr=.04, momentum=.9, beta2=.99, schedule='wsd', decay=.5, floor=0.,
            warmup_steps=10, zero_init=True)

@torch.no_grad()
def held_out(model, ids):
    "Mean loss, nats a byte, in float32, over all windows of the held-out text."
    was, n = model.training, (len(ids) - 1)//CONTEXT
    model.eval()
    x, y = ids[:n*CONTEXT].view(n, CONTEXT), ids[1:n*CONTEXT + 1].view(n, CONTEXT)
    nats = sum(F.cross_entropy(model(x[i:i+256]).flatten(0, 1), y[i:i+256].flatten(), reduction='sum').item() for i in range(0, n, 256))
    model.train(was)
    return nats/y.numel()

def reference(train, held, seed, steps):
    "Seconds of the reference loop, and the held-out loss at its end."
    torch.manual_seed(seed)
    ids, model = torch.tensor(list(train)), Reference(256, CONTEXT, WIDTH, LAYERS, HEADS)
    opt = model.adamw(LR)
    begin = time.perf_counter()
    for step in range(steps):
        fall = .5*(1 + math.cos(math.pi*(step - WARMUP)/max(1, steps - WARMUP)))
        lr = LR*(step + 1)/(WARMUP + 1) if step < WARMUP else LAST_LR + fall*(LR - LAST_LR)
        for g in opt.param_groups: g['lr'] = lr
        windows = ids[torch.randint(len(ids) - CONTEXT, (BATCH, 1)) + torch.arange(CONTEXT + 1)]
        loss = model.loss(windows[:, :-1], windows[:, 1:])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
    return time.perf_counter() - begin, held_out(model, torch.tensor(list(held)))

def ours(train, held, seed, target, settings, folder):
    "Seconds until `CodetteTrainer` reaches the target, the step, and the losses on the way; seconds are infinite where it does not."
    tok, text = ByteTokenizer(), train.decode('utf-8', 'ignore')
    shape = TransformerConfig(tok.vocab_size, CONTEXT, WIDTH, LAYERS, HEADS)
    data, ids, found = TextDataset([text], tok, CONTEXT, seed), torch.tensor(tok.encode(held.decode('utf-8', 'ignore'))), []
    few = TextDataset([text[:4*CONTEXT]], tok, CONTEXT) # what the trainer itself measures, once, when all is over
    end = settings['max_steps']
    config = TrainingConfig(**settings, seed=seed, device='cpu', log_every=1, eval_every=10*end, eval_windows=1, save_every=10*end)
    torch.manual_seed(seed)
    begin, aside = time.perf_counter(), 0.
    trainer = CodetteTrainer(CustomTransformer(shape, zero_init=config.zero_init), tok, data, few, config, folder)
    def look(e):
        nonlocal aside
        if e['event'] != 'step' or e['step'] < 2*end//3 or e['step'] % 5 and e['step'] != end: return
        t = time.perf_counter()
        found.append(dict(step=e['step'], seconds=t - begin - aside, loss=held_out(trainer.model, ids)))
        aside += time.perf_counter() - t
        if found[-1]['loss'] <= target: trainer.stop()
    trainer.listeners.append(look)
    trainer.fit(quiet=True)
    last = found[-1]
    return dict(seconds=last['seconds'] if last['loss'] <= target else math.inf, step=last['step'], loss=last['loss'], tokens=trainer.tokens, dtype=trainer.config.dtype,
                seen=found)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('text', type=Path, help='a text of about 1 MB')
    p.add_argument('--repeats', type=int, default=5, help='of which the median is taken (default: 5)')
    p.add_argument('--reference-steps', type=int, default=STEPS, help=f'to try the benchmark itself out (default: {STEPS})')
    p.add_argument('--set', nargs='*', default=[], metavar='FIELD=VALUE', help='fields of TrainingConfig to change: --set max_steps=150 lr=0.01')
    p.add_argument('--json', help='file to write the figures to')
    a = p.parse_args()
    if not a.text.is_file(): sys.exit(f'{a.text} is no file: give a text of about 1 MB')
    text = a.text.read_bytes().decode('utf-8', 'ignore').encode()
    if len(text) < 10_000: sys.exit(f'{a.text} has {len(text):,} bytes of text: give about 1 MB')
    cut = int(.9*len(text))
    while text[cut] & 0xc0 == 0x80: cut += 1 # not within a character
    train, held, settings, rows = text[:cut], text[cut:], dict(OURS), []
    for s in a.set:
        k, v = s.split('=', 1)
        settings[k] = type(getattr(TrainingConfig, k))(v) if not isinstance(getattr(TrainingConfig, k), bool) else v == 'True'
    reference(train, held[:6400], 0, 5) # warms up
    for seed in range(a.repeats):
        seconds, target = reference(train, held, seed, a.reference_steps)
        with tempfile.TemporaryDirectory() as d: found = ours(train, held, seed, target, settings, Path(d)/'run')
        rows.append(dict(seed=seed, reference=seconds, target=target, ratio=seconds/found['seconds'], ours=found))
        print(f"seed {seed}: reference {seconds:.1f} s to {target:.4f}, ours {found['seconds']:.1f} s to {found['loss']:.4f} at step {found['step']}: "
              f"{rows[-1]['ratio']:.2f} times sooner", flush=True)
    ratio = statistics.median(r['ratio'] for r in rows)
    table = [['', 'seconds', 'held-out loss', 'tokens'],
             ['reference', f"{statistics.median(r['reference'] for r in rows):.1f}", f"{statistics.median(r['target'] for r in rows):.4f}", f'{a.reference_steps*BATCH*CONTEXT:,}'],
             ['codette_nb', f"{statistics.median(r['ours']['seconds'] for r in rows):.1f}", f"{statistics.median(r['ours']['loss'] for r in rows):.4f}",
              f"{statistics.median(r['ours']['tokens'] for r in rows):,}"]]
    print(text_table(table)); print(f'{ratio:.2f} times sooner, median of {a.repeats} (at least {RATIO}, aim {AIM})')
    for r in rows:
        if not math.isfinite(r['ours']['seconds']): r['ours']['seconds'] = None
    if a.json: write_json(a.json, dict(python=platform.python_version(), torch=torch.__version__, machine=f'{platform.system()} {platform.machine()}', cores=os.cpu_count(),
                                       text_bytes=len(text), settings=settings, ratio=ratio, target_ratio=RATIO, rows=rows, ok=ratio >= RATIO))
    return 0 if ratio >= RATIO else 1

if __name__ == '__main__': sys.exit(main())
