"""Beside Hugging Face's `Trainer`: tokens a second, and the time to the same held-out loss.

    python benchmarks/hf_trainer.py [--repeats 5] [--steps 100] [--json hf_trainer.json]

Needs `transformers` and `accelerate`. One model (`nano`'s shape, which Hugging Face calls starcoder2), one data set (this package's own mix),
bfloat16 on the CPU on both sides. First both train with AdamW on the same windows, in the same order, for as many steps: tokens a second, from
the first step's end on. Hugging Face's `Trainer` has its own defaults but for a learning rate that is better than its default at this size
(1e-3, cosine, 10 steps of warm-up). Its held-out loss at the end is the target; then `CodetteTrainer` with the settings for laptops goes on
until the same held-out windows are predicted as well. Each of the three takes its turn in every repeat, with another seed; figures are medians
of the ratios. The time of measuring counts on neither side.
"""
import argparse, math, os, platform, statistics, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
import codette_nb # before PyTorch: for all of them its threads wait a little longer (31c_train.probe)
import torch
import torch.nn.functional as F
from codette_nb.core import human_count, text_table, write_json
from codette_nb.data.mixer import CodetteTrainingDataset
from codette_nb.data.packing import TextDataset
from codette_nb.data.records import render
from codette_nb.data.tokenizer import SentencePieceTokenizer
from codette_nb.model.config import preset, to_hf
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.config import TrainingConfig
from codette_nb.train.trainer import CodetteTrainer

SPEED, SOONER = 1.3, 2
BATCH, LR, WARMUP = 8, 1e-3, 10
OURS = dict(optimizer='muon', batch_size=BATCH, lr=1e-2, muon_lr=.04, momentum=.9, beta2=.99, schedule='wsd', decay=.5, floor=0., warmup_steps=10, zero_init=True)

@torch.no_grad()
def held_out(logits, windows):
    "Mean loss, nats a token, in float32, over held-out windows; `logits` is a function of ids."
    x, y = (torch.from_numpy(a) for a in windows)
    return sum(F.cross_entropy(logits(x[i:i+16]).float().flatten(0, 1), y[i:i+16].flatten(), ignore_index=-100, reduction='sum').item()
               for i in range(0, len(x), 16))/int((y >= 0).sum())

class Windows(torch.utils.data.Dataset):
    "Windows of a `TextDataset`, as Hugging Face's `Trainer` wants them: it shifts the labels itself."
    def __init__(self, data, n):
        x, y = map(torch.from_numpy, data.batch(0, range(n)))
        self.rows = [dict(input_ids=a, labels=torch.cat((a[:1], b[:-1]))) for a, b in zip(x, y)]
    def __len__(self): return len(self.rows)
    def __getitem__(self, i): return self.rows[i]

def hugging_face(config, data, held, seed, steps, folder):
    "Seconds of the whole training, tokens a second after the first step, and the held-out loss at the end."
    from transformers import Starcoder2Config, Starcoder2ForCausalLM, Trainer, TrainerCallback, TrainingArguments
    class InOrder(Trainer):
        def _get_train_sampler(self, *args, **kw): return torch.utils.data.SequentialSampler(self.train_dataset)
    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kw): self.at = []
        def on_step_end(self, *args, **kw): self.at.append(time.perf_counter())
    torch.manual_seed(seed)
    model, clock = Starcoder2ForCausalLM(Starcoder2Config(**to_hf(config))), Clock()
    args = TrainingArguments(output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=LR, lr_scheduler_type='cosine',
                             warmup_steps=WARMUP, bf16=True, use_cpu=True, report_to='none', save_strategy='no', logging_steps=10, disable_tqdm=True, seed=seed)
    trainer, begin = InOrder(model, args, train_dataset=Windows(data, BATCH*steps), callbacks=[clock]), time.perf_counter()
    trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == 'PrinterCallback'))
    trainer.train()
    seconds, tokens = clock.at[-1] - begin, BATCH*config.context_length
    model.eval()
    return seconds, (steps - 1)*tokens/(clock.at[-1] - clock.at[0]), held_out(lambda x: model(input_ids=x).logits, held)

