"""Private memory that a GGUF export needs: `python benchmarks/export_memory.py [--size small] [--quantization q4_k_m] [--json out.json]`.

A checkpoint of the size, with random weights, is streamed to a temporary folder; a child process exports it while this one
reads the child's private memory (RssAnon: pages that are its own, not those of the mapped checkpoint) twenty times a second.
The figure to stay under is 1 GiB plus the largest tensor. Linux only.
"""
import argparse, hashlib, json, struct, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np
from codette_nb.core import human_bytes, human_count, require_space, write_json
from codette_nb.data.tokenizer import ByteTokenizer, save_tokenizer
from codette_nb.model.config import PRESETS, num_parameters, preset, to_hf
from codette_nb.quantize.filetypes import FILE_TYPES
from codette_nb.quantize.gguf import tensor_shapes
from codette_nb.train.checkpoint import MANIFEST, WEIGHTS

def write_weights(path, shapes, seed=0):
    "A safetensors file of random fp32 weights, a few megabytes in memory at a time."
    rng, header, at = np.random.default_rng(seed), {}, 0
    for n, s in shapes.items():
        size = 4*int(np.prod(s))
        header[n] = dict(dtype='F32', shape=s, data_offsets=[at, at + size]); at += size
    head = json.dumps(header).encode()
    head += b' '*(-len(head) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head)
        for s in shapes.values():
            left = int(np.prod(s))
            while left:
                x = rng.standard_normal(min(left, 1 << 20), np.float32)*np.float32(.02)
                f.write(x.tobytes()); left -= len(x)

def write_checkpoint(folder, size):
    "A checkpoint of random weights, never whole in memory."
    config = preset(size)
    write_json(folder/'config.json', to_hf(config))
    save_tokenizer(ByteTokenizer(size=config.vocab_size), folder)
    write_weights(folder/WEIGHTS, tensor_shapes(config))
    def sha(p):
        with open(p, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()
    files = {p.name: dict(bytes=p.stat().st_size, sha256=sha(p)) for p in sorted(folder.iterdir())}
    write_json(folder/MANIFEST, dict(format='codette checkpoint', version=1, files=files))
    return config

EXPORT = ('import sys; from codette_nb.quantize.gguf import convert_checkpoint_to_gguf as convert; '
          'convert(sys.argv[1], None, sys.argv[2], sys.argv[3], quiet=True)')

def private_bytes(pid):
    "RssAnon of a process, 0 when it has ended."
    try: status = Path(f'/proc/{pid}/status').read_text()
    except (FileNotFoundError, ProcessLookupError): return 0
    return next((int(l.split()[1])*1024 for l in status.splitlines() if l.startswith('RssAnon:')), 0)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', default='small', choices=list(PRESETS))
    p.add_argument('--quantization', default='q4_k_m', choices=list(FILE_TYPES))
    p.add_argument('--folder', help='where to put the two files for the while; default: the temporary folder')
    p.add_argument('--json', help='file to write the figures to')
    a = p.parse_args()
    if not Path('/proc/self/status').exists(): sys.exit('this benchmark reads /proc, which only Linux has')
    n = num_parameters(preset(a.size))
    require_space(a.folder or tempfile.gettempdir(), 8*n, 'a checkpoint and its export')
    with tempfile.TemporaryDirectory(dir=a.folder) as d:
        ckpt, out = Path(d, 'checkpoint'), Path(d, 'model.gguf')
        ckpt.mkdir()
        t = time.time(); config = write_checkpoint(ckpt, a.size)
        print(f'{a.size}: {human_count(n)} parameters written in {time.time() - t:.0f} s', flush=True)
        t, peak = time.time(), 0
        child = subprocess.Popen([sys.executable, '-c', EXPORT, str(ckpt), str(out), a.quantization])
        while child.poll() is None: peak = max(peak, private_bytes(child.pid)); time.sleep(.05)
        if child.returncode: sys.exit('the export failed')
        seconds, size = time.time() - t, out.stat().st_size
    largest = 4*max(int(np.prod(s)) for s in tensor_shapes(config).values())
    limit = (1 << 30) + largest
    figures = dict(size=a.size, quantization=a.quantization, parameters=n, file_bytes=size, seconds=round(seconds, 1),
                   peak_private_bytes=peak, largest_tensor_bytes=largest, limit_bytes=limit, within=peak <= limit)
    rows = ('file', size), ('peak private memory', peak), ('largest tensor', largest), ('limit (1 GiB + largest)', limit)
    for k, v in rows: print(f'{k:25} {human_bytes(v):>10}')
    print(f"{'export':25} {seconds:8.0f} s   {'within the limit' if figures['within'] else 'ABOVE THE LIMIT'}")
    if a.json: write_json(a.json, figures)
    return 0 if figures['within'] else 1

if __name__ == '__main__': sys.exit(main())
