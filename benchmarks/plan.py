"""What a plan says beside what the run came to: time, memory, tokens, held-out loss.

    python benchmarks/plan.py [--minutes 2 3] [--sizes auto nano] [--json plan.json]

Each run is `codette quick-train` in a process of its own, one after the other; takes the minutes given. The time is judged twice: the whole run,
and the step, which no deadline corrects along the way. Exits with 1 if a time is off by more than 15 %.
"""
import argparse, json, platform, subprocess, sys, tempfile, time
from pathlib import Path

def one(minutes, size, out):
    "Train, and read the plan and what came of it off the run folder."
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', 'from codette_nb.cli import entry; entry()', 'quick-train', '--minutes', str(minutes), '--size', size,
                    '--out', str(out), '--json'], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    report, config = (json.loads((out/f'{k}.json').read_text(encoding='utf-8')) for k in ('report', 'config'))
    plan = config['plan']
    per_step = plan['tokens']/plan['training']['max_steps']
    seconds = report['training']['seconds'] - plan['parts']['along'] - plan['parts']['warmup']
    rows = report['plan'] | {'wall clock, minutes': dict(planned=plan['seconds']/60, outcome=wall/60),
                             'a step, ms': dict(planned=1000*plan['seconds_per_step'], outcome=1000*seconds/report['training']['tokens']*per_step)}
    return dict(minutes=minutes, size=report['model']['size'], parameters=report['model']['parameters'], training=plan['training'], times=report['times'],
                parts=plan['parts'], rows=rows)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog='example: python benchmarks/plan.py --minutes 2 3')
    parser.add_argument('--minutes', type=float, nargs='+', default=[2., 3.], help='lengths of the runs (default: 2 3)')
    parser.add_argument('--sizes', nargs='+', default=['auto', 'nano'], help='one for each length, or one for all (default: auto nano)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    sizes, runs = args.sizes*len(args.minutes), []
    for minutes, size in zip(args.minutes, sizes):
        with tempfile.TemporaryDirectory() as scratch: r = one(minutes, size, Path(scratch)/'run')
        runs.append(r)
        print(f"\n{minutes:g} minutes, {r['size']} ({r['parameters']:,} parameters), batches of {r['training']['batch_size']} windows\n"
              f"{'':40}{'planned':>12}{'error':>9}{'outcome':>12}{'off by':>9}")
        for what, v in r['rows'].items():
            print(f"{what:40}{v['planned']:12.4g}{format(v['error'], '9.2g') if 'error' in v else '':>9}{v['outcome']:12.4g}{v['outcome']/v['planned'] - 1:+9.1%}", flush=True)
    off = [abs(r['rows'][k]['outcome']/r['rows'][k]['planned'] - 1) for r in runs for k in ('minutes', 'wall clock, minutes', 'a step, ms')]
    args.json.write_text(json.dumps(dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', largest_time_error=max(off),
                                         runs=runs), indent=1) + '\n', encoding='utf-8')
    print(f'\nlargest error of a time: {max(off):.1%} (to be within 15 %)')
    return 0 if max(off) <= .15 else 1

if __name__ == '__main__': sys.exit(main())
