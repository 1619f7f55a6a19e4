"Files of every kind are streamed in bounded memory, and hostile ones are a sentence in the account."
import bz2, gzip, io, json, lzma, os, random, stat, struct, subprocess, sys, tarfile, time, zipfile
import pytest
from codette_nb.core import CodetteError
from codette_nb.data.corpora import open_corpus, read_corpus, split_stream
from codette_nb.data.files import Account, Limits, SUFFIXES, is_readable, kind, read_file
from codette_nb.data.records import Record, from_dict, render

MIB = 1 << 20

def read(path, **limits):
    "Records and account of one file."
    account = Account()
    return list(read_file(path, account, limits=Limits(**limits))), account

def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path

def zip_of(path, members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items(): z.writestr(name, data)
    return path

def tar_of(path, members, mode='w'):
    with tarfile.open(path, mode) as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name); info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path

# Memory: each file is read in a process of its own, which says by how much its peak has risen.

PEAK = '''
import os, resource, sys
from codette_nb.data.corpora import open_corpus
from codette_nb.data.files import Limits
import bs4, charset_normalizer, ijson, jinja2
import pyarrow, pyarrow.ipc, pyarrow.parquet
def peak():
    # Linux counts what the process was forked from into the resource module's figure, so /proc is asked where there is one
    try: return next(int(line.split()[1])*1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform == 'darwin' else 1024)
path, before, n = sys.argv[1], peak(), 0
corpus = open_corpus(path)
try:
    for r in corpus: n += len(r.text or 'a chat')
except ValueError: pass
print(n, len(corpus.problems), peak() - before)
print(corpus.problems[0] if corpus.problems else '')
'''

