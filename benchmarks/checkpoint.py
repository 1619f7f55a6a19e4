"""What a checkpoint costs training: `python benchmarks/checkpoint.py [--size mini] [--json out.json]`.

A model with Muon and AdamW takes real optimizer steps. Five times a step is timed alone, then a checkpoint with the whole
state is saved (weights, optimizer, random state), and the step that runs beside the writing is timed too; then the best model
and the state are saved together, as at a measurement; then a checkpoint is written while training waits. Medians of five.
The figure to stay under is one second of waiting.
"""
import argparse, shutil, statistics, sys, tempfile, time
from pathlib import Path
import torch
from codette_nb.core import human_bytes, human_count, require_space, write_json
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import PRESETS, preset
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.checkpoint import Saver, check_checkpoint, load_state, load_weights
from codette_nb.train.optim import Optimizer

LIMIT = 1.  # seconds that training may wait

class Training:
    "A model that takes real steps on random tokens."
    def __init__(self, size, tokens):
        torch.manual_seed(0)
        self.tokenizer = ByteTokenizer(size=preset(size).vocab_size)
        self.model = CustomTransformer(preset(size))
        self.optimizer, self.tokens, self.steps = Optimizer(self.model, 'muon'), tokens, 0

    def step(self):
        "One step; returns its seconds."
        t = time.perf_counter()
        ids = torch.randint(self.model.config.vocab_size, (1, self.tokens + 1))
        self.model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16): self.model(ids[:, :-1], ids[:, 1:]).backward()
        self.optimizer.step()
        self.steps += 1
        return time.perf_counter() - t

    def parts(self):
        "What the trainer gives a `Saver` beside the folder."
        return self.model, self.tokenizer, {'step': self.steps}, self.optimizer.state() | {'rng|cpu': torch.get_rng_state()}

def same(folder, training):
    "Whether a checkpoint holds what there is now, to the bit."
    model, _, state, tensors = training.parts()
    other = CustomTransformer(model.config)
    load_weights(check_checkpoint(folder), other)
    saved = load_state(folder)[1]
    return (all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters())) and saved.keys() == tensors.keys()
            and all(torch.equal(saved[k], v) for k, v in tensors.items()))

def measure(training, folder, repeats):
    "Seconds of each part, a list each."
    s = {k: [] for k in ('step', 'step_beside_save', 'waited', 'on_disk', 'waited_with_best', 'foreground')}
    with Saver() as saver:
        first = saver.save(folder/'step-0', *training.parts())
        saver.wait()
        if first.note: sys.exit(first.note)
        whole = same(folder/'step-0', training)
        for i in range(repeats):
            s['step'].append(training.step())
            save = saver.save(folder/'step-1', *training.parts())
            s['waited'].append(save.blocked); s['step_beside_save'].append(training.step())
            saver.wait(); s['on_disk'].append(save.seconds)
            training.step()
            both = saver.save(folder/'model_best', *training.parts()[:2]), saver.save(folder/'step-1', *training.parts())
            s['waited_with_best'].append(sum(b.blocked for b in both))
            saver.wait()
            s['foreground'].append(saver.save(folder/'step-1', *training.parts(), wait=True).blocked)
            whole = whole and same(folder/'step-1', training)
        size = sum(t.numel()*t.element_size() for c in (saver._weights, saver._tensors) for t in c.kept.values())
    return s, dict(first_waited=round(first.blocked, 3), copy_bytes=size, to_the_bit=whole)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog='example: python benchmarks/checkpoint.py --size micro --tokens 128 --repeats 3')
    p.add_argument('--size', default='mini', choices=list(PRESETS))
    p.add_argument('--tokens', type=int, default=512, help='tokens to a step (512)')
    p.add_argument('--repeats', type=int, default=5, help='of which the medians are taken (5)')
    p.add_argument('--folder', help='where to write; default: the temporary folder, which must be on a disk to mean anything')
    p.add_argument('--json', help='file to write the figures to')
    a = p.parse_args()
    folder = Path(tempfile.mkdtemp(dir=a.folder))
    try:
        training = Training(a.size, a.tokens)
        n = training.model.num_parameters()
        require_space(folder, 60*n, 'four checkpoints')
        training.step()
        s, more = measure(training, folder, a.repeats)
    finally: shutil.rmtree(folder)
    median = {k: statistics.median(v) for k, v in s.items()}
    disk, _ = more['copy_bytes'], print(f"{a.size}: {human_count(n)} parameters, Muon and AdamW, steps of {a.tokens} tokens, medians of {a.repeats}\n")
    rows = (('copy kept in memory', human_bytes(disk)), ('training waited for the first save', f"{more['first_waited']:.2f} s"),
            ('training waited for a save', f"{median['waited']:.2f} s"), ('with the best model', f"{median['waited_with_best']:.2f} s"),
            ('until it was on disk', f"{median['on_disk']:.2f} s"), ('the same while training waits', f"{median['foreground']:.2f} s"),
            ('a step alone', f"{median['step']:.2f} s"), ('a step beside the writing', f"{median['step_beside_save']:.2f} s"),
            ('read back to the bit', 'yes' if more['to_the_bit'] else 'NO'))
    for k, v in rows: print(f'{k:36} {v:>10}')
    worst = max(max(s['waited']), max(s['waited_with_best']), more['first_waited'])
    figures = dict(size=a.size, parameters=n, tokens=a.tokens, repeats=a.repeats, threads=torch.get_num_threads()) | more | {
        f'{k}_seconds': round(v, 3) for k, v in median.items()} | dict(
        worst_waited=round(worst, 3), step_beside_save_ratio=round(median['step_beside_save']/median['step'], 3),
        foreground_over_waited=round(median['foreground']/median['waited'], 1), limit_seconds=LIMIT, within=worst < LIMIT and more['to_the_bit'])
    print(f"\nlongest wait {worst:.2f} s: {'within' if figures['within'] else 'ABOVE'} the limit of {LIMIT:.0f} s")
    if a.json: write_json(a.json, figures)
    return 0 if figures['within'] else 1

if __name__ == '__main__': sys.exit(main())
