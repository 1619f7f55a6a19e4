"""What the panel and the log cost at `nano`: under 2 % of the time of a step.

    python benchmarks/panel.py [--steps 24] [--repeats 5] [--json panel.json]

Runs a real kernel, so that the panel's messages are made and sent as in a notebook. Two trainers of one model take turns: with
the panel, the log, the score and the file of events, and with none of them. The time from the first step's start to the last
one's end is compared, medians over the repeats. Two equal runs on a shared machine differ by more than 2 %, so what the listeners
and the panel's heartbeat took by their own clock is shown beside it. The second row reads 100,000 steps from a file.
Exits with 1 if a limit is missed.
"""
import argparse, json, platform, statistics, sys
from pathlib import Path

LIMIT, READ = .02, 1.5 # share of a step; seconds for 100,000 steps

SETUP = '''
import json, os, statistics, tempfile, threading, time
from pydoc_data.topics import topics
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.transformer import create_codette_model
from codette_nb.train.trainer import CodetteTrainer
from codette_nb.train.config import TrainingConfig
from codette_nb.widgets.panel import TrainingPanel
from codette_nb.widgets.history import pretend_events, read_history
tok, docs = ByteTokenizer(), list(topics.values())[:120]
spent = 0.

def timed(f):
    def call(e):
        global spent
        begin = time.perf_counter(); f(e)
        if e['event'] == 'step': spent += time.perf_counter() - begin # what follows a measurement is no part of a step
    return call

def once(steps, watched):
    global spent
    model = create_codette_model('nano', vocab_size=tok.vocab_size, context_length=128)
    config = TrainingConfig.laptop(max_steps=steps, batch_size=8, eval_every=steps, eval_windows=1, save_every=10**9, sample_every=0, log_every=5,
                                   device='cpu', dtype='float32', compile='none', threads=2)
    trainer = CodetteTrainer(model, tok, docs[::2], docs[1::2], config, tempfile.mkdtemp() + '/run')
    clock, spent = {}, 0.
    def note(e):
        if e['event'] in ('start', 'step'): clock.setdefault(e['event'], time.perf_counter()); clock['last'] = time.perf_counter()
    if not watched:
        trainer.listeners[:] = [note]
        trainer.fit(quiet=True)
        return clock['last'] - clock['step'], 0., 0
    trainer.listeners[:] = [timed(f) for f in trainer.listeners]
    trainer.listeners.append(note)
    run = TrainingPanel(trainer).fit()
    run.wait()
    return clock['last'] - clock['step'], spent, run.panel.seconds
'''
MEASURE = '''
once(10, True); once(10, False)
rows = [(*once(%d, True), once(%d, False)[0]) for _ in range(%d)]
file = tempfile.mkdtemp() + '/metrics.jsonl'
with open(file, 'w') as f: f.writelines(json.dumps(e) + '\\n' for e in pretend_events(100_000))
reads = []
for _ in range(3):
    begin = time.perf_counter(); h = read_history(file); reads.append(time.perf_counter() - begin)
print('RESULT' + json.dumps(dict(rows=rows, reads=reads, megabytes=os.path.getsize(file)/1e6, kept=sum(len(c.rows) for c in h.curves.values()))))
'''

def measure(steps, repeats):
    "The rows of a run in a kernel of its own."
    import nbformat
    from nbclient import NotebookClient
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (SETUP, MEASURE % (steps, steps, repeats))])
    NotebookClient(nb, timeout=900, kernel_name='python3', store_widget_state=False).execute()
    text = ''.join(o.get('text', '') for o in nb.cells[1].outputs)
    return json.loads(text[text.index('RESULT') + 6:].splitlines()[0])

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--steps', type=int, default=24, help='steps to a run (default: 24)')
    parser.add_argument('--repeats', type=int, default=5, help='runs of each kind (default: 5)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    got = measure(args.steps, args.repeats)
    median = lambda i: statistics.median(r[i] for r in got['rows'])
    with_, without = median(0), median(3)
    own = statistics.median((r[1] + r[2])/r[0] for r in got['rows'])
    out = dict(steps=args.steps, with_panel=with_, without=without, ratio=with_/without, own_share=own, listeners=median(1), panel=median(2), limit=LIMIT,
               read_100k=statistics.median(got['reads']), read_limit=READ, megabytes=got['megabytes'], rows_kept=got['kept'],
               python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', rows=got['rows'])
    print(f"{'with panel and log':28}{1000*with_/(args.steps - 5):9.1f} ms a step")
    print(f"{'with neither':28}{1000*without/(args.steps - 5):9.1f} ms a step   ratio {out['ratio']:.3f}")
    print(f"{'by their own clocks':28}{100*own:9.2f} % of the run   limit {100*LIMIT:.0f} %  {'' if own < LIMIT else 'TOO SLOW'}".rstrip())
    print(f"{'100,000 steps read':28}{out['read_100k']:9.2f} s, {got['megabytes']:.0f} MB, {got['kept']:,} rows kept   limit {READ} s  "
          f"{'' if out['read_100k'] < READ else 'TOO SLOW'}".rstrip())
    args.json.write_text(json.dumps(out, indent=1) + '\n', encoding='utf-8')
    return 0 if own < LIMIT and out['read_100k'] < READ else 1

if __name__ == '__main__': sys.exit(main())
