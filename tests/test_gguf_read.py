"A GGUF file made here is the model again: the same ids, the same logits, and ready to be trained on."
import json
import numpy as np, pytest, torch
from tiny import codette, contents, write_book
from codette_nb.core import CodetteError
from codette_nb.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, SimpleTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.transformer import create_codette_model
from codette_nb.quantize.blocks import FORMATS, dequantise
from codette_nb.quantize.gguf import convert_checkpoint_to_gguf, tensor_names
from codette_nb.quantize.reader import from_gguf, read_gguf
from codette_nb.quantize.verify import hostile_strings, sample_texts
from codette_nb.train.checkpoint import load_checkpoint, save_checkpoint
from codette_nb.train.config import TrainingConfig
from codette_nb.train.trainer import CodetteTrainer

KINDS = {'sentencepiece': lambda: SentencePieceTokenizer(600).fit(sample_texts()), 'padded': lambda: SentencePieceTokenizer(600).fit(sample_texts()).pad_to(640),
         'words': lambda: SimpleTokenizer(600).fit(sample_texts()), 'bytes': lambda: ByteTokenizer(), 'filled': lambda: ByteTokenizer(size=300)}

@pytest.fixture(scope='module', params=KINDS)
def made(request, tmp_path_factory):
    "A model of random weights with one kind of tokenizer, and its checkpoint."
    torch.manual_seed(0)
    tok = KINDS[request.param]()
    model = create_codette_model(TransformerConfig(tok.vocab_size, 64, 64, 2, 4, norm_eps=1e-6, rope_theta=50_000.))
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.05)
    return model.eval(), tok, save_checkpoint(tmp_path_factory.mktemp(request.param)/'checkpoint', model, tok)

def test_the_same_ids(made, tmp_path):
    _, tok, checkpoint = made
    _, back = from_gguf(convert_checkpoint_to_gguf(checkpoint, None, tmp_path/'m.gguf'))
    strings = hostile_strings(3000, texts=sample_texts())
    for special in (False, True): assert back.encode_batch(strings, special) == tok.encode_batch(strings, special)
    assert type(back) is type(tok) and back.pieces() == tok.pieces()
    assert all(back.decode_bytes([i]) == tok.decode_bytes([i]) for i in range(tok.vocab_size))

def test_the_same_logits(made, tmp_path):
    model, tok, checkpoint = made
    ids = torch.tensor([tok.encode('What comes back is what went in.')[:64]])
    for quantization, most in (('fp32', 0.), ('fp16', 5e-3), ('q8', .2)):
        back, _ = from_gguf(convert_checkpoint_to_gguf(checkpoint, None, tmp_path/f'{quantization}.gguf', quantization))
        with torch.no_grad(): difference = (back(ids) - model(ids)).abs().max()
        assert back.config == model.config and (difference > 0) == (most > 0) and difference <= most