def growth(path):
    "Characters read, problems, bytes by which the peak rose, and the first problem."
    pytest.importorskip('resource', reason='peak memory is measured with the resource module of POSIX')
    out = subprocess.run([sys.executable, '-c', PEAK, str(path)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    figures, first = out.stdout.split('\n', 1)
    return *map(int, figures.split()), first.strip()

LINE = 'The oven is hot when a pinch of flour browns in half a minute, and not before.\n'

def test_memory_large_text(tmp_path):
    with open(tmp_path/'book.txt', 'w') as f:
        for i in range(64): f.write((LINE*100 + '\n')*(MIB//8000))
    n, problems, grown, _ = growth(tmp_path/'book.txt')
    assert n == os.path.getsize(tmp_path/'book.txt') > 60*MIB and not problems and grown < 24*MIB, grown

def test_memory_large_text_without_a_line_end(tmp_path):
    write(tmp_path/'one.txt', b'ab'*(24*MIB))
    n, problems, grown, _ = growth(tmp_path/'one.txt')
    assert n == 48*MIB and not problems and grown < 24*MIB, grown

def test_memory_large_jsonl_and_csv(tmp_path):
    row = LINE*12
    write(tmp_path/'a.jsonl', (json.dumps({'text': row}) + '\n')*24_000)
    write(tmp_path/'a.csv', 'text,n\n' + f'"{row}",1\n'*24_000)
    write(tmp_path/'a.json', '[' + ','.join([json.dumps({'text': row})]*24_000) + ']')
    for name in ('a.jsonl', 'a.csv', 'a.json'):
        n, problems, grown, _ = growth(tmp_path/name)
        assert n == 24_000*len(row) > 20*MIB and not problems and grown < 24*MIB, (name, grown)

def test_memory_large_tables(tmp_path):
    pa = pytest.importorskip('pyarrow', reason='Parquet and Arrow need pyarrow')
    import pyarrow.parquet as pq
    rng = random.Random(0)
    schema = pa.schema({'text': pa.string()})
    with pq.ParquetWriter(tmp_path/'a.parquet', schema) as p, pa.ipc.new_stream(tmp_path/'a.arrow', schema) as s:
        for _ in range(24):
            t = pa.table({'text': [rng.randbytes(512).hex() for _ in range(1000)]}, schema)
            p.write_table(t); s.write_table(t)
    for name, most in (('a.parquet', 48), ('a.arrow', 48)):   # both are mapped, so that pages of the file count, which the system may drop
        n, problems, grown, _ = growth(tmp_path/name)
        assert n == 24*1000*1024 and not problems and grown < most*MIB, (name, grown)

def test_memory_long_json_line(tmp_path):
    with open(tmp_path/'a.jsonl', 'w') as f:
        f.write('{"text": "before"}\n{"text": "')
        for _ in range(160): f.write('x'*MIB)
        f.write('"}\n{"text": "after"}\n')
    n, problems, grown, first = growth(tmp_path/'a.jsonl')
    assert n == len('beforeafter') and problems == 1 and ':2: a line over 64.0 MiB' in first
    assert grown < 150*MIB, grown       # the limit, twice: as pieces and as the line that they may become

def test_memory_long_json_value(tmp_path):
    with open(tmp_path/'a.json', 'w') as f:
        f.write('[{"text": "before"}, {"text": "')
        for _ in range(100): f.write('x'*MIB)
        f.write('"}]')
    n, problems, grown, first = growth(tmp_path/'a.json')
    assert n == len('before') and problems == 1 and 'a value over 64.0 MiB' in first and grown < 220*MIB, (grown, first)

def gzip_bomb(path, line, mib):
    with gzip.open(path, 'wb', compresslevel=6) as f:
        for _ in range(mib): f.write(line*(MIB//len(line)))
    return path

@pytest.mark.parametrize('name, line', [('a.txt.gz', LINE.encode()), ('a.jsonl.gz', b'[' + b'['*2000 + b'\n'), ('a.csv.gz', b'"'), ('a.json.gz', b'['), ('a.tar.gz', b'a'), ('a.html.gz', b'<p>'),
                                        ('a.arrow.gz', b'\xff\xff\xff\xff\xff\xff\xff\x7f')])
def test_memory_bombs(tmp_path, name, line):
    "80 MiB in less than a hundredth: stopped in time, or refused for what it is."
    if 'arrow' in name: pytest.importorskip('pyarrow', reason='Arrow needs pyarrow')
    n, problems, grown, first = growth(gzip_bomb(tmp_path/name, line, 80))
    assert problems >= 1 and grown < 160*MIB, (grown, first)
    assert n <= 64*MIB

def test_bomb_is_named(tmp_path):
    records, account = read(gzip_bomb(tmp_path/'a.txt.gz', LINE.encode(), 24), start=2*MIB, ratio=50)
    assert 'a.txt.gz: a compression bomb: more than ' in account.problems[0] and account.nbytes < 24*MIB
    records, account = read(gzip_bomb(tmp_path/'a.txt.gz', LINE.encode(), 24), total=3*MIB)
    assert 'more than 3.0 MiB' in account.problems[0]

def test_bomb_of_many_members(tmp_path):
    "Members that share their bytes: each within bounds, all together not."
    path = zip_of(tmp_path/'a.zip', {f'{i}.txt': LINE*8000 for i in range(40)})
    account = read(path, start=4*MIB, ratio=20)[1]
    assert account.problems.count == 1 and 'bomb' in account.problems[0] and account.count <= 7

# Shapes of chats.

CALC = {'name': 'calculate', 'description': 'Compute.', 'parameters': {'type': 'object', 'properties': {'expression': {'type': 'string'}}, 'required': ['expression']}}
OPENAI = {'messages': [{'role': 'developer', 'content': 'Be brief.'}, {'role': 'user', 'content': [{'type': 'text', 'text': '6 * 7?'}]},
                       {'role': 'assistant', 'content': None, 'refusal': None, 'tool_calls': [{'id': 'c', 'type': 'function', 'function': {'name': 'calculate', 'arguments': '{"expression": "6*7"}'}}]},
                       {'role': 'tool', 'tool_call_id': 'c', 'content': '42'}, {'role': 'assistant', 'content': '42.'}], 'tools': [{'type': 'function', 'function': CALC}]}
OLDER = {'messages': [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '6 * 7?'},
                      {'role': 'assistant', 'content': None, 'function_call': {'name': 'calculate', 'arguments': '{"expression": "6*7"}'}},
                      {'role': 'function', 'name': 'calculate', 'content': '42'}, {'role': 'assistant', 'content': '42.'}], 'functions': [CALC]}
SHAREGPT = {'conversations': [{'from': 'system', 'value': 'Be brief.'}, {'from': 'human', 'value': '6 * 7?'},
                              {'from': 'function_call', 'value': '{"name": "calculate", "arguments": {"expression": "6*7"}}'},
                              {'from': 'observation', 'value': '42'}, {'from': 'gpt', 'value': '42.'}], 'tools': json.dumps([CALC])}

@pytest.fixture
def chats(tmp_path):
    "The same chat in three shapes, in every kind of file that can hold it."
    pa = pytest.importorskip('pyarrow', reason='Parquet and Arrow need pyarrow')
    import pyarrow.parquet as pq
    shapes = [OPENAI, OLDER, SHAREGPT]
    write(tmp_path/'a.jsonl', ''.join(json.dumps(s) + '\n' for s in shapes))
    write(tmp_path/'b.json', json.dumps(shapes, indent=2))
    write(tmp_path/'c.json', '\n'.join(json.dumps(s) for s in shapes))
    for i, s in enumerate(shapes):
        write(tmp_path/f'd{i}.json', json.dumps(s, indent=2))
        plain = {k: json.dumps(v) if k == 'tools' and not isinstance(v, str) else v for k, v in s.items() if k != 'functions'}
        if 'functions' in s: plain['tools'] = json.dumps(s['functions'])
        for m in plain.get('messages', ()): m['content'] = m['content'] if isinstance(m['content'], str | None) else m['content'][0]['text']  # one type a column
        pq.write_table(pa.Table.from_pylist([plain]), tmp_path/f'e{i}.parquet')
    return tmp_path

def test_chats_of_all_shapes(chats):
    texts = {render(r) for r in read_corpus(chats).records}
    assert len(texts) == 1 and '<tool>calculate expression: Compute.' in texts.pop()
    assert read_corpus(chats).account.count == 3*3 + 3*2

def test_columns_without_a_value_are_left_out(chats):
    for r in read_corpus(chats).records:
        for m in r.messages: assert None not in m.values() and m.get('tool_calls') != []

# What is refused, each in one sentence that names it.

def deep(n): return '['*n + ']'*n

LINES = {
    'deep': ('{"text": "a", "meta": ' + deep(150) + '}', 'nested deeper than 100'),
    'very deep': ('['*200_000, 'nested deeper than 100'),
    'nul': ('{"text": "a\\u0000b"}', 'a NUL character'),
    'surrogate': ('{"text": "\\udc80"}', 'half of a character pair'),
    'surrogate in a name': ('{"text": "a", "category": "\\udc80"}', 'half of a character pair'),
    'digits': ('{"text": "a", "meta": {"n": ' + '9'*5000 + '}}', 'thousands of digits'),
    'picture': ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}', "a part of type 'image_url'"),
    'role': ('{"conversations": [{"from": "alien", "value": "x"}]}', "unknown role 'alien'"),
    'list': ('{"messages": {"role": "user"}}', 'messages must be a list'),
    'no JSON at all': ('text: a', 'not JSON'),
}

@pytest.mark.parametrize('name', LINES)
def test_line_among_good_ones(tmp_path, name):
    bad, says = LINES[name]
    records, account = read(write(tmp_path/'a.jsonl', f'{{"text": "one"}}\n{bad}\n{{"text": "two"}}\n'))
    assert [r.text for r in records] == ['one', 'two'] and account.problems.count == 1 and says in account.problems[0] and '\n' not in account.problems[0]

def test_members_that_are_not_read(tmp_path):
    inner = zip_of(tmp_path/'inner.zip', {'x.txt': b'x'}).read_bytes()
    (tmp_path/'inner.zip').unlink()
    members = {'good.txt': b'good', '../up.txt': b'1', '/abs.txt': b'2', '..\\back.txt': b'3', 'C:/drive.txt': b'4', 'inner.zip': inner, 'a.txt.gz': gzip.compress(b'x'), 'line\nend/../x.txt': b'5'}
    for path in (zip_of(tmp_path/'a.zip', members), tar_of(tmp_path/'a.tar.xz', members, 'w:xz')):
        records, account = read(path)
        assert [r.text for r in records] == ['good'] and records[0].category == f'{path.name}/good.txt'
        assert account.problems.count == 7 and sum('leads out of the archive' in p for p in account.problems) == 5
        assert sum('an archive within an archive' in p for p in account.problems) == 2 and all('\n' not in p for p in account.problems)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.tar.xz', 'a.zip']      # nothing was unpacked

def test_links_devices_and_sparse_members(tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        for name, kind_ in (('sym.txt', tarfile.SYMTYPE), ('hard.txt', tarfile.LNKTYPE), ('fifo.txt', tarfile.FIFOTYPE), ('dev.txt', tarfile.CHRTYPE), ('folder', tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name); info.type, info.linkname = kind_, '/etc/passwd'; t.addfile(info)
        info = tarfile.TarInfo('last.txt'); info.size = 4; t.addfile(info, io.BytesIO(b'last'))
    records, account = read(tmp_path/'a.tar')
    assert [r.text for r in records] == ['last'] and account.problems.count == 4

def test_negative_size_in_a_tar(tmp_path):
    "A size below zero made Python's reader go round in circles (CVE-2025-8194)."
    data = bytearray(tar_of(tmp_path/'a.tar', {'a.txt': b'a', 'b.txt': b'b'}).read_bytes())
    head = data[1024:1536]
    head[124:136] = b'\xff'*8 + struct.pack('>i', -1024); head[156:157] = b'x'; head[148:156] = b' '*8
    head[148:156] = f'{sum(head):06o}\0 '.encode()
    start = time.monotonic()
    records, account = read(write(tmp_path/'b.tar', bytes(data[:1024] + head + data[1536:])))
    assert len(records) == 1 and 'damaged' in account.problems[0] and time.monotonic() - start < 10

def test_encrypted_member(tmp_path):
    data = bytearray(zip_of(tmp_path/'a.zip', {'a.txt': b'secret', 'b.txt': b'open'}).read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    records, account = read(write(tmp_path/'a.zip', bytes(data)))
    assert [r.text for r in records] == ['open'] and 'a.txt: encrypted' in account.problems[0]

def test_cut_off(tmp_path):
    text = random.Random(0).randbytes(60_000).hex().encode()
    for suffix, pack in (('.gz', gzip.compress), ('.bz2', bz2.compress), ('.xz', lzma.compress)):
        data = pack(text)
        records, account = read(write(tmp_path/f'a.txt{suffix}', data[:len(data)//2]))
        assert account.problems.count == 1 and 'ends before its end' in account.problems[0]
    account = read(write(tmp_path/'b.zip', zip_of(tmp_path/'a.zip', {'a.txt': text}).read_bytes()[:30_000]))[1]
    assert 'without a list of members' in account.problems[0]
    account = read(write(tmp_path/'b.tar', tar_of(tmp_path/'a.tar', {'a.txt': text}).read_bytes()[:30_000]))[1]
    assert 'damaged' in account.problems[0]

def test_tables_without_what_is_needed(tmp_path):
    pa = pytest.importorskip('pyarrow', reason='Parquet needs pyarrow')
    import pyarrow.parquet as pq
    pq.write_table(pa.table({'url': ['a'], 'price': [1]}), tmp_path/'a.parquet')
    write(tmp_path/'a.csv', 'url,price\na,1\n')
    for name in ('a.parquet', 'a.csv'):
        with pytest.raises(CodetteError, match='its columns are url, price'): read_corpus(tmp_path/name)

def test_pyarrow_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None); monkeypatch.setitem(sys.modules, 'zstandard', None)
    write(tmp_path/'a.parquet', b'PAR1'); write(tmp_path/'a.txt.zst', b'(\xb5/\xfd')
    for name in ('a.parquet', 'a.txt.zst'):
        with pytest.raises(CodetteError, match=r'pip install codette_nb\[files\]'): read_corpus(tmp_path/name)

@pytest.mark.parametrize('markup', ['<a ', '<!--', '<div>', '<![CDATA[', '<a href="', '</a ', '<p a=\''])
def test_hostile_html(tmp_path, markup):
    start = time.monotonic()
    account = read(write(tmp_path/'a.html', markup*(3*MIB//len(markup))))[1]
    assert account.problems.count == 1 and 'HTML' in account.problems[0] and time.monotonic() - start < 20

def test_hostile_parquet(tmp_path):
    "A few kilobytes that claim, and hold, a long text for every one of many rows."
    pa = pytest.importorskip('pyarrow', reason='Parquet needs pyarrow')
    import pyarrow.parquet as pq
    pq.write_table(pa.table({'text': pa.DictionaryArray.from_arrays(pa.array([0]*20_000, pa.int32()), pa.array(['a'*MIB]))}), tmp_path/'a.parquet', compression='zstd')
    assert os.path.getsize(tmp_path/'a.parquet') < 100_000
    n, problems, grown, first = growth(tmp_path/'a.parquet')
    assert n <= 64*MIB and problems == 1 and 'bomb' in first and grown < 200*MIB, (n, grown, first)

def test_fuzz_tables_in_another_process(tmp_path):
    "Truncated and changed files of a C++ library: refused or read, and the process lives."
    pytest.importorskip('pyarrow', reason='Parquet and Arrow need pyarrow')
    code = '''
import random, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from codette_nb.data.files import Account, read_file
folder = Path(sys.argv[1])
t = pa.table({'messages': [[{'role': 'user', 'content': f'question {i}'}, {'role': 'assistant', 'content': 'yes'}] for i in range(50)], 'n': range(50)})
u = pa.table({'text': [f'some text {i}'*5 for i in range(50)]})
for k, table in enumerate((t, u)):
    for codec in ('snappy', 'zstd', 'none'): pq.write_table(table, folder/f'{k}{codec}.parquet', compression=codec)
    for codec in (None, 'lz4', 'zstd'):
        for new, name in ((pa.ipc.new_stream, 'stream'), (pa.ipc.new_file, 'file')):
            with new(folder/f'{k}{codec}{name}.arrow', table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as w: w.write_table(table)
rng, n = random.Random(1), 0
for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    for i in range(60):
        bad = bytearray(data[:rng.randrange(len(data))] if i % 4 == 0 else data)
        for _ in range(rng.randrange(1, 5)*bool(i % 4)): bad[rng.randrange(len(bad))] = rng.randrange(256)
        (folder/f'x{path.suffix}').write_bytes(bad)
        account = Account()
        n += len(list(read_file(folder/f'x{path.suffix}', account)))
        assert all(len(p.splitlines()) == 1 for p in account.problems), account.problems
print(n)
'''
    out = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, (out.returncode, out.stderr[-2000:])
    assert int(out.stdout) > 0

# Folders.

@pytest.mark.skipif(os.name != 'posix', reason='links as POSIX has them')
def test_loops_of_links(tmp_path):
    (tmp_path/'a/b').mkdir(parents=True)
    os.symlink('../..', tmp_path/'a/b/loop'); os.symlink('two', tmp_path/'one'); os.symlink('one', tmp_path/'two')
    write(tmp_path/'a/b/x.txt', 'x')
    corpus = read_corpus(tmp_path)
    assert len(corpus.records) == 1 and len(corpus.problems) == 3

def test_deep_folders(tmp_path):
    made = [tmp_path/'top']
    for _ in range(1200): made.append(made[-1]/'d')    # deeper than Python calls itself
    try:
        for path in made: path.mkdir()
        write(made[-1]/'x.txt', 'deep')
        assert [r.text for r in read_corpus(made[0]).records] == ['deep']
    except OSError: pytest.skip('paths cannot be that long here')
    finally:               # from below, because what removes folders calls itself too
        (made[-1]/'x.txt').unlink(missing_ok=True)
        for path in reversed(made):
            if path.is_dir(): path.rmdir()

def test_sections_are_numbered(tmp_path):
    write(tmp_path/'book.txt', (LINE*20 + '\n')*2000)
    corpus = open_corpus(tmp_path/'book.txt')
    records = list(corpus)
    assert [r.group for r in records] == [f'book.txt#{k}' for k in range(len(records))] and len(records) > 3
    assert ''.join(r.text for r in records) == (tmp_path/'book.txt').read_text('utf-8') and all(len(r.text) <= MIB for r in records)
    assert records == read_corpus(tmp_path/'book.txt').records

def test_split_of_a_stream_is_the_same_everywhere(tmp_path):
    for i in range(200): write(tmp_path/f'{i:03}.txt', f'A note about the letter {chr(0x100 + i)}.')
    sides = {r.text: side for side, r in split_stream(open_corpus(tmp_path), .2, 3)}
    code = ('import sys; from codette_nb.data.corpora import open_corpus, split_stream\n'
            'print(sorted(ascii(r.text) for side, r in split_stream(open_corpus(sys.argv[1]), .2, 3) if side == "held_out"))')
    out = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ | {'PYTHONHASHSEED': '7'}).stdout
    assert out.strip() == str(sorted(ascii(t) for t, side in sides.items() if side == 'held_out')) and 20 < out.count('A note') < 60

def test_every_suffix_has_a_reader():
    for s in SUFFIXES:
        if s not in ('.gz', '.bz2', '.xz', '.zst'): assert is_readable(f'x{s}'), s
    assert not any(map(is_readable, ('x.gz', 'x.docx', 'x', 'x.zip.png')))
