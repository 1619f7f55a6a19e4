"""Peak memory of real training steps, measured and predicted: `python benchmarks/low_memory.py medium large [--json out.json]`.

Each size trains in a process of its own on Python's documentation as bytes, with the size's own vocabulary; the peak is the
kernel's (VmHWM), so Python and torch are in it. Sizes up to mini are trained with AdamW as well. A process that takes more
memory than --limit is stopped. Linux only; the larger sizes want the machine alone (xlarge 17 GiB and some minutes).
"""
import argparse, json, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path
from codette_nb.core import human_bytes, human_count, read_json, text_table, write_json
from codette_nb.model.config import PRESETS, num_parameters, preset, training_memory

LIMITS = dict(medium=8, large=14, xlarge=20) # GiB to stay under

def status(pid, field):
    "A line of a process's status in bytes, 0 when it has ended."
    try: lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError): return 0
    return next((int(l.split()[1])*1024 for l in lines if l.startswith(field + ':')), 0)

def child(size, mode, tokens, steps, lr, returned):
    "Train, print one JSON line a step and one at the end."
    import torch
    from contextlib import nullcontext
    from pydoc_data.topics import topics
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.train.lowmemory import LowMemory, create_low_memory_model, returned_memory
    from codette_nb.train.config import TrainingConfig
    from codette_nb.train.optim import Optimizer, lr_factor
    from codette_nb.train.probe import kept_memory
    context = min(512, tokens, preset(size).context_length)
    windows = tokens//context
    text = torch.tensor(list('\n'.join(topics.values()).encode()[:windows*(context + 1)])).view(windows, -1)
    x, y = text[:, :-1], text[:, 1:]
    low = mode == 'low'
    run, begin = TrainingConfig(lr=lr), time.time()
    with returned_memory(bool(returned)) if low else kept_memory(bool(returned)):
        if low: model = create_low_memory_model(preset(size)); opt = LowMemory(model, lr=lr)
        else: model = create_codette_model(size); opt = Optimizer(model, mode, lr=lr)
        print(json.dumps(dict(made=round(time.time() - begin, 1), bytes=status('self', 'VmHWM'))), flush=True)
        for i in range(steps):
            begin = time.time()
            with nullcontext() if low else torch.autocast('cpu', torch.bfloat16):
                opt.before_backward(lr_factor(i, run.max_steps, run.warmup_steps)) # as the first steps of a run
                loss = model(x, y)
            loss.backward()
            norm = float(opt.after_backward())
            opt.step()
            print(json.dumps(dict(loss=loss.item(), norm=norm, seconds=round(time.time() - begin, 2), peak=status('self', 'VmHWM'))), flush=True)
        with torch.no_grad(), nullcontext() if low else torch.autocast('cpu', torch.bfloat16): loss = model(x, y)
        print(json.dumps(dict(loss=loss.item(), peak=status('self', 'VmHWM'))), flush=True)

def measure(size, mode, tokens=512, steps=3, lr=1e-4, limit=21.5, returned=1):
    "Figures of one size: run it in a process, watch its memory."
    args = [size, mode, tokens, steps, lr, returned]
    p = subprocess.Popen([sys.executable, __file__, '--child', *map(str, args)], stdout=subprocess.PIPE, text=True)
    def watch():
        while p.poll() is None:
            if status(p.pid, 'VmRSS') > limit*2**30: p.kill()
            time.sleep(.1)
    threading.Thread(target=watch, daemon=True).start()
    lines = []
    for line in p.stdout:
        lines.append(json.loads(line)); print(f'  {size} {mode}: {line.strip()}', file=sys.stderr, flush=True)
    if p.wait(): sys.exit(f'{size} in {mode} mode was stopped; it got {len(lines)} lines far')
    c, done = preset(size), lines[1:]
    predicted = training_memory(c, tokens, low_memory=mode == 'low', **({} if mode == 'low' else dict(optimizer=mode)))
    predicted = replace(predicted, copy=0) # no checkpoints are written here
    return dict(size=size, mode=mode, parameters=num_parameters(c), tokens=tokens, peak_bytes=done[-1]['peak'], predicted_bytes=predicted.total,
                ratio=round(predicted.total/done[-1]['peak'], 3), limit_gib=LIMITS.get(size) if mode == 'low' else None,
                seconds_to_make=lines[0]['made'], seconds_per_step=min(l['seconds'] for l in done[:-1]), lr=lr, losses=[round(l['loss'], 3) for l in done])

def table(rows):
    head = ['size', 'parameters', 'mode', 'tokens', 'peak', 'predicted', 'ratio', 'limit', 's/step', 'losses']
    return text_table([head] + [[r['size'], human_count(r['parameters']), r['mode'], f"{r['tokens']:,}", human_bytes(r['peak_bytes']), human_bytes(r['predicted_bytes']),
                       f"{r['ratio']:.2f}", f"{r['limit_gib']} GiB" if r['limit_gib'] else '', f"{r['seconds_per_step']:.1f}", ' '.join(map(str, r['losses']))] for r in rows])

def main():
    if sys.argv[1:2] == ['--child']:
        size, mode, tokens, steps, lr, returned = sys.argv[2:]
        return child(size, mode, int(tokens), int(steps), float(lr), int(returned))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sizes', nargs='*', default=['nano', 'micro', 'mini', 'small'], help='presets: ' + ', '.join(PRESETS))
    p.add_argument('--modes', default='low,adamw,muon', help='what to train with; AdamW and Muon only up to mini')
    p.add_argument('--tokens', type=int, default=512, help='in a step, in windows of up to 512')
    p.add_argument('--steps', type=int, default=3, help='on the same windows; the loss is taken before each and after the last')
    p.add_argument('--lr', type=float, default=2.5e-5, help='the highest of a run, whose warm-up begins here: a hundredth more with each step (default: %(default)s)')
    p.add_argument('--limit', type=float, default=21.5, help='GiB above which a process is stopped')
    p.add_argument('--plain-malloc', action='store_true', help='leave the allocator as it is')
    p.add_argument('--json', help='file to add the figures to; those of the same size, mode and tokens are replaced')
    a = p.parse_args()
    if not Path('/proc/self/status').exists(): sys.exit('this benchmark reads /proc, which only Linux has')
    rows = []
    for size in a.sizes:
        for mode in a.modes.split(','):
            if mode != 'low' and num_parameters(preset(size)) > 2e8: continue
            rows.append(measure(size, mode, a.tokens, a.steps, a.lr, a.limit, int(not a.plain_malloc)))
    print(table(rows))
    if a.json:
        key = lambda r: (r['size'], r['mode'], r['tokens'])
        old = {key(r): r for r in (read_json(a.json)['runs'] if Path(a.json).exists() else [])} | {key(r): r for r in rows}
        write_json(a.json, dict(limits_gib=LIMITS, runs=sorted(old.values(), key=lambda r: (list(PRESETS).index(r['size']), r['mode'], r['tokens']))))
    missed = [r['size'] for r in rows if abs(r['ratio'] - 1) > .1 or (r['limit_gib'] and r['peak_bytes'] > r['limit_gib']*2**30)]
    if missed: print('not within 10 % or not under the limit:', ', '.join(missed))
    return bool(missed)

if __name__ == '__main__': sys.exit(main())
