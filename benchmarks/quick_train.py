"""What the default `codette quick-train` reaches on this machine, beside what it should.

    python benchmarks/quick_train.py [--minutes 5] [--out FOLDER] [--json quick_train.json]

One whole run of the command in a process of its own, timed from outside; the figures are those of its report.json.
Takes the minutes given. Exits with 1 if a figure misses its target.
"""
import argparse, json, platform, subprocess, sys, tempfile, time
from pathlib import Path

def targets(report, seconds, minutes):
    "Rows of (what, measured, target or None, whether lower is better)."
    seen, unseen, prose = (report['held_out'][k] for k in ('seen families', 'unseen families', 'prose'))
    parity = report['exports'][0]['parity']
    rows = [('seen families: loss, nats a token', seen['loss'], 2.0, True),
            ('seen families: bits per byte', seen['bits_per_byte'], .8, True),
            ('seen families: next-token accuracy', seen['accuracy'], .6, False),
            ('  trigram: bits per byte', seen['trigram']['bits_per_byte'], None, True),
            ('  trigram: next-token accuracy', seen['trigram']['accuracy'], None, False),
            ('  xz given training: bits per byte', seen['xz_given_train'], None, True),
            ('unseen families: loss, nats a token', unseen['loss'], None, True),
            ('unseen families: bits per byte', unseen['bits_per_byte'], None, True),
            ('unseen families: next-token accuracy', unseen['accuracy'], None, False),
            ('  trigram: bits per byte', unseen['trigram']['bits_per_byte'], None, True),
            ('prose: bits per byte', prose['bits_per_byte'], prose['xz_alone'], True),
            ('  xz alone: bits per byte', prose['xz_alone'], None, True),
            ('  xz given training: bits per byte', prose['xz_given_train'], None, True),
            ('score (a training statistic)', report['score']['score'], None, False),
            ('training, tokens a second', report['training']['tokens_per_second'], None, False),
            ('minutes, all in all', seconds/60, 1.15*minutes, True)]
    if parity['status'] == 'passed': rows.append(('export: mean KL to PyTorch, nats', parity['logits']['kl'], 1e-4, True))
    return [dict(what=w, measured=m, target=t, ok=t is None or (m <= t if low else m >= t)) for w, m, t, low in rows]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--minutes', type=float, default=5., help='what quick-train is given (default: 5)')
    parser.add_argument('--out', type=Path, default=None, help='run folder to keep (default: a temporary one)')
    parser.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)/'run'
        start = time.perf_counter()
        subprocess.run([sys.executable, '-c', 'from codette_nb.cli import entry; entry()', 'quick-train', '--minutes', str(args.minutes), '--out', str(out)], check=True)
        seconds = time.perf_counter() - start
        report = json.loads((out/'report.json').read_text(encoding='utf-8'))
    rows = targets(report, seconds, args.minutes)
    print(f"\n{'':40}{'measured':>12}{'target':>12}")
    for r in rows: print(f"{r['what']:40}{r['measured']:12.4g}{'' if r['target'] is None else format(r['target'], '12.4g')}{'' if r['ok'] else '  MISSED'}")
    data = dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', device=report['training']['device'],
                minutes=args.minutes, model=report['model'], training=report['training'], data=report['data'], times=report['times'], held_out=report['held_out'],
                plan=report['plan'], rows=rows)
    args.json.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    return 0 if all(r['ok'] for r in rows) else 1

if __name__ == '__main__': sys.exit(main())
