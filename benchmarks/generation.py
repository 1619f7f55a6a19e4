"""Tokens a second of greedy decoding at batch 1, beside `transformers` on the same weights.

    python benchmarks/generation.py --json benchmarks/generation.json
    python benchmarks/generation.py --sizes nano --new 32

Models have random weights. Both libraries get the same prompt, make the same number of new tokens with two threads and a
key/value cache, and take turns; a turn of ours includes laying out the weights. The ratio is the median of the turns' ratios.
"""
import argparse, statistics, time
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM
from codette_nb.core import write_json
from codette_nb.model.config import to_hf
from codette_nb.model.generate import Sampling, generate_ids, generate_rows
from codette_nb.model.transformer import create_codette_model

def theirs(model):
    "The same weights in `transformers`."
    hf = Starcoder2ForCausalLM(Starcoder2Config(**{k: v for k, v in to_hf(model.config).items() if k not in ('architectures', 'model_type')})).eval()
    hf.load_state_dict({f'model.{k}': v for k, v in model.state_dict().items()} | {'lm_head.weight': model.embed_tokens.weight})
    return hf

def measure(size, new, runs, prompt=32, batch=8):
    "Median tokens a second of both, the ratio, and what a batch reaches."
    torch.manual_seed(0)
    model = create_codette_model(size).eval()
    ids, hf = torch.randint(8, model.config.vocab_size, (1, prompt)), theirs(model)
    hf.generation_config.eos_token_id = hf.generation_config.bos_token_id = None
    def peer(): return hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=new, min_new_tokens=new,
                                   pad_token_id=0)[0, prompt:].tolist()
    def ours(): return list(generate_ids(model, ids[0].tolist(), new, Sampling(0.)))
    def drawn(): return list(generate_ids(model, ids[0].tolist(), new, Sampling(repetition_penalty=1.1), seed=0))
    def rows(): return list(generate_rows(model, [ids[0].tolist()]*batch, new, Sampling(0.)))
    functions, seconds = dict(ours=ours, transformers=peer, ours_sampling=drawn, ours_batch=rows), {}
    same = ours() == peer()                                                # warms up as well
    for _ in range(runs):
        for name, f in functions.items():
            t = time.perf_counter(); f(); seconds.setdefault(name, []).append(time.perf_counter() - t)
    rate = {k: new*(batch if k == 'ours_batch' else 1)/statistics.median(v) for k, v in seconds.items()}
    return dict(parameters=model.num_parameters(), same_ids=same, tokens_per_second=rate, batch=batch, new=new, prompt=prompt,
                ratio=statistics.median(p/o for p, o in zip(seconds['transformers'], seconds['ours'])), seconds=seconds)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sizes', nargs='+', default=['nano', 'micro', 'mini'], help='presets (default: nano micro mini)')
    p.add_argument('--new', type=int, default=64, help='tokens to make (default: 64)')
    p.add_argument('--runs', type=int, default=5, help='turns of each (default: 5)')
    p.add_argument('--threads', type=int, default=2, help='of both (default: 2)')
    p.add_argument('--json', help='file for the figures')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    found = {size: measure(size, a.new, a.runs) for size in a.sizes}
    print(f"{'size':8}{'ours':>10}{'transformers':>14}{'ratio':>8}{'sampling':>10}{'8 at once':>11}  tokens a second; same ids")
    for size, r in found.items():
        t = r['tokens_per_second']
        print(f"{size:8}{t['ours']:10.1f}{t['transformers']:14.1f}{r['ratio']:8.2f}{t['ours_sampling']:10.1f}{t['ours_batch']:11.1f}  {r['same_ids']}")
    if a.json: write_json(a.json, dict(threads=a.threads, runs=a.runs, torch=torch.__version__, sizes=found))

if __name__ == '__main__': main()
