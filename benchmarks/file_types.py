"""Every file type of a trained run in llama.cpp, and how well the quantizer panel would have predicted each.

    codette quick-train --minutes 30 --out runs/quality
    python benchmarks/file_types.py runs/quality
    python benchmarks/file_types.py runs/quality --tokens 50000 --picture types.png --json out.json

Measured on the held-out text of the run. `predicted / measured` leaves the type itself out and leans on all the others;
`from q4_0` leans on that one type alone.
"""
import argparse, random
from pathlib import Path
import torch
from codette_nb.core import text_table, write_json
from codette_nb.data.records import render
from codette_nb.pipeline import run_split
from codette_nb.quantize.compare import compare_types
from codette_nb.widgets.quantizer import QuantizerPanel, predict_kl

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run', help='run folder of codette train or quick-train')
    p.add_argument('--tokens', type=int, default=8192)
    p.add_argument('--threads', type=int, default=1, help='of PyTorch (default: %(default)s)')
    p.add_argument('--picture', help='file for the page: .png or .html')
    p.add_argument('--json', default=Path(__file__).with_suffix('.json'), help='file to write the figures to (default: beside this file)')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    texts = [render(r) for records in run_split(a.run, True)[1].held_out.values() for r in records]
    random.Random(0).shuffle(texts)
    c = compare_types(a.run, texts=texts, tokens=a.tokens, text='held-out text of the run')
    print(c, '\n')
    panel, rows = QuantizerPanel(a.run, comparison=c), []
    known = {f.label: (panel.error(f.label), f.kl) for f in c.measured}
    for k, (e, kl) in known.items():
        others, one = predict_kl(e, [v for j, v in known.items() if j != k]), predict_kl(e, [known['q4_0']]) if 'q4_0' in known else None
        if others: rows.append(dict(type=k, error=e, kl=kl, predicted=others, ratio=others/kl, ratio_from_q4_0=one/kl if one else None))
    print(text_table([['type', 'error', 'measured', 'predicted / measured', 'from q4_0'],
                      *([r['type'], f"{r['error']:.4f}", f"{r['kl']:.2e}", f"{r['ratio']:.2f}", f"{r['ratio_from_q4_0']:.2f}"] for r in rows)]))
    if a.picture: c.save(a.picture)
    figures = c.to_dict()
    for f in figures['types'].values():
        for k in ('errors', 'weighted', 'formats'): del f[k] # a line for every tensor
    figures['checkpoint'] = Path(a.run).name
    write_json(Path(a.json), figures | dict(predictions=rows))

if __name__ == '__main__': main()