@pytest.mark.parametrize('quantization', ['q2_k', 'q3_k_m', 'q4_k_m', 'q5_k_m', 'q6_k', 'q5_1'])
def test_every_block(quantization, tmp_path):
    "gguf's decoders and this package's own give the same weights, and a model is made of them."
    torch.manual_seed(0)
    tok = ByteTokenizer(size=320)
    model = create_codette_model(TransformerConfig(320, 32, 256, 1, 4))
    save_checkpoint(tmp_path/'checkpoint', model, tok)
    path = convert_checkpoint_to_gguf(tmp_path/'checkpoint', None, tmp_path/'m.gguf', quantization)
    r, state = read_gguf(path), from_gguf(path)[0].state_dict()
    of_type = {f.type: f for f in FORMATS.values()}
    names = {g: hf.removeprefix('model.') for hf, g in tensor_names(model.config).items()}
    for name, t in r.tensors.items():
        raw = np.fromfile(path, np.uint8, t.nbytes, offset=t.offset).reshape(t.weights//t.shape[-1], -1)
        np.testing.assert_allclose(dequantise(raw, of_type[t.type]).reshape(t.shape), r.tensor(name), rtol=1e-6, atol=1e-7)
        assert torch.equal(state[names[name]], r.torch(name))
        assert (state[names[name]] - model.state_dict()[names[name]]).norm() <= .5*model.state_dict()[names[name]].norm()
    assert len(r.types()) > 1 or quantization == 'q6_k'

def test_through_a_checkpoint_and_back(made, tmp_path):
    "Export, read, save, export again: the same file but for where it came from."
    _, _, checkpoint = made
    first = convert_checkpoint_to_gguf(checkpoint, None, tmp_path/'first.gguf', 'fp32')
    save_checkpoint(tmp_path/'again', *from_gguf(first))
    second = convert_checkpoint_to_gguf(tmp_path/'again', None, tmp_path/'second.gguf', 'fp32')
    a, b = read_gguf(first), read_gguf(second)
    assert a.tensors == b.tensors and first.read_bytes()[min(t.offset for t in a.tensors.values()):] == second.read_bytes()[min(t.offset for t in b.tensors.values()):]

def test_trained_on(made, tmp_path):
    "What was exported goes on learning."
    model, tok = from_gguf(convert_checkpoint_to_gguf(made[2], None, tmp_path/'m.gguf', 'q8'))
    text = [open(write_book(tmp_path/'book.txt', 30), encoding='utf-8').read()]
    config = TrainingConfig.laptop(max_steps=6, batch_size=2, dtype='float32', compile='none', threads=1, eval_windows=4, sample_every=0, device='cpu')
    before = model.norm.weight.detach().clone()
    metrics = CodetteTrainer(model, tok, text, text, config, tmp_path/'run').fit()
    assert metrics['step'] == 6
    trained, tokenizer = load_checkpoint(tmp_path/'run')
    assert not torch.equal(trained.norm.weight, before) and tokenizer.pieces() == tok.pieces()

# codette inspect

def test_inspect(tiny_run, tmp_path):
    before = contents(tiny_run)
    code, out, err = codette('inspect', tiny_run, '--json')
    assert (code, err) == (0, '')
    about = json.loads(out, parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))
    r = read_gguf(tiny_run/'model.gguf')
    assert about['architecture'] == 'starcoder2' and about['parameters'] == r.parameters and len(about['tensors']) == len(r.tensors) == 35
    assert about['metadata']['general.name'] == 'codette' and about['metadata']['tokenizer.ggml.tokens'] == '400 texts'
    code, out, _ = codette('inspect', tiny_run/'model.gguf', '--keys', '--tensors')
    assert code == 0 and 'general.architecture = starcoder2' in out and 'blk.1.ffn_up.bias' in out and '\x1b' not in out
    assert contents(tiny_run) == before

def test_inspect_a_tensor(tiny_run, tmp_path):
    code, out, _ = codette('inspect', tiny_run, '--tensor', 'output_norm.weight', '--picture', tmp_path/'weights.png', '--json')
    w = read_gguf(tiny_run/'model.gguf').torch('output_norm.weight')
    t = json.loads(out)['tensor']
    assert code == 0 and t['name'] == 'output_norm.weight' and t['largest'] == w.max().item() and t['mean'] == pytest.approx(w.mean().item()) and t['finite'] == 1
    assert (tmp_path/'weights.png').read_bytes()[:4] == b'\x89PNG'
    assert 'std' in codette('inspect', tiny_run, '--tensor', 'output_norm.weight')[1]

@pytest.mark.parametrize('argv, says', [(['--tensor', 'none.weight'], 'has no tensor none.weight'), (['--picture', 'x.png'], 'name it with --tensor')])
def test_inspect_refuses(tiny_run, argv, says):
    code, out, err = codette('inspect', tiny_run, *argv)
    assert (code, out) == (1, '') and says in err and err.count('\n') == 1
