"""How much of a GPU's arithmetic the training of `small` (1.3 billion parameters) uses.

    python benchmarks/gpu.py [--size small] [--batch 8] [--rounds 5] [--json gpu.json]

bfloat16 autocast, layers compiled, fused AdamW, windows of the model's whole context. The share counts multiplications and additions of the
forward and the backward pass, attention included, nothing that is computed twice; it is of the maker's figure for dense bfloat16 where the
GPU is known, and of a measured product of 8192 × 8192 matrices beside it. Where there is no GPU it says so, and ends well.
To try the code itself out: python benchmarks/gpu.py --device cpu --size nano --batch 2 --rounds 1
"""
import argparse, platform, statistics, sys, time
import torch
from codette_nb.core import human_bytes, human_count, text_table, write_json
from codette_nb.model.config import PRESETS, flops_per_token, num_parameters, preset
from codette_nb.model.transformer import CustomTransformer
from codette_nb.train.optim import Optimizer

SHARE = .45
PEAKS = {'H200': 989e12, 'H100 PCIe': 756e12, 'H100': 989e12, 'A100': 312e12, 'L40S': 362e12, 'A10': 125e12, 'L4': 121e12, 'RTX 4090': 165e12, 'RTX 3090': 71e12}

def sync(device):
    if device == 'cuda': torch.cuda.synchronize()

def product(device, n, repeats=20):
    "Operations a second of a bfloat16 product of n × n matrices."
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=device) for _ in range(2))
    for _ in range(3): a@b
    sync(device)
    t = time.perf_counter()
    for _ in range(repeats): a@b
    sync(device)
    return repeats*2*n**3/(time.perf_counter() - t)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', choices=list(PRESETS), default='small', help='preset (default: small)')
    p.add_argument('--batch', type=int, default=8, help='windows to a step (default: 8)')
    p.add_argument('--rounds', type=int, default=5, help='of which the median is taken (default: 5)')
    p.add_argument('--steps', type=int, default=5, help='in a round (default: 5)')
    p.add_argument('--device', choices=['cuda', 'cpu'], default='cuda', help='cpu only tries the code out (default: cuda)')
    p.add_argument('--json', help='file to write the figures to')
    a = p.parse_args()
    if a.device == 'cuda' and not torch.cuda.is_available(): print('There is no GPU here that torch can use: nothing was measured.'); return 0
    config = preset(a.size)
    torch.manual_seed(0)
    with torch.device(a.device): model = CustomTransformer(config)
    model.train().compile_layers()
    opt, T = Optimizer(model, lr=1e-4), config.context_length
    ids = torch.randint(config.vocab_size, (a.batch, T + 1), device=a.device)
    def step():
        with torch.autocast(a.device, torch.bfloat16): loss = model(ids[:, :-1], ids[:, 1:])
        opt.zero_grad(); loss.backward(); opt.step()
    begin = time.perf_counter()
    step(); sync(a.device)
    first, took = time.perf_counter() - begin, []
    for _ in range(2): step()
    sync(a.device)
    for _ in range(a.rounds):
        t = time.perf_counter()
        for _ in range(a.steps): step()
        sync(a.device)
        took.append((time.perf_counter() - t)/a.steps)
    name = torch.cuda.get_device_name() if a.device == 'cuda' else platform.processor() or 'CPU'
    rate, measured = a.batch*T/statistics.median(took), product(a.device, 8192 if a.device == 'cuda' else 1024)
    used, peak = rate*flops_per_token(config), next((v for k, v in PEAKS.items() if k in name), None)
    memory = torch.cuda.max_memory_allocated() if a.device == 'cuda' else None
    share = used/(peak or measured)
    print(text_table([['', a.size], ['device', name], ['parameters', human_count(num_parameters(config))], ['tokens a step', f'{a.batch*T:,}'],
                      ['tokens/s', f'{rate:,.0f}'], ['ms a step', f'{1000*statistics.median(took):.1f}'], ['first step, s', f'{first:.1f}'],
                      ['TFLOP/s', f'{used/1e12:.1f}'], ["of the maker's figure", f'{used/peak:.1%}' if peak else 'unknown'], ['of a measured product', f'{used/measured:.1%}'],
                      *([['peak memory', human_bytes(memory)]] if memory else [])]))
    print(f'{share:.1%} of the ' + ("maker's figure" if peak else 'measured product') + f' (at least {SHARE:.0%})')
    if a.json: write_json(a.json, dict(torch=torch.__version__, device=name, size=a.size, batch=a.batch, context=T, tokens_per_second=rate, flops=used, peak=peak,
                                       measured_product=measured, share=share, first_step_seconds=first, peak_memory=memory, seconds=took, ok=share >= SHARE))
    return 0 if share >= SHARE or a.device == 'cpu' else 1

if __name__ == '__main__': sys.exit(main())
