"""Tokens a second of `codette chat`, beside llama-server itself over HTTP, on the same file, prompt and sampling.

    python benchmarks/chat_speed.py                       # a model of random weights
    python benchmarks/chat_speed.py runs/quick/model.gguf --tokens 200 --json out.json

Ours is the code that the command runs: `LlamaCpp.chat`, streamed piece by piece, in a process that has imported no more than the
command does (with PyTorch beside it, llama.cpp is a tenth slower or more). Theirs is llama-server, as
`codette serve` starts it in a process of its own, asked through `/completion` for the same prompt, not streamed: the server's own
speed without anybody reading along. Both decode greedily, so both must say the same; they take turns, and the ratio is of the
medians. Seconds are those on the clock, from asking to the last piece; the prompt is in the cache of both after a first turn.
"""
import argparse, json, os, re, statistics, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
from codette_nb.core import text_table, write_json
from codette_nb.data.records import render_chat
from codette_nb.quantize.reader import find_gguf, read_gguf
from codette_nb.quantize.runtime import LlamaCpp

QUESTION = 'A stone falls from a bridge that is twenty metres high. How long does it fall, and how fast is it at the end?'

def random_file(folder, size, quantization):
    "A model of random weights, which says nothing sensible at the usual speed."
    import torch
    from codette_nb.quantize.gguf import GGUFConverter
    from codette_nb.data.tokenizer import ByteTokenizer
    from codette_nb.model.config import preset
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.train.checkpoint import save_checkpoint
    torch.manual_seed(0)
    model = create_codette_model(preset(size))
    save_checkpoint(folder/'checkpoint', model, ByteTokenizer(size=model.config.vocab_size))
    GGUFConverter(folder/'checkpoint', None, quantization).write(folder/'model.gguf', quiet=True)
    return folder/'model.gguf'

@contextmanager
def server(path, threads):
    "Address of llama-server in a process of its own."
    p = subprocess.Popen([sys.executable, '-c', 'from codette_nb.cli import entry; entry()', 'serve', str(path), '--port', '0', '--threads', str(threads)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try: yield re.search(r'http://[\d.:]+', p.stdout.readline())[0]
    finally: p.terminate(); p.wait(20)

def theirs(url, prompt, tokens):
    body = json.dumps(dict(prompt=prompt, n_predict=tokens, temperature=0, cache_prompt=True)).encode()
    request = urllib.request.Request(f'{url}/completion', body, {'Content-Type': 'application/json'})
    t = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as f: answer = json.load(f)
    return time.perf_counter() - t, answer['content'], answer['tokens_predicted'], answer['timings']['predicted_per_second']

@contextmanager
def chatting(path, threads):
    "A process that answers as `codette chat` does."
    p = subprocess.Popen([sys.executable, __file__, '--answer', str(path), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try: yield p
    finally: p.stdin.close(); p.wait(20)

def ours(p, tokens):
    print(tokens, file=p.stdin, flush=True)
    return json.loads(p.stdout.readline())

def answer(path, threads):
    "Answer once for each line of standard input, which says how many tokens."
    with LlamaCpp(path, threads=int(threads)) as model:
        for line in sys.stdin: print(json.dumps(timed(model, int(line))), flush=True)

def timed(model, tokens):
    t, first, pieces = time.perf_counter(), None, []
    for piece in model.chat([{'role': 'user', 'content': QUESTION}], max_tokens=tokens, temperature=0):
        if first is None: first = time.perf_counter() - t
        pieces.append(piece)
    return time.perf_counter() - t, ''.join(pieces), first

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('model', nargs='?', help='GGUF file or run folder (default: random weights of --size)')
    p.add_argument('--size', default='mini')
    p.add_argument('--quantization', default='q4_k_m')
    p.add_argument('--tokens', type=int, default=128, help='of an answer (default: %(default)s)')
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(), help='for both (default: %(default)s)')
    p.add_argument('--json', default=Path(__file__).with_suffix('.json'), help='file to write the figures to (default: beside this file)')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        path = find_gguf(a.model) if a.model else random_file(Path(d), a.size, a.quantization)
        r = read_gguf(path)
        prompt, turns = render_chat([{'role': 'user', 'content': QUESTION}], add_generation_prompt=True), []
        with server(path, a.threads) as url, chatting(path, a.threads) as model:
            _, there, n, _ = theirs(url, prompt, a.tokens)
            _, here, _ = ours(model, a.tokens)
            if there.strip() != here.strip(): sys.exit(f'they do not say the same, so speeds cannot be compared:\n{there!r}\n{here!r}')
            for i in range(a.rounds):
                b, (o, _, first) = theirs(url, prompt, a.tokens), ours(model, a.tokens)
                turns.append(dict(ours=n/o, theirs=n/b[0], first_piece_seconds=first, inside_server=b[3]))
    median = {k: statistics.median(t[k] for t in turns if t[k] is not None) if any(t[k] is not None for t in turns) else None for k in turns[0]}
    ratio, pairs = median['ours']/median['theirs'], [t['ours']/t['theirs'] for t in turns]
    print(f'{r.summary()}; {n} tokens, {a.threads} threads')
    print(text_table([['', 'tokens a second', 'of five' if a.rounds == 5 else f'of {a.rounds}'],
                      ['codette chat', f"{median['ours']:.1f}", ' '.join(f"{t['ours']:.0f}" for t in turns)],
                      ['llama-server', f"{median['theirs']:.1f}", ' '.join(f"{t['theirs']:.0f}" for t in turns)],
                      ['ratio', f'{ratio:.3f}', ' '.join(f'{x:.2f}' for x in pairs)]]))
    within = ratio >= .95
    print(f"limit 0.95: {'within' if within else 'BELOW'}; the server counts {median['inside_server']:.1f} tokens a second for itself")
    write_json(Path(a.json), dict(model=r.summary(), file=Path(path).name, tokens=n, threads=a.threads, rounds=turns, median=median, ratio=ratio, limit=.95, within=within))
    return 0 if within else 1

if __name__ == '__main__': sys.exit(answer(*sys.argv[2:]) if sys.argv[1:2] == ['--answer'] else main())
