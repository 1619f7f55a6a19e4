"""Whole files against llama.cpp's own quantiser, tensor for tensor and byte for byte.

The quantiser is in the npm package @node-llama-cpp/linux-x64: `npm pack` it, unpack it, and name its folder in
the environment variable CODETTE_NODE_LLAMA. Without it these tests are skipped."""
import os, subprocess, sys
from pathlib import Path
import gguf, numpy as np, pytest
from codette_nb.quantize.blocks import quantise
from codette_nb.quantize.filetypes import FILE_TYPES, ModelFacts, assign, file_type

FOLDER = os.environ.get('CODETTE_NODE_LLAMA')
pytestmark = pytest.mark.skipif(not FOLDER or not list(Path(FOLDER).rglob('libllama.*so*')),
                                reason='needs CODETTE_NODE_LLAMA, the folder of the unpacked npm package @node-llama-cpp/linux-x64')

# run in a process of its own: it holds another llama.cpp than xllamacpp's, and may be ended by an assertion
QUANTISER = r'''
import ctypes as C, glob, json, struct, sys
import numpy as np
folder, source, target, label, importance = sys.argv[1:]
load = lambda name: C.CDLL(sorted(glob.glob(f"{folder}/**/{name}*.so*", recursive=True))[0], mode=C.RTLD_GLOBAL)
base, ggml, llama = load('libggml-base'), load('libggml.'), load('libllama.')
ggml.ggml_backend_load_all_from_path(sorted(glob.glob(f"{folder}/**/libggml-base*", recursive=True))[0].rsplit('/', 1)[0].encode())
class Params(C.Structure): _fields_ = [('raw', C.c_ubyte*512)]
class Entry(C.Structure): _fields_ = [('name', C.c_char_p), ('data', C.c_void_p), ('size', C.c_size_t)]
llama.llama_model_quantize_default_params.restype = Params
p = llama.llama_model_quantize_default_params()
struct.pack_into('<ii', p.raw, 0, 1, int(label))     # threads, file type
if importance:
    given = dict(np.load(importance))
    entries = (Entry*(len(given) + 1))(*(Entry(k.encode(), v.ctypes.data, v.size) for k, v in given.items()))
    struct.pack_into('<Q', p.raw, 24, C.addressof(entries))
llama.llama_backend_init()
sys.exit(llama.llama_model_quantize(source.encode(), target.encode(), C.byref(p)) != 0)
'''

def tiny(path, arch, layers, width, ff, heads, kv, tied):
    "A file of random weights in fp32; returns its matrices."
    rng = np.random.default_rng(0)
    small = width//heads*kv
    shapes = {'token_embd': (64, width)} | ({} if tied else {'output': (64, width)})
    for i in range(layers):
        shapes |= {f'blk.{i}.{n}': s for n, s in dict(attn_q=(width, width), attn_k=(small, width), attn_v=(small, width), attn_output=(width, width),
                                                      ffn_up=(ff, width), ffn_down=(width, ff)).items()}
        if arch == 'llama': shapes[f'blk.{i}.ffn_gate'] = (ff, width)
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(128); w.add_embedding_length(width); w.add_block_count(layers); w.add_feed_forward_length(ff)
    w.add_head_count(heads); w.add_head_count_kv(kv); w.add_layer_norm_eps(1e-5); w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(64); w.add_rope_dimension_count(width//heads)
    tensors = {f'{n}.weight': rng.standard_t(5, s).astype(np.float32)*.05 for n, s in shapes.items()}
    for n, t in tensors.items(): w.add_tensor(n, t)
    for n in ['output_norm', *(f'blk.{i}.{k}' for i in range(layers) for k in ('attn_norm', 'ffn_norm'))]:
        w.add_tensor(f'{n}.weight', np.ones(width, np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return tensors

def quantised(source, target, label, importance=''):
    "What llama.cpp makes of the file: name -> (type, bytes), or None where it refuses."
    p = subprocess.run([sys.executable, '-c', QUANTISER, FOLDER, str(source), str(target), str(int(label)), str(importance)],
                       capture_output=True, text=True, timeout=120)
    if p.returncode: return None
    r = gguf.GGUFReader(target)
    return {t.name: (t.tensor_type, np.asarray(t.data).view(np.uint8).reshape(-1)) for t in r.tensors}

def compare(tmp_path, kind, arch='starcoder2', layers=2, width=256, ff=512, heads=4, kv=4, tied=True, weighted=False):
    tensors = tiny(tmp_path/'f32.gguf', arch, layers, width, ff, heads, kv, tied)
    importance = {}
    if weighted:
        rng = np.random.default_rng(1)
        importance = {n: rng.lognormal(0, 1, t.shape[1]).astype(np.float32) for n, t in tensors.items() if n.startswith('blk.')}
        np.savez(tmp_path/'imatrix.npz', **importance)
    theirs = quantised(tmp_path/'f32.gguf', tmp_path/'out.gguf', file_type(kind).label, tmp_path/'imatrix.npz' if weighted else '')
    assert theirs is not None, 'llama.cpp refuses'
    facts = ModelFacts(arch, layers, heads//kv, weighted)
    ours = assign(kind, {n: t.shape for n, t in tensors.items()}, facts)
    assert {n: c.format.type.name for n, c in ours.items()} == {n: theirs[n][0].name for n in tensors}
    for n, t in tensors.items():
        assert np.array_equal(quantise(t, ours[n].format, importance.get(n)).reshape(-1), theirs[n][1]), n
    return ours

KINDS = list(FILE_TYPES)

@pytest.mark.parametrize('kind', KINDS)
def test_every_file_type(tmp_path, kind): compare(tmp_path, kind, layers=3)

@pytest.mark.parametrize('kind', KINDS)
def test_with_importance(tmp_path, kind): compare(tmp_path, kind, layers=8, weighted=True, width=256, ff=256)

@pytest.mark.parametrize('kind', ['q2_k', 'q3_k_m', 'q4_k_s', 'q4_k_m', 'q5_k_m', 'q4_0'])
@pytest.mark.parametrize('layers', [1, 2, 6, 16, 24])
def test_which_layers_get_more(tmp_path, kind, layers): compare(tmp_path, kind, layers=layers, width=256, ff=256, heads=8)

@pytest.mark.parametrize('kind', ['q2_k', 'q3_k_m', 'q4_k_m', 'q6_k', 'q8', 'q4_0'])
@pytest.mark.parametrize('arch', ['starcoder2', 'llama'])
@pytest.mark.parametrize('tied', [True, False])
def test_grouped_queries_and_an_output_of_its_own(tmp_path, kind, arch, tied):
    for kv in (4, 2, 1): compare(tmp_path, kind, arch, heads=4, kv=kv, tied=tied)

@pytest.mark.parametrize('kind', ['q2_k', 'q3_k_m', 'q4_k_m', 'q5_k_m', 'q6_k', 'q8', 'q4_0', 'fp16'])
@pytest.mark.parametrize('width, ff', [(288, 1152), (256, 288), (320, 256), (96, 512), (80, 240)])
def test_awkward_widths(tmp_path, kind, width, ff): compare(tmp_path, kind, width=width, ff=ff)

def test_eighty_layers_with_grouped_queries(tmp_path):
    ours = compare(tmp_path, 'q4_k_m', 'llama', layers=80, width=256, ff=256, heads=4, kv=1)
    assert {c.format.name for n, c in ours.items() if 'attn_v' in n} == {'q5_k', 'q6_k'}
