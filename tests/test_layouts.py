"Both layouts, a tied head and one of its own, grouped queries and not: trained in every way, exported, run by llama.cpp, read back."
from itertools import product
import pytest, torch
from codette_nb.core import CodetteError
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import LAYOUTS, TransformerConfig, training_memory
from codette_nb.model.transformer import CustomTransformer, create_codette_model
from codette_nb.quantize.gguf import convert_checkpoint_to_gguf
from codette_nb.quantize.reader import from_gguf
from codette_nb.quantize.verify import llama_library, verify_gguf
from codette_nb.train.checkpoint import load_model, save_checkpoint
from codette_nb.train.lowmemory import LowMemory, create_low_memory_model
from codette_nb.train.optim import Optimizer

WAYS = list(product(LAYOUTS, (0, 2), (True, False)))
each = pytest.mark.parametrize('layout, kv, tied', WAYS)

def config(layout, kv, tied, **changes):
    return TransformerConfig(**dict(vocab_size=320, context_length=64, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, layout=layout,
                                    num_kv_heads=kv, tied=tied) | changes)

def lively(c):
    "Random weights in which every gain, bias and position counts."
    torch.manual_seed(0)
    model = create_codette_model(c)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.1)
    return model.eval()

@each
def test_llama_cpp_computes_the_same(layout, kv, tied, tmp_path):
    if llama_library() is None: pytest.skip('needs xllamacpp')
    tok, model = ByteTokenizer(size=320), lively(config(layout, kv, tied))
    save_checkpoint(tmp_path/'checkpoint', model, tok)
    path = convert_checkpoint_to_gguf(tmp_path/'checkpoint', None, tmp_path/'m.gguf', 'fp32')
    r = verify_gguf(path, tmp_path/'checkpoint', strings=300, tokens=512)
    assert r.passed and r.logits.kl <= 1e-4 and not r.token_differences, r
    back, _ = from_gguf(path)
    ids = torch.arange(60)[None] + 10
    assert back.config == model.config
    with torch.no_grad(): assert torch.equal(back(ids), model(ids)) and torch.equal(load_model(tmp_path/'checkpoint')(ids), model(ids))

def test_the_comparison_notices(tmp_path, monkeypatch):
    "With the rows of queries and keys left in halves llama.cpp computes something else, and that is seen."
    if llama_library() is None: pytest.skip('needs xllamacpp')
    import codette_nb.quantize.gguf as gg
    monkeypatch.setattr(gg, '_turned_heads', lambda c, name: 0)
    save_checkpoint(tmp_path/'checkpoint', lively(config('llama', 2, True)), ByteTokenizer(size=320))
    path = convert_checkpoint_to_gguf(tmp_path/'checkpoint', None, tmp_path/'m.gguf', 'fp32')
    r = verify_gguf(path, tmp_path/'checkpoint', strings=10, tokens=256)
    assert r.status == 'failed' and r.logits.kl > 1e-3

@pytest.mark.parametrize('layout, kv, tied', [('starcoder2', 0, False), ('starcoder2', 2, True), ('llama', 0, True), ('llama', 2, False)])
@pytest.mark.parametrize('way', ['adamw', 'muon', 'low memory'])
def test_training(layout, kv, tied, way):
    "The loss falls, each tensor is trained once, and a resumed run is the uninterrupted one to the bit."
    c = config(layout, kv, tied)
    torch.manual_seed(0)
    text = torch.randint(8, (4, 33)).repeat(1, 2)[:, :60]
    def begin():
        torch.manual_seed(1)
        if way == 'low memory':
            model = create_low_memory_model(c, 1)
            return model, LowMemory(model, lr=3e-3)
        return (model := CustomTransformer(c)), Optimizer(model, way, lr=3e-3)
    def steps(model, opt, n):
        for _ in range(n):
            opt.before_backward(); loss = model(text[:, :-1], text[:, 1:]); loss.backward(); opt.after_backward(1.); opt.step()
        return loss.item()
    whole, opt = begin()
    first = steps(whole, opt, 1)
    last = steps(whole, opt, 7)
    assert last < first - .3 and whole.num_parameters() == sum(p.numel() for p in whole.parameters())
    part, half = begin()
    steps(part, half, 4)
    again, rest = begin()
    again.load_state_dict(part.state_dict()); rest.load_state({k: v.clone() for k, v in half.state().items()})
    assert steps(again, rest, 4) == last
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    if way == 'low memory': assert training_memory(c, 240, low_memory=True).optimizer == 4*sum(v.numel() for k, v in opt.state().items() if not k.startswith('low_memory'))

def test_other_layouts_are_named():
    from codette_nb.model.config import from_hf, to_hf
    for kind in ('gpt2', 'qwen2', 'mistral'):
        with pytest.raises(CodetteError, match=f"this is a '{kind}' model: only the layouts starcoder2 and llama are read"): from_hf(to_hf(config('llama', 0, True)) | dict(model_type=kind))

@pytest.mark.parametrize('quantization', ['q4_k_m', 'q6_k'])
def test_blocks(quantization, tmp_path):
    "Rows change places before they are rounded: the file is what llama.cpp runs, and what comes back is close to what went in."
    tok, model = ByteTokenizer(size=320), lively(config('llama', 2, False, hidden_size=256, intermediate_size=256))
    save_checkpoint(tmp_path/'checkpoint', model, tok)
    path = convert_checkpoint_to_gguf(tmp_path/'checkpoint', None, tmp_path/'m.gguf', quantization)
    back, _ = from_gguf(path)
    for k, v in model.state_dict().items(): assert (back.state_dict()[k] - v).norm() < .12*v.norm(), k
    if llama_library() is None: pytest.skip('needs xllamacpp')
    r = verify_gguf(path, back, tok, strings=50, tokens=256)
    assert r.logits.kl < .02, r            # beside the same rounded weights: only llama.cpp's rounding of activations is left
