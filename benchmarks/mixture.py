"""What the generated mix is like at 100,000 records, and how fast it is made.

    python benchmarks/mixture.py [--n 100000] [--workers 2] [--json mixture.json]

Speed on one core for each source (median of five), then one mix of n records: the share that is distinct after normalising,
the commonest run of eight words outside declared headers, and what a 5-gram model fitted on the training part makes of
held-out records of the families it has seen and of those it has not. Exits with 1 if a figure misses its target.
"""
import argparse, json, os, platform, statistics, sys, time
from collections import Counter
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')

from codette_nb.data.mixer import Generated, Mixer, Mixing, body
from codette_nb.data.ngrams import commonest_runs, memory_bits
from codette_nb.data.records import fingerprint, render
from codette_nb.data.sources import SOURCES, families

def speed(source, seconds=1.):
    "Records a second on one core, median of five."
    made, k, rates = Generated(source), 0, []
    for _ in range(5):
        start, first = time.perf_counter(), k
        while time.perf_counter() - start < seconds/5: made.at(k); k += 1
        rates.append((k - first)/(time.perf_counter() - start))
    return statistics.median(rates)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=100_000, help='records of the mix (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes that make it (default: the cores)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    rows = [(f'{s}: records a second on one core', speed(s), 5000 if s != 'tool_use' else None, False) for s in SOURCES]
    mixer = Mixer(Mixing(samples=args.n, held_out=1000/args.n))
    start = time.perf_counter()
    records = list(mixer.stream(workers=args.workers))
    rows.append((f'the mix: records a second with {args.workers} workers', len(records)/(time.perf_counter() - start), None, False))
    texts = [render(r) for r in records]
    rows.append(('distinct after normalising', len({fingerprint(t) for t in texts})/len(texts), .9, False))
    runs = commonest_runs(map(body, records))
    rows.append(('commonest run of eight words, share of records', runs[0][0], .005, True))
    memory = memory_bits(texts, {k: [render(r) for r in v] for k, v in mixer.held_out.items()})
    rows += [(f'5-gram model on {k}, bits a byte', v, None, True) for k, v in memory.items()]
    rows.append(('  the gap, bits a byte', memory['unseen families'] - memory['seen families'], .3, False))
    rows = [dict(what=w, measured=m, target=t, ok=t is None or (m <= t if low else m >= t)) for w, m, t, low in rows]
    for r in rows: print(f"{r['what']:55}{r['measured']:12.4g}{'' if r['target'] is None else format(r['target'], '12.4g')}{'' if r['ok'] else '  MISSED'}")
    for share, run in runs[:5]: print(f'  {share:.3%}  {run}')
    kinds = {s: dict(training=len(families(s, False)), held_out=len(families(s, True))) for s in SOURCES}
    args.json.write_text(json.dumps(dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', records=len(records),
                                         families=kinds, sources=Counter(r.source for r in records), runs=runs, rows=rows), indent=1) + '\n', encoding='utf-8')
    return 0 if all(r['ok'] for r in rows) else 1

if __name__ == '__main__': sys.exit(main())
