"Files that lie: whatever a GGUF file claims, reading it ends with a sentence, in the time and the memory that its own size explains."
import json, os, random, struct, subprocess, sys, tracemalloc
from pathlib import Path
import pytest
from codette_nb.core import CodetteError
from codette_nb.quantize.ollama import create_fields
from codette_nb.quantize.reader import MOST, MOST_TEXT, from_gguf, read_gguf

U8, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
n32, n64 = (lambda n: struct.pack('<I', n)), (lambda n: struct.pack('<Q', n))
def text(s): s = s if isinstance(s, bytes) else s.encode(); return n64(len(s)) + s
array = lambda of, n, raw=b'': n32(ARRAY) + n32(of) + n64(n) + raw
key = lambda name, value: text(name) + value
tensor = lambda name='a', dims=(32,), kind=0, offset=0: text(name) + n32(len(dims)) + b''.join(map(n64, dims)) + n32(kind) + n64(offset)
ARCH = key('general.architecture', n32(TEXT) + text('starcoder2'))

def gguf(keys=(), tensors=(), data=b'', n_keys=None, n_tensors=None, version=3, align=32):
    "A file of parts that may be wrong."
    head = b'GGUF' + n32(version) + n64(len(tensors) if n_tensors is None else n_tensors) + n64(len(keys) if n_keys is None else n_keys)
    head += b''.join(keys) + b''.join(tensors)
    return head + bytes(-len(head) % align) + data

LINE = bytes(128) # thirty-two weights in F32
LIES = {
    'count of tensors': (gguf([ARCH], n_tensors=1 << 63), 'claims 9,223,372,036,854,775,808 tensors'),
    'count of keys': (gguf(n_keys=1 << 60), 'claims 1,152,921,504,606,846,976 keys'),
    'one key too many': (gguf([ARCH], n_keys=2, align=1), 'is not a whole GGUF file'),
    'more keys than any model': (gguf([key(f'{i}', n32(U8) + b'\0') for i in range(MOST + 1)]), 'are the most'),
    'length of a key': (gguf([n64(1 << 62) + b'a' + n32(U8) + b'\0'], data=LINE), 'bytes of text'),
    'long name': (gguf([key('a'*70_000, n32(U8) + b'\0')]), 'a text of 70,000 bytes'),
    'length of a text': (gguf([key('a', n32(TEXT) + n64(1 << 60))], data=LINE), 'claims 1,152,921,504,606,846,976 bytes of text'),
    'text of no UTF-8': (gguf([key('a', n32(TEXT) + text(b'\xff\xfe'))]), 'not UTF-8'),
    'key of no UTF-8': (gguf([key(b'\xc3', n32(U8) + b'\0')]), 'not UTF-8'),
    'kind of value': (gguf([key('a', n32(13))], data=LINE), 'unknown kind, 13'),
    'key twice': (gguf([ARCH, ARCH]), 'the key general.architecture twice'),
    'array of numbers': (gguf([key('a', array(U64, 1 << 61))], data=LINE), 'claims 2,305,843,009,213,693,952 numbers'), # times 8 is 0 in 64 bits
    'array of texts': (gguf([key('a', array(TEXT, 1 << 61))], data=LINE), 'claims 2,305,843,009,213,693,952 texts'),
    'text in an array': (gguf([key('a', array(TEXT, 2, text('b') + n64(1 << 63)))], data=LINE), 'bytes of text'),
    'array of arrays': (gguf([key('a', array(ARRAY, 1)[:-8] + n64(1) + n32(ARRAY)*99)], data=LINE), 'array of a kind that is not read, 9'),
    'array of nothing known': (gguf([key('a', array(77, 1))], data=LINE), 'array of a kind that is not read, 77'),
    'alignment 0': (gguf([key('general.alignment', n32(U32) + n32(0))], [tensor()], LINE), 'its alignment is 0'),
    'alignment 3': (gguf([key('general.alignment', n32(U32) + n32(3))], [tensor()], LINE), 'its alignment is 3'),
    'alignment of gigabytes': (gguf([key('general.alignment', n32(U32) + n32(1 << 31))], [tensor()], LINE), 'its alignment is 2147483648'),
    'alignment in words': (gguf([key('general.alignment', n32(TEXT) + text('32'))], [tensor()], LINE), 'its alignment is 32'),
    'alignments': (gguf([key('general.alignment', array(U32, 2, n32(32)*2))], [tensor()], LINE), 'its alignment is [32 32]'),
    'no dimensions': (gguf([], [tensor(dims=())], LINE), 'claims 0 dimensions'),
    'five dimensions': (gguf([], [tensor(dims=(1,)*5)], LINE), 'claims 5 dimensions'),
    'billions of dimensions': (gguf([], [text('a') + n32(0xffffffff)], LINE), 'claims 4,294,967,295 dimensions'),
    'dimension of 0': (gguf([], [tensor(dims=(32, 0))], LINE), 'a dimension of 0'),
    'product over 64 bits': (gguf([], [tensor(dims=(1 << 33, 1 << 33))], LINE), 'ends at byte'),
    'product 0 in 64 bits': (gguf([], [tensor(dims=(1 << 32, 1 << 30))], LINE), 'ends at byte'),
    'product 32 in 64 bits': (gguf([], [tensor(dims=(32, (1 << 59) + 1))], LINE), 'ends at byte'),
    'offset beyond the file': (gguf([], [tensor(offset=1 << 40)], LINE), 'ends at byte'),
    'offset that overflows': (gguf([], [tensor(offset=(1 << 64) - 32)], LINE), 'ends at byte'),
    'offset between': (gguf([], [tensor(offset=7)], LINE*2), 'begins at 7, which 32 does not divide'),
    'one byte short': (gguf([], [tensor()], LINE[1:]), 'ends at byte'),
    'tensors over each other': (gguf([], [tensor('a'), tensor('b', offset=96)], LINE*2), 'the tensor b begins at byte 192, inside another one'),
    'tensors in one place': (gguf([], [tensor('a'), tensor('b')], LINE*2), 'inside another one'),
    'tensor twice': (gguf([], [tensor('a'), tensor('a', offset=128)], LINE*2), 'two tensors of one name, a'),
    'unknown type': (gguf([], [tensor(kind=99)], LINE), 'the tensor a has an unknown type'),
    'abolished type': (gguf([], [tensor(kind=4)], LINE), 'has an unknown type'),
    'half a block': (gguf([], [tensor(dims=(33,), kind=8)], LINE), 'does not divide into blocks'),
    'long tensor name': (gguf([], [tensor('a'*5000)], LINE), 'a text of 5,000 bytes'),
    'name that steers': (gguf([], [tensor('\x1b[2J\n'*40, kind=99)], LINE), r'the tensor \x1b[2J\n'),
    'version 1': (gguf(version=1), 'is GGUF version 1'),
    'other end first': (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'little-endian'),
    'something else': (b'PK\3\4' + LINE, 'is not a GGUF file'),
    'nothing': (b'', 'it has 0 bytes'),
    'magic only': (b'GGUF', 'it has 4 bytes'),
}

