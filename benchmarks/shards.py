"""Shards at work: `python benchmarks/shards.py [--stream 2048] [--json shards.json]`.

Three figures. (1) Speed of `write_shards`, reading, hashing and writing included, beside SentencePiece's own encoding of the same texts
in memory with a thread for each core: the two take turns, and the figure is the median of their ratios; to be at least 0.8.
(2) Peak private memory (RssAnon: pages that are a process's own, not those of mapped files; Linux only) of a child that writes shards
from a stream of generated text, and of another that reads batches from them: below 1 GiB, whatever the size of the stream.
(3) Tokens a second that batches hold, from the first window on, packing included, beside those that the `nano` model learns from: 50 times.
"""
import argparse, os, platform, random, re, statistics, subprocess, sys, tempfile, time
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from codette_nb.core import human_bytes, human_count, read_json, require_space, write_json
from codette_nb.data.packing import Sampler, TextDataset
from codette_nb.data.shards import Shards, write_shards
from codette_nb.data.tokenizer import SentencePieceTokenizer, load_tokenizer, save_tokenizer

RATIO, MEMORY, TIMES = .8, 1 << 30, 50

def stream(nbytes, seed=0):
    "Texts of 1 to 60 sentences of Python's documentation, in ever other combinations, until there are so many bytes."
    rng = random.Random(seed)
    sentences = [s + ' ' for t in topics.values() for s in re.split(r'(?<=[.:])\s+', t) if s]
    done = 0
    while done < nbytes:
        text = ''.join(rng.choices(sentences, k=rng.randint(1, 60)))
        yield text
        done += len(text.encode())

def compare(tok, folder, mib, runs):
    "Bytes a second of SentencePiece alone, of `write_shards`, and of one batch after the other, taking turns."
    texts = list(stream(mib << 20))
    nbytes, seconds = sum(len(t.encode()) for t in texts), {'SentencePiece': [], 'write_shards': [], 'without overlap': []}
    def timed(name, f):
        t = time.perf_counter(); f(); seconds[name].append(time.perf_counter() - t)
    for run in range(runs + 1):
        timed('SentencePiece', lambda: tok.sp.encode(texts, num_threads=os.cpu_count()))
        timed('write_shards', lambda: write_shards(iter(texts), tok, folder, quiet=True, force=True))
        timed('without overlap', lambda: [tok.document(texts[i:i+64]) for i in range(0, len(texts), 64)])
        if not run: seconds = {k: [] for k in seconds}    # the first round warms up
    ratio = [a/b for a, b in zip(seconds['SentencePiece'], seconds['write_shards'])]
    plain = [a/b for a, b in zip(seconds['SentencePiece'], seconds['without overlap'])]
    return dict(text_bytes=nbytes, threads=os.cpu_count(), runs=runs, ratio=statistics.median(ratio), ratios=ratio,
                ratio_without_overlap=statistics.median(plain),
                bytes_per_second={k: nbytes/statistics.median(v) for k, v in seconds.items()})

def child_write(home, nbytes): write_shards(stream(nbytes), load_tokenizer(home/'tokenizer'), home/'stream', quiet=True)

def child_read(home, batches):
    "Batches from the beginning, the middle and the end of an epoch."
    shards = Shards.open(home/'stream')
    data = TextDataset(shards, shards.tokenizer, 256)
    sampler, n, t = Sampler(data, 16), data.num_windows(0), time.perf_counter()
    for position in (0, n//2, n - 16*batches//3):
        sampler.load_state(dict(epoch=0, position=max(0, position)))
        for _ in range(batches//3): sampler.next()
    write_json(home/'read.json', dict(windows=n, groups=len(data.plan(0)[0]), seconds=time.perf_counter() - t))

def private_bytes(pid):
    "RssAnon of a process, 0 when it has ended."
    try: status = Path(f'/proc/{pid}/status').read_text()
    except (FileNotFoundError, ProcessLookupError): return 0
    return next((int(l.split()[1])*1024 for l in status.splitlines() if l.startswith('RssAnon:')), 0)

def watch(*args):
    "Run this file as a child; its seconds and its peak private memory."
    t, peak = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, __file__, *map(str, args)])
    while child.poll() is None: peak = max(peak, private_bytes(child.pid)); time.sleep(.02)
    if child.returncode: sys.exit(f'{args[0]} failed')
    return time.perf_counter() - t, peak

