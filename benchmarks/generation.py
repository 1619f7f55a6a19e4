"""Tokens a second of greedy decoding at batch 1, beside `transformers` on the same weights.

    python benchmarks/generation.py --json benchmarks/generation.json
    python benchmarks/generation.py --sizes nano --new 32

Models have random weights. Both libraries get the same prompt, make the same number of new tokens with two threads and a
key/value cache, and take turns; a turn of ours includes laying out the weights. Ratios are medians of the turns' ratios, in float32
on both sides and with bfloat16 matrices on both sides; `mixed` is our bfloat16 beside their float32.
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
    def peer(hf=hf): return hf.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, max_new_tokens=new, min_new_tokens=new,
                                   pad_token_id=0)[0, prompt:].tolist()
    def ours(): return list(generate_ids(model, ids[0].tolist(), new, Sampling(0.)))
    def ours_bf16(): return list(generate_ids(model, ids[0].tolist(), new, Sampling(0.), precision='bfloat16'))
    half = theirs(model).bfloat16()
    half.generation_config.eos_token_id = half.generation_config.bos_token_id = None
    def peer_bf16(): return peer(half)
    def drawn(): return list(generate_ids(model, ids[0].tolist(), new, Sampling(repetition_penalty=1.1), seed=0))
    def rows(): return list(generate_rows(model, [ids[0].tolist()]*batch, new, Sampling(0.)))
    functions, seconds = dict(ours=ours, transformers=peer, ours_bf16=ours_bf16, transformers_bf16=peer_bf16, ours_sampling=drawn, ours_batch=rows), {}
    ours_bf16(); peer_bf16()
    same = ours() == peer()                                                # warms up as well
    for _ in range(runs):
        for name, f in functions.items():
            t = time.perf_counter(); f(); seconds.setdefault(name, []).append(time.perf_counter() - t)
    rate = {k: new*(batch if k == 'ours_batch' else 1)/statistics.median(v) for k, v in seconds.items()}
    def ratio(a, b): return statistics.median(x/y for x, y in zip(seconds[a], seconds[b]))
    return dict(parameters=model.num_parameters(), same_ids=same, tokens_per_second=rate, batch=batch, new=new, prompt=prompt,
                ratio=ratio('transformers', 'ours'), ratio_bf16=ratio('transformers_bf16', 'ours_bf16'), mixed=ratio('transformers', 'ours_bf16'), seconds=seconds)

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
    columns = 'ours', 'transformers', 'ours_bf16', 'transformers_bf16', 'ours_sampling', 'ours_batch'
    print(f"{'tokens/s':8}" + ''.join(f'{c:>19}' for c in columns) + '   ratio  bf16 mixed  same ids')
    for size, r in found.items():
        print(f'{size:8}' + ''.join(f"{r['tokens_per_second'][c]:19.1f}" for c in columns)
              + f"{r['ratio']:8.2f}{r['ratio_bf16']:6.2f}{r['mixed']:6.2f}  {r['same_ids']}")
    if a.json: write_json(a.json, dict(threads=a.threads, runs=a.runs, torch=torch.__version__, sizes=found))

if __name__ == '__main__': main()
