"""Speed of the number formats, beside llama.cpp's own C function on the same threads.

    python benchmarks/quantize_speed.py
    python benchmarks/quantize_speed.py --threads 1 --rows 64 --formats q4_k q6_k --json out.json

`ratio` is C's time divided by ours: the median of the rounds' ratios, in which the two take turns on the same random weights. It is to be
at least 1.0 for q8 and q4_0 and at least 0.7 for the K-quants; the exit code says whether it is.
The last lines are what a newcomer waits for: the first call on a machine, which compiles, and the first call of a later process.
"""
import argparse, os, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numba, numpy as np
import codette_nb.quantize.kquants # registers its formats
from codette_nb.core import write_json
from codette_nb.quantize.blocks import FORMATS, ggml_function, number_format, quantise

def by_c(x, f, importance, threads):
    "llama.cpp's bytes; rows are shared out to the threads as ours are."
    out, fn = np.empty((len(x), f.row_bytes(x.shape[1])), np.uint8), ggml_function()
    given = None if importance is None else importance.ctypes.data
    def run(a, b): fn(int(f.type), x[a:b].ctypes.data, out[a:b].ctypes.data, 0, b - a, x.shape[1], given)
    at = [int(i) for i in np.linspace(0, len(x), threads + 1)]
    with ThreadPoolExecutor(threads) as pool: list(pool.map(run, at, at[1:]))
    return out

def seconds(f, least=.2):
    "Of one call; calls are repeated for `least` seconds."
    f(); n, t = 0, time.perf_counter()
    while (spent := time.perf_counter() - t) < least: f(); n += 1
    return spent/n

def measure(f, x, importance, threads, rounds):
    "Median speeds and the median of their ratios."
    ours, theirs = lambda: quantise(x, f, importance), lambda: by_c(x, f, importance, threads)
    same = bool((ours() == theirs()).all())
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    speed = lambda i: x.size/1e6/statistics.median(p[i] for p in pairs)
    return dict(format=f.name, importance=importance is not None, millions_a_second=speed(0), c_millions_a_second=speed(1),
                ratio=statistics.median(c/o for o, c in pairs), same_bytes=same)

FIRST = 'import time; t = time.perf_counter(); import sys, numpy as np, codette_nb.quantize.kquants; from codette_nb.quantize.blocks import quantise; ' \
        'a = time.perf_counter(); [quantise(np.ones((1, 256)), n) for n in sys.argv[1:]]; print(a - t, time.perf_counter() - a)'

def waits(names=('q4_k', 'q6_k')):
    "Seconds of import and of the first calls: on a machine that has compiled nothing yet, and after that."
    with tempfile.TemporaryDirectory() as d:
        run = lambda: subprocess.run([sys.executable, '-c', FIRST, *names], env=os.environ | dict(NUMBA_CACHE_DIR=d), capture_output=True, text=True, check=True)
        (_, first), (imports, later) = ([float(v) for v in run().stdout.split()] for _ in range(2))
    return dict(formats=list(names), import_seconds=imports, first_seconds=first, later_seconds=later)

LIMITS = dict(q8=1., q4_0=1.) | dict.fromkeys(('q2_k', 'q3_k', 'q4_k', 'q5_k', 'q6_k'), .7)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--formats', nargs='+', default=[f.name for f in FORMATS.values() if f.block > 1], metavar='NAME')
    p.add_argument('--rows', type=int, default=1024, help='of 2048 weights (default: %(default)s)')
    p.add_argument('--threads', type=int, default=numba.config.NUMBA_NUM_THREADS, help='for both (default: %(default)s)')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--json', default=Path(__file__).with_suffix('.json'), help='file to write the figures to (default: beside this file)')
    a = p.parse_args()
    if ggml_function() is None: sys.exit('nothing to compare with: xllamacpp is not installed, or does not expose ggml_quantize_chunk')
    numba.config.NUMBA_NUM_THREADS = a.threads
    rng, rows = np.random.default_rng(0), []
    x, importance = rng.normal(0, .02, (a.rows, 2048)).astype(np.float32), rng.lognormal(0, 1, 2048).astype(np.float32)
    print(f'{"format":8} {"importance":10} {"Mweights/s":>10} {"C":>8} {"ratio":>6} {"limit":>6}')
    for f in map(number_format, a.formats):
        for given in (None, importance):
            rows.append(r := measure(f, x, given, a.threads, a.rounds) | dict(limit=LIMITS.get(f.name)))
            low = r['limit'] and r['ratio'] < r['limit']
            print(f"{f.name:8} {'yes' if given is not None else 'no':10} {r['millions_a_second']:10.1f} {r['c_millions_a_second']:8.1f} {r['ratio']:6.2f} {r['limit'] or '':>6}{'  BELOW' if low else ''}"
                  f"{'' if r['same_bytes'] else '  OTHER BYTES'}", flush=True)
    w = waits()
    print(f"{' and '.join(w['formats'])}: {w['first_seconds']:.1f} s at the first call on a machine, {w['later_seconds']:.2f} s in a later process")
    write_json(Path(a.json), dict(threads=a.threads, rows=a.rows, rounds=a.rounds, results=rows, waits=w))
    below = [r for r in rows if r['limit'] and r['ratio'] < r['limit'] or not r['same_bytes']]
    print('all within their limits, all bytes the same' if not below else f'{len(below)} below their limit, or with other bytes')
    return 1 if below else 0

if __name__ == '__main__': sys.exit(main())