def sentence(call, path):
    "What `call` is refused with, or '' if it is not; at most one line that names the file."
    try: call(path); return ''
    except CodetteError as e: said = str(e)
    assert str(path) in said and said.isprintable() and len(said) < len(str(path)) + 300, said
    return said

def peak(call, *args):
    "The result of `call`, and the most bytes that it had taken at a time."
    tracemalloc.start()
    try: return call(*args), tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()

@pytest.mark.parametrize('lie', LIES)
def test_a_lie_is_named(lie, tmp_path):
    raw, says = LIES[lie]
    path = tmp_path/'lie.gguf'
    path.write_bytes(raw)
    said, most = peak(sentence, read_gguf, path)
    assert says in said
    assert most < len(raw) + (1 << 20) or lie == 'more keys than any model'
    assert sentence(from_gguf, path) == said

def test_what_is_not_a_lie(tmp_path):
    "The parts from which the lies are made are no lies."
    path = tmp_path/'true.gguf'
    path.write_bytes(gguf([ARCH, key('a', array(TEXT, 2, text('b') + text('ö'))), key('b', array(BOOL, 2, b'\1\7')), key('c', array(U8, 0)), key('', n32(BOOL) + b'\2')],
                          [tensor('b', offset=128), tensor('a'), tensor('c', (2, 3, 1, 1), 1, 256)], LINE*2 + bytes(12)))
    r = read_gguf(path)
    assert list(r.metadata['a']) == ['b', 'ö'] and r.tensors['c'].shape == (1, 1, 3, 2) and not r.tensor('c').any()
    assert json.dumps(r.to_dict(), allow_nan=False) and r._repr_html_()
    path.write_bytes(gguf([key('general.alignment', n32(U32) + n32(64))], [tensor('a', (8,)), tensor('b', offset=64)], LINE*2, align=64))
    assert [t.offset % 64 for t in read_gguf(path).tensors.values()] == [0, 0]
    path.write_bytes(gguf()) # an empty file of the format
    assert read_gguf(path).parameters == 0 and 'no tensors' in repr(read_gguf(path))

@pytest.mark.parametrize('value', [array(U8, 4 << 20, bytes(4 << 20)), array(U64, 1 << 19, bytes(4 << 20)), array(TEXT, 300_000, text('ab')*300_000),
                                   array(TEXT, 300_000, text('')*300_000), array(BOOL, 4 << 20, b'\1'*(4 << 20))],
                         ids=['bytes', 'numbers', 'short texts', 'empty texts', 'truths'])
