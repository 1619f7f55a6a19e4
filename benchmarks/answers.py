"""What small models trained on the mix answer to held-out questions, marked by program, beside a control.

    python benchmarks/answers.py [--models nano:8] [--questions 40] [--samples 20000] [--runs FOLDER] [--json answers.json]

Models measured before stay in the file, unless they are asked for again. For each SIZE:MINUTES one `codette quick-train`, unless FOLDER holds its run already; then `codette eval --answers`: exact match of
computed results, tool calls that are valid and right, statements about itself that its configuration bears out. Right answers stand
beside the share that a true answer to another question of the same family would have had.
"""
import argparse, json, platform, subprocess, sys, tempfile
from pathlib import Path

CODETTE = [sys.executable, '-c', 'from codette_nb.cli import entry; entry()']

def train_steps(size, steps, run, samples):
    "A run of so many steps, without the measurements at the end of it, which take a large model longer than a short training."
    from codette_nb.pipeline import make_recipe, new_run
    few = dict(eval_windows=16, eval_every=max(1, steps//3), save_every=steps, sample_every=0, log_every=2)
    trainer, _ = new_run(make_recipe(size, steps, samples=samples, vocab=4096, context=256, batch=8, **few), run)
    done, last = trainer.fit(), {}
    for line in (run/'metrics.jsonl').read_text(encoding='utf-8').splitlines():
        if (e := json.loads(line))['event'] == 'eval': last = e['sets']
    return dict(minutes=round(done['elapsed']/60, 1), parameters=trainer.model.num_parameters(), tokens=trainer.tokens,
                bits_per_byte={k: v['bits_per_byte'] for k, v in last.items()})

def train_minutes(size, minutes, run, samples):
    "A run of `codette quick-train`, from data to report."
    subprocess.run([*CODETTE, 'quick-train', '--size', size, '--minutes', minutes, '--samples', str(samples), '--out', str(run), '--no-verify'], check=True)
    report = json.loads((run/'report.json').read_text(encoding='utf-8'))
    return dict(minutes=float(minutes), parameters=report['model']['parameters'], tokens=report['training']['tokens'],
                bits_per_byte={k: v['bits_per_byte'] for k, v in report['held_out'].items()})

def measure(size, length, questions, folder, samples):
    "The rows of one model; its training is not done again where `folder` has it."
    run, done = folder/f'{size}-{length}', folder/f'{size}-{length}.json'
    if not done.exists():
        figures = train_steps(size, int(length.removesuffix('steps')), run, samples) if length.endswith('steps') else train_minutes(size, length, run, samples)
        done.write_text(json.dumps(figures), encoding='utf-8')
    asked = subprocess.run([*CODETTE, 'eval', str(run), '--answers', str(questions), '--json'], check=True, stdout=subprocess.PIPE)
    return dict(size=size, length=length, **json.loads(done.read_text(encoding='utf-8')), rows=json.loads(asked.stdout))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', default=['nano:8'], metavar='SIZE:LENGTH', help='minutes as in nano:8, or steps of 2,048 tokens as in mini:150steps; several are compared (default: nano:8)')
    parser.add_argument('--questions', type=int, default=40, help='of each set and source (default: %(default)s)')
    parser.add_argument('--samples', type=int, default=20000, help='generated training records (default: %(default)s)')
    parser.add_argument('--runs', type=Path, default=None, help='folder to keep the runs in (default: a temporary one)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = [measure(*m.split(':'), args.questions, args.runs or Path(scratch), args.samples) for m in args.models]
    for m in models:
        print(f"\n{m['size']}, {m['minutes']:g} minutes, {m['parameters']:,} parameters, {m['tokens']:,} tokens; bits a byte: "
              + ', '.join(f'{k} {v:.3f}' for k, v in m['bits_per_byte'].items()))
        for r in m['rows']:
            control = '' if r['control'] is None else f"{r['control']:8.0%}"
            print(f"{r['set']:17}{r['source']:17}{r['mark']:30}{r['questions']:5}{r['right']:8.0%}{control}")
    known = {(m['size'], m.get('length', f"{m['minutes']:g}")): m for m in json.loads(args.json.read_text(encoding='utf-8'))['models']} if args.json.exists() else {}
    known |= {(m['size'], m['length']): m for m in models}
    args.json.write_text(json.dumps(dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', models=list(known.values())), indent=1) + '\n', encoding='utf-8')

if __name__ == '__main__': main()