def memory(tok, home, mib):
    "Private memory of writing a stream of text, and of reading it."
    save_tokenizer(tok, home/'tokenizer')
    seconds, peak = watch('--child', 'write', '--home', home, '--stream', mib)
    read_seconds, read_peak = watch('--child', 'read', '--home', home)
    shards = Shards.open(home/'stream')
    return dict(text_bytes=shards.num_bytes, tokens=shards.num_tokens, documents=shards.num_documents, shards=len(shards.sizes), seconds=seconds,
                peak_private_bytes=peak, reading=read_json(home/'read.json'), reading_peak_private_bytes=read_peak)

def batches(shards, home, runs, batch_size=16):
    "Tokens a second of reading an epoch, and of training `nano` on it, taking turns."
    import torch
    from codette_nb.core import set_seed
    from codette_nb.model.config import preset
    from codette_nb.model.transformer import CustomTransformer
    from codette_nb.train.trainer import CodetteTrainer, TrainingConfig
    from dataclasses import replace
    config, read, learn = replace(preset('nano'), vocab_size=shards.tokenizer.vocab_size), [], []
    for run in range(runs):
        set_seed(0)
        data = TextDataset(shards, shards.tokenizer, config.context_length, seed=run)     # packs anew
        sampler, t, n = Sampler(data, batch_size), time.perf_counter(), len(data)//batch_size
        for _ in range(n): sampler.next()
        read.append(n*batch_size*config.context_length/(time.perf_counter() - t))
        steps = dict(max_steps=6, eval_every=100, save_every=100, sample_every=0, log_every=2, eval_windows=1, batch_size=batch_size, device='cpu')
        trainer = CodetteTrainer(CustomTransformer(config), shards.tokenizer, data, list(islice(stream(1 << 14, 1), 5)),
                                 TrainingConfig.laptop(**steps), home/f'run-{run}')
        seen = []
        trainer.listeners.append(lambda e: seen.append(e['tokens_per_second']) if e['event'] == 'step' else None)
        trainer.fit(quiet=True)
        learn.append(max(seen))
    return dict(context=config.context_length, batch_size=batch_size, threads=torch.get_num_threads(),
                reading=statistics.median(read), learning=statistics.median(learn),
                batches_per_second=statistics.median(read)/batch_size/config.context_length, times=statistics.median(a/b for a, b in zip(read, learn)))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--mib', type=int, default=16, help='text for the speeds, in MiB (default: 16)')
    p.add_argument('--stream', type=int, default=2048, help='text for the memory, in MiB (default: 2048; takes minutes)')
    p.add_argument('--runs', type=int, default=5, help='of which the median is taken (default: 5)')
    p.add_argument('--folder', help='where to put the files for the while; default: the temporary folder')
    p.add_argument('--json', help='file to write the figures to')
    p.add_argument('--child', choices=['write', 'read'], help=argparse.SUPPRESS)
    p.add_argument('--home', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child_write(a.home, a.stream << 20) if a.child == 'write' else child_read(a.home, 600)
    if not Path('/proc/self/status').exists(): sys.exit('this benchmark reads /proc, which only Linux has')
    require_space(a.folder or tempfile.gettempdir(), (a.stream + a.mib) << 20, 'the shards of a benchmark')
    tok = SentencePieceTokenizer(4096).fit(stream(4 << 20, 2))
    with tempfile.TemporaryDirectory(dir=a.folder) as d:
        home = Path(d)
        speed = compare(tok, home/'speed', a.mib, a.runs)
        rate = batches(Shards.open(home/'speed'), home, a.runs)
        for k, v in speed['bytes_per_second'].items(): print(f'{k:28} {v/1e6:8.1f} MB/s')
        print(f"{'ratio, median of ' + str(a.runs):28} {speed['ratio']:8.2f}        (at least {RATIO})", flush=True)
        print(f"{'reading batches':28} {human_count(rate['reading']):>8} tokens/s, {rate['batches_per_second']:,.0f} batches/s")
        print(f"{'nano learns':28} {human_count(rate['learning']):>8} tokens/s\n{'times':28} {rate['times']:8.0f}        (at least {TIMES})", flush=True)
        mem = memory(tok, home, a.stream)
    for what, k in (('memory of writing', 'peak_private_bytes'), ('memory of reading', 'reading_peak_private_bytes')):
        print(f"{what:28} {human_bytes(mem[k]):>8}   of {human_bytes(mem['text_bytes'])} of text (below {human_bytes(MEMORY)})")
    ok = speed['ratio'] >= RATIO and rate['times'] >= TIMES and max(mem['peak_private_bytes'], mem['reading_peak_private_bytes']) < MEMORY
    if a.json: write_json(a.json, dict(python=platform.python_version(), machine=f'{platform.system()} {platform.machine()}', cores=os.cpu_count(),
                                       tokenizing=speed, batches=rate, memory=mem, ok=ok))
    return 0 if ok else 1

if __name__ == '__main__': sys.exit(main())