def test_memory_is_at_most_the_file(value, tmp_path):
    "What a list of Python's numbers or texts would take is eight times as much."
    path = tmp_path/'large.gguf'
    path.write_bytes(gguf([ARCH, key('large', value)], [tensor()], LINE))
    r, most = peak(read_gguf, path)
    assert most < r.file_bytes + (1 << 20)
    _, most = peak(lambda: (repr(r), r._repr_html_(), r.to_dict()))
    assert most < 1 << 20

@pytest.mark.parametrize('value', [n32(U32) + n32(7), n32(BOOL) + b'\1', n32(F32) + bytes(4), n32(TEXT) + text('x'), array(U32, 2, n32(1)*2), array(TEXT, 2, text('llama')*2)],
                         ids=['number', 'truth', 'fraction', 'text', 'numbers', 'texts'])
def test_values_of_another_kind(value, tmp_path):
    "Whatever stands where something else is expected is a sentence, or is not looked at."
    names = ('general.name', 'general.file_type', 'tokenizer.chat_template', 'tokenizer.ggml.model', 'tokenizer.ggml.tokens', 'tokenizer.ggml.pre', 'starcoder2.context_length',
             'starcoder2.block_count', 'starcoder2.attention.head_count', 'starcoder2.attention.layer_norm_epsilon', 'starcoder2.rope.scaling.type')
    path = tmp_path/'values.gguf'
    path.write_bytes(gguf([ARCH, *(key(n, value) for n in names)], [tensor('token_embd.weight')], LINE))
    r = read_gguf(path)
    assert r.context_length in (0, 7) and r.summary() and r._repr_html_() and json.dumps(r.to_dict(), allow_nan=False)
    assert sentence(from_gguf, path) and sentence(create_fields, path)
    path.write_bytes(gguf([key('general.architecture', value)], [tensor('token_embd.weight')], LINE))
    assert 'only the layouts starcoder2 and llama' in sentence(from_gguf, path)

