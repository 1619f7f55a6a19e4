"""Does a model come to the same when the products of its layers are done in int8?

    python benchmarks/int8.py [--speed] [--json int8.json]

Equal text, steps, batches and seed, bits per byte of held-out text at the end (measured in bfloat16): with the products of training in bfloat16
and in int8, with Muon and with AdamW alone, and for the smallest shape with the output head in int8 as well, which `codette_nb` does not do.
Then what a step of two layers takes in each number format, as the processor is and with oneDNN kept to the instructions that processors without
bfloat16 have (`ONEDNN_MAX_CPU_ISA`): 384 wide, 2,048 tokens. About 12 minutes of two cores; whole steps are in throughput.py.
"""
import argparse, json, os, platform, subprocess, sys
from pathlib import Path
import torch
import torch.nn.functional as F
import codette_nb.model.transformer as transformer
from codette_nb.core import text_table, write_json
from codette_nb.data.corpora import python_docs
from codette_nb.data.mixer import Mixer, Mixing
from codette_nb.data.records import render
from codette_nb.data.tokenizer import SentencePieceTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.int8 import int8_linear
from codette_nb.train.config import DTYPES
from codette_nb.train.probe import kept_memory, step_seconds
from scaling import one

RUNS = [('2x128', 256, 'muon'), ('2x128', 256, 'adamw'), ('4x256', 160, 'muon'), ('6x384/4096', 40, 'muon')] # shape, steps of 16 windows of 256 tokens, optimizer

def whole(h_btc, w_vc, targets_bt, linear):
    "The loss with all logits at once, made by `linear`."
    return F.cross_entropy(linear(h_btc, w_vc).flatten(0, 1).float(), targets_bt.flatten())

ISAS = 'AVX512_CORE_BF16', 'AVX512_CORE_VNNI' # of oneDNN: what there is from 2020 and from 2019 on; without VNNI it multiplies int8 one by one, minutes a step

def step_times():
    "Milliseconds of forward and backward on two layers, for each number format, as it is and compiled."
    with kept_memory():
        return {f'{k}, compiled' if c else k: 1000*step_seconds(TransformerConfig(8192, 256, 384, 6, 6), k, compiled=c, repeats=7)[0]
                for c in (False, True) for k in DTYPES}

def by_instructions():
    "The same in processes of their own, by what oneDNN may use."
    def run(isa): return json.loads(subprocess.run([sys.executable, __file__, '--steps'], env=os.environ | dict(ONEDNN_MAX_CPU_ISA=isa), check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {isa: run(isa) for isa in ISAS}

def losses(threads, write):
    "What equal runs come to; `write` is given all of them after each."
    split = Mixer(Mixing(10_000, weights=dict(prose=2.)), {'prose': python_docs()}).split(quiet=True)
    texts, tokenizers, rows, head = dict.fromkeys(render(r) for r in split.train), {}, [], transformer.head_loss
    for shape, steps, optimizer in RUNS:
        vocab = 4096 if '/' in shape else 2048
        if vocab not in tokenizers: tokenizers[vocab] = SentencePieceTokenizer(vocab).fit(texts)
        for products in ('bfloat16', 'int8', *(['int8, head too', 'head of bfloat16, all logits at once'] if (shape, optimizer) == ('2x128', 'muon') else [])):
            if products == 'int8, head too': transformer.head_loss = lambda h, w, y: whole(h, w, y, int8_linear if torch.is_grad_enabled() else F.linear)
            elif 'at once' in products: transformer.head_loss = lambda h, w, y: whole(h, w, y, F.linear)
            r = one(split, tokenizers[vocab], shape, steps, 16, 1, 10_000, threads, optimizer=optimizer, dtype='bfloat16' if 'bfloat16' in products else 'int8')
            transformer.head_loss = head
            rows.append(dict(shape=shape, steps=steps, optimizer=optimizer, products=products, bits_per_byte=r['bits_per_byte'], seconds=r['seconds']))
            print(shape, steps, optimizer, products, {k: round(v, 4) for k, v in r['bits_per_byte'].items()}, f"{r['seconds']:.0f} s", flush=True)
            write(rows)
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--json', type=Path, default=Path(__file__).with_suffix('.json'), help='where the figures go (default: beside this file)')
    p.add_argument('--threads', type=int, default=2, help='CPU threads (default: 2)')
    p.add_argument('--speed', action='store_true', help='measure the speed alone, and keep the losses that the file holds')
    p.add_argument('--steps', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.steps: print(json.dumps(step_times())); return 0
    speed = by_instructions()
    print(text_table([['instructions', *(f'{k}, ms' for k in speed[ISAS[0]])], *([isa, *(f'{v:.0f}' for v in of.values())] for isa, of in speed.items())]), flush=True)
    def write(rows): write_json(a.json, dict(python=platform.python_version(), torch=torch.__version__, machine=f'{platform.system()} {platform.machine()}', step_ms=speed, runs=rows))
    if a.speed: write(rows := json.loads(a.json.read_text(encoding='utf-8'))['runs'])
    else: rows = losses(a.threads, write)
    sets = list(rows[0]['bits_per_byte'])
    print(text_table([['shape', 'steps', 'optimizer', 'products', *sets], *([r['shape'], str(r['steps']), r['optimizer'], r['products'], *(f"{r['bits_per_byte'][k]:.3f}" for k in sets)] for r in rows)]))
    return 0

if __name__ == '__main__': sys.exit(main())
