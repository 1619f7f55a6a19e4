"""`codette export` with importance and with error feedback, from the command to llama.cpp."""
import numpy as np, pytest, torch
from codette_nb.cli import run
from codette_nb.core import CodetteError
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.model.config import TransformerConfig
from codette_nb.model.transformer import create_codette_model
from codette_nb.pipeline import better_rounding, export_run
from codette_nb.quantize.calibrate import calibrate, calibration_windows
from codette_nb.quantize.blocks import quantise
from codette_nb.quantize.gguf import tensor_names
from codette_nb.quantize.importance import write_importance
from codette_nb.quantize.reader import read_gguf
from codette_nb.quantize.verify import llama_library
from codette_nb.train.checkpoint import save_checkpoint

TEXT = 'The cat sat on the mat, and 12 birds sang of it all day long. '*80

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('better')
    torch.manual_seed(0)
    model, tok = create_codette_model(TransformerConfig(512, 64, 64, 2, 4)), ByteTokenizer(size=512)
    windows = calibration_windows(tok, [TEXT], 64)
    ids, opt = torch.tensor([w for w in windows if len(w) == 64][:32]), torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60): model(ids[:, :-1], ids[:, 1:]).backward(); opt.step(); opt.zero_grad()
    save_checkpoint(folder/'checkpoint', model, tok)
    (folder/'text.txt').write_text(TEXT)
    write_importance(folder/'imatrix.gguf', calibrate(model, windows, tensor_names(model.config), gradients=0, quiet=True), 'cats', 64)
    return folder

def tensors(path):
    r = read_gguf(path)
    return {n: (t.type, t.nbytes, path.read_bytes()[t.offset:t.offset+t.nbytes]) for n, t in r.tensors.items()}

def exported(checkpoint, out, *more):
    assert run(['export', str(checkpoint/'checkpoint'), '--quantization', 'q4_0', '--out', str(out/'m.gguf'), '--no-verify', '--json', *more]) in (0, None)
    return tensors(out/'m.gguf')

def test_importance_file_changes_the_rounding_of_its_tensors_only(checkpoint, tmp_path, tmp_path_factory):
    plain = exported(checkpoint, tmp_path)
    given = exported(checkpoint, tmp_path_factory.mktemp('o'), '--importance', str(checkpoint/'imatrix.gguf'))
    auto = exported(checkpoint, tmp_path_factory.mktemp('o'), '--importance', 'auto', '--calibrate', str(checkpoint/'text.txt'))
    for n, (kind, size, data) in plain.items():
        assert given[n][:2] == auto[n][:2] == (kind, size)
        if not (n.startswith('blk.') and 'norm' not in n and n.endswith('weight')): assert given[n][2] == auto[n][2] == data, n
    assert sum(given[n][2] != d for n, (_, _, d) in plain.items()) == 12

@pytest.mark.skipif(llama_library() is None, reason='needs xllamacpp')
def test_feedback_is_nearer_in_llama(checkpoint, tmp_path):
    got = export_run(checkpoint/'checkpoint', tmp_path/'m.gguf', 'q4_0', feedback=True, calibrate=[checkpoint/'text.txt'], texts=[TEXT, TEXT[100:]], quiet=True)
    assert got['parity']['status'] == 'passed' and 'error feedback' in got['rounding']
    assert got['gain']['ratio'] < .6, got['gain']

@pytest.mark.parametrize('broken, why', [(b'nothing of the kind', 'not an importance file'), (b'GGUF', 'not a whole GGUF file')])
def test_malformed_importance(checkpoint, tmp_path, broken, why):
    (tmp_path/'bad').write_bytes(broken)
    with pytest.raises(CodetteError, match=why): export_run(checkpoint/'checkpoint', tmp_path/'m.gguf', 'q4_0', importance=tmp_path/'bad', quiet=True)
    assert not (tmp_path/'m.gguf').exists()

def test_unknown_training_text(checkpoint):
    with pytest.raises(CodetteError, match='--calibrate FILE'): better_rounding(checkpoint/'checkpoint', feedback=True)