def test_memory_of_a_text(tmp_path):
    "A single letter beyond the sixteenth bit makes a text four times as long in Python, and it is copied while it grows: hence a limit, which is the constant."
    path = tmp_path/'text.gguf'
    for n, says in ((MOST_TEXT, ''), (MOST_TEXT + 1, 'where 16,777,216 are the most')):
        path.write_bytes(gguf([key('a', n32(TEXT) + text('a'*(n - 4) + '\U0001f600'))]))
        said, most = peak(sentence, read_gguf, path)
        assert says in said and bool(says) == bool(said) and most < 7*MOST_TEXT
    path.write_bytes(gguf([key(str(i), n32(TEXT) + text('a'*(MOST_TEXT//4))) for i in range(5)])) # together they are too long
    assert 'are the most' in sentence(read_gguf, path)

def test_a_file_that_shrinks(tmp_path):
    "Somebody shortens the file between the look and the reading of a tensor."
    path = tmp_path/'shrinks.gguf'
    path.write_bytes(gguf([], [tensor(dims=(32, 100))], LINE*100))
    r = read_gguf(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert 'was changed while it was read' in sentence(lambda p: r.tensor('a'), path)
    path.unlink()
    with pytest.raises((CodetteError, FileNotFoundError)): r.tensor('a')

# A whole file, spoilt in many ways.

WORKER = '''
import json, resource, sys
sys.path.insert(0, {tests!r})
from test_gguf_fuzz import spoilt, sentence, peak
from codette_nb.quantize.reader import from_gguf, read_gguf
from pathlib import Path
whole, scratch, n, seed = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
from_gguf(sys.argv[1]) # torch and the tokenizers are loaded, before memory is limited
if sys.platform == 'linux':
    now = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20),)*2)
read = refused = 0
for i in range(n):
    raw, how = spoilt(whole, seed*1_000_000 + i)
    scratch.write_bytes(raw)
    Path(sys.argv[2] + '.seed').write_text(how) # what it died of
    said, most = peak(sentence, read_gguf, scratch)
    assert most < len(raw) + (1 << 20), (how, most)
    read += not said
    if sentence(from_gguf, scratch): refused += 1
    elif said: raise AssertionError(how + ': a model was made of what could not be read')
print(json.dumps([read, refused]))
'''.format(tests=str(Path(__file__).parent))

def spoilt(whole, seed):
    "The bytes of a file after some damage, and what the damage was."
    r, b = random.Random(seed), bytearray(whole)
    header = whole.index(b'token_embd.weight') + 2000
    for _ in range(r.choice((1, 1, 1, 2, 5))):
        at = r.randrange(header) if r.random() < .9 else r.randrange(len(b) + 1)
        kind = r.randrange(8)
        if kind == 0: b[at:at+1] = bytes([r.randrange(256)])
        elif kind == 1: b[at:at+8] = n64(r.choice((0, 1, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)))
        elif kind == 2: b[at:at+4] = n32(r.choice((0, 1, 3, 8, 9, 13, 30, 99, 1 << 31, (1 << 32) - 1)))
        elif kind == 3: del b[at:at+r.choice((1, 4, 8, 100))]
        elif kind == 4: b[at:at] = r.randbytes(r.choice((1, 4, 8, 100)))
        elif kind == 5: del b[at:]
        elif kind == 6: n = r.choice((4, 8, 20, 32)); o = r.randrange(header); b[at:at+n] = b[o:o+n]
        elif at < len(b): b[at] ^= 1 << r.randrange(8)
    return bytes(b), f'seed {seed}'

def pairs(texts):
    "Byte-level BPE as others make it."
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from codette_nb.data.bytepair import BytePairTokenizer
    from codette_nb.data.tokenizer import Piece, PieceType
    tok, special = Tokenizer(models.BPE()), ['<|bos|>', '<|im_end|>', '<|pad|>']
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    at = {i: t for t, i in tok.get_vocab().items()}
    pieces = [Piece(at[i], PieceType.CONTROL if at[i] in special else PieceType.NORMAL, 0.) for i in range(len(at))]
    return BytePairTokenizer(pieces, json.loads(tok.to_str())['model']['merges'], 'gpt-2', dict(bos_id=0, eos_id=1, pad_id=2), template='{% for m in messages %}{{ m.content }}{% endfor %}').pad_to(288) # no filling behind the last tensor

def others(texts):
    "SentencePiece as others train it: another order of pieces, a space in front."
    import io, sentencepiece as spm
    from codette_nb.data.sentencepieces import PieceTokenizer, read_model
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=out, model_type='bpe', vocab_size=285, byte_fallback=True, normalization_rule_name='identity',
                                   remove_extra_whitespaces=False, control_symbols=['<|im_end|>'], minloglevel=2, num_threads=1, hard_vocab_limit=False)
    pieces, _, space = read_model(out.getvalue())
    return PieceTokenizer(pieces, dict(unk_id=0, bos_id=1, eos_id=2), space, template='{% for m in messages %}{{ m.content }}{% endfor %}').pad_to(288)

@pytest.fixture(scope='module', params=['sentencepiece', 'words', 'pairs', 'others'])
def whole(request, tmp_path_factory):
    "A small file as this package writes it."
    from codette_nb.data.tokenizer import SentencePieceTokenizer, SimpleTokenizer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.model.transformer import create_codette_model
    from codette_nb.quantize.gguf import convert_checkpoint_to_gguf
    from codette_nb.train.checkpoint import save_checkpoint
    sample = ['The sun rises in the east and sets in the west. ']*20
    tok = pairs(sample) if request.param == 'pairs' else others(sample) if request.param == 'others' else SentencePieceTokenizer(290).fit(sample) if request.param == 'sentencepiece' else SimpleTokenizer(280).fit(sample)
    folder = tmp_path_factory.mktemp(request.param)
    other = dict(layout='llama', num_kv_heads=1, tied=False) if request.param == 'pairs' else {}
    save_checkpoint(folder/'checkpoint', create_codette_model(TransformerConfig(tok.vocab_size, 32, 32, 1, 2, 128, **other)), tok)
    return convert_checkpoint_to_gguf(folder/'checkpoint', None, folder/'whole.gguf', 'q8')

def test_cut_off_anywhere(whole, tmp_path):
    raw, cut = whole.read_bytes(), tmp_path/'cut.gguf'
    for n in [*range(0, 400), *range(400, len(raw), 997), *range(len(raw) - 40, len(raw))]:
        cut.write_bytes(raw[:n])
        said, most = peak(sentence, read_gguf, cut)
        assert 'is not a whole GGUF file' in said and most < n + (1 << 20), n

def test_spoilt_at_random(whole, tmp_path):
    "In a process of its own, with little memory and a time limit: it must end by itself."
    p = subprocess.run([sys.executable, '-c', WORKER, str(whole), str(tmp_path/'spoilt.gguf'), '700', '1'], capture_output=True, text=True, timeout=550,
                       env=os.environ | {'OMP_NUM_THREADS': '1', 'RAYON_NUM_THREADS': '1'})
    assert p.returncode == 0, ((tmp_path/'spoilt.gguf.seed').read_text(), p.stderr[-3000:])
    read, refused = json.loads(p.stdout)
    assert 50 < read < 650 and refused > 300   # both happen: the damage is neither always fatal nor always harmless