def ours(config, tok, data, held, few, seed, steps, folder, target=None, **settings):
    "Seconds, tokens a second after the first step, step and held-out loss of `CodetteTrainer`; to the target, where one is given."
    at, found, aside = [], [], 0.
    training = TrainingConfig(**dict(max_steps=steps, batch_size=BATCH, lr=LR, warmup_steps=WARMUP, seed=seed, device='cpu', dtype='bfloat16', log_every=1,
                                     eval_every=10*steps, eval_windows=1, save_every=10*steps) | settings)
    torch.manual_seed(seed)
    begin = time.perf_counter()
    trainer = CodetteTrainer(CustomTransformer(config, zero_init=training.zero_init), tok, data, few, training, folder)
    def look(e):
        nonlocal aside
        if e['event'] != 'step': return
        t = time.perf_counter()
        at.append(t - aside)
        if e['step'] != steps and (target is None or e['step'] < steps//4 or e['step'] % 5): return
        trainer.model.eval()
        found.append(dict(step=e['step'], seconds=t - begin - aside, loss=held_out(trainer.model, held)))
        trainer.model.train()
        aside += time.perf_counter() - t
        if target is not None and found[-1]['loss'] <= target: trainer.stop()
    trainer.listeners.append(look)
    trainer.fit(quiet=True)
    reached = target is None or found[-1]['loss'] <= target
    return dict(found[-1], seconds=found[-1]['seconds'] if reached else math.inf, tokens_per_second=(len(at) - 1)*BATCH*config.context_length/(at[-1] - at[0]))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=5, help='of which the medians are taken (default: 5)')
    p.add_argument('--steps', type=int, default=100, help='of Hugging Face (default: 100)')
    p.add_argument('--share', type=float, default=.6, help="steps of ours at the most, as a share of Hugging Face's (default: 0.6)")
    p.add_argument('--json', help='file to write the figures to')
    a = p.parse_args()
    try: import accelerate, transformers
    except ImportError as e: sys.exit(f'{e.name} is not there: pip install transformers accelerate')
    transformers.utils.logging.set_verbosity_error()
    config = preset('nano')
    docs = [render(r) for r in CodetteTrainingDataset(seed=0).generate_dataset(4000)]
    train, held, rows = docs[400:], docs[:400], []
    tok = SentencePieceTokenizer(config.vocab_size).fit(train)
    config = replace(config, vocab_size=tok.vocab_size)
    windows = TextDataset(held, tok, config.context_length).batch(0, range(32))
    few = TextDataset(held[:20], tok, config.context_length)
    for seed in range(a.repeats):
        data = TextDataset(train, tok, config.context_length, seed)
        if len(data) < BATCH*a.steps: sys.exit(f'{a.steps} steps are too many: there are {len(data):,} windows, and no window is to be seen twice')
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            seconds, rate, target = hugging_face(config, data, windows, seed, a.steps, d/'hf')
            same = ours(config, tok, data, windows, few, seed, min(a.steps, 30), d/'same')
            best = ours(config, tok, data, windows, few, seed, round(a.share*a.steps), d/'best', target, **OURS)
        rows.append(dict(seed=seed, hugging_face=dict(seconds=seconds, tokens_per_second=rate, loss=target), same_settings=same, ours=best,
                         speed=same['tokens_per_second']/rate, sooner=seconds/best['seconds']))
        print(f"seed {seed}: Hugging Face {rate:,.0f} tokens/s, {seconds:.1f} s to {target:.3f}; codette_nb {same['tokens_per_second']:,.0f} tokens/s; "
              f"with its own settings {best['seconds']:.1f} s to {best['loss']:.3f} (step {best['step']})", flush=True)
    mid = statistics.median
    speed, sooner = (mid(r[k] for r in rows) for k in ('speed', 'sooner'))
    print(text_table([['', 'tokens/s', 'seconds', 'held-out loss'],
                      ['Hugging Face Trainer', *(f"{mid(r['hugging_face'][k] for r in rows):{f}}" for k, f in (('tokens_per_second', ',.0f'), ('seconds', '.1f'), ('loss', '.3f')))],
                      ['CodetteTrainer, AdamW', f"{mid(r['same_settings']['tokens_per_second'] for r in rows):,.0f}", '', ''],
                      ['CodetteTrainer, Muon', *(f"{mid(r['ours'][k] for r in rows):{f}}" for k, f in (('tokens_per_second', ',.0f'), ('seconds', '.1f'), ('loss', '.3f')))]]))
    print(f'{human_count(CustomTransformer(config).num_parameters())} parameters; {speed:.2f} times the tokens a second (at least {SPEED}), as good {sooner:.2f} times sooner (at least {SOONER})')
    ok = speed >= SPEED and sooner >= SOONER
    for r in rows:
        if not math.isfinite(r['ours']['seconds']): r['ours']['seconds'] = None
    if a.json: write_json(a.json, dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__, machine=f'{platform.system()} {platform.machine()}',
                                       cores=os.cpu_count(), steps=a.steps, settings=OURS, speed=speed, sooner=sooner, rows=rows, ok=ok))
    return 0 if ok else 1

if __name__ == '__main__': sys.exit(main())
