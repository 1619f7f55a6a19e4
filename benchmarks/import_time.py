"""How long a start takes: `import codette_nb` (at most 0.3 s) and `codette --help` (at most 1 s).

    python benchmarks/import_time.py [--runs 11] [--json import_time.json]

Each run is a new process. The time of a bare `python -c pass` is shown beside them: it is part of both, and no one can
do anything about it here. Exits with 1 if a median is above its limit.
"""
import argparse, importlib.util, json, platform, statistics, subprocess, sys, time
from pathlib import Path

LIMITS = {'python -c pass': None, 'import codette_nb': .3, 'codette --help': 1.}

def commands():
    "What is run for each row; the command line has to be there, `codette` need not be on the PATH."
    found = {'python -c pass': ['-c', 'pass'], 'import codette_nb': ['-c', 'import codette_nb']}
    if importlib.util.find_spec('codette_nb.cli'):
        found['codette --help'] = ['-c', 'import sys; from codette_nb.cli import run; run(["--help"])']
    return found

def seconds(args):
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - start

def measure(runs):
    "Median, fastest and slowest time of each command; the runs take turns, so that a busy moment hits all alike."
    cmds = commands()
    for args in cmds.values(): seconds(args)      # the first run reads from the disk and writes byte code
    times = {name: [] for name in cmds}
    for _ in range(runs):
        for name, args in cmds.items(): times[name].append(seconds(args))
    return [dict(what=name, median=statistics.median(t), fastest=min(t), slowest=max(t), limit=LIMITS[name],
                 ok=LIMITS[name] is None or statistics.median(t) <= LIMITS[name]) for name, t in times.items()]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=11, help='processes for each row (default: 11)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    rows = measure(args.runs)
    print(f"{'':20}{'median':>9}{'fastest':>9}{'slowest':>9}{'limit':>9}")
    for r in rows:
        limit = f"{r['limit']:.1f} s" if r['limit'] else ''
        print(f"{r['what']:20}{r['median']:7.3f} s{r['fastest']:7.3f} s{r['slowest']:7.3f} s{limit:>9}  {'' if r['ok'] else 'TOO SLOW'}".rstrip())
    if len(rows) < len(LIMITS): print('codette_nb.cli is not there: `codette --help` was not measured')
    data = dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', runs=args.runs, rows=rows)
    args.json.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    return 0 if all(r['ok'] for r in rows) else 1

if __name__ == '__main__': sys.exit(main())
