"Bad input gives one clear sentence, and nothing is skipped without being named."
import json, os, pickle, shutil
import pytest
import tiny
from tiny import BOOK, codette, contents, litter, write_book
from codette_nb.core import CodetteError
from codette_nb.data.corpora import parse_data_option, read_corpus, split_documents
from codette_nb.data.records import Record, render

NOTEBOOK = json.dumps({'cells': [{'cell_type': 'markdown', 'source': ['# Title']}, {'cell_type': 'code', 'source': '1 + 1'}]})

def refuses(call, *says):
    "The call raises `CodetteError` with one line that holds every part of `says`."
    with pytest.raises(CodetteError) as e: call()
    text = str(e.value)
    assert '\n' not in text and text
    for part in says: assert part in text, text

@pytest.fixture
def folder(tmp_path):
    "One good file of each kind."
    for name, text in {'a.txt': 'Plain.', 'b.md': '# Marked', 'c.py': 'x = 1', 'd.ipynb': NOTEBOOK, 'e.jsonl': '{"text": "A line."}\n'}.items():
        (tmp_path/name).write_text(text, encoding='utf-8')
    return tmp_path

# One bad file among good ones: named, skipped and counted.

BAD_FILES = {
    'broken.jsonl': (b'{"text": "ok"}\n{"text": "cut o\n{"text": "ok too"}\n', 'broken.jsonl:2: ', 2),
    'wrong.jsonl': (b'{"text": "ok"}\n{"title": 1}\n', 'wrong.jsonl:2: ', 1),
    'number.jsonl': (b'{"text": 5}\n', 'number.jsonl:1: ', 0),
    'half.jsonl': (b'{"text": "\\ud83d"}\n', 'half.jsonl:1: the text has half of a character pair', 0),
    'source.jsonl': (b'{"text": "a", "source": ["x"]}\n', 'source.jsonl: record 1: ', 0),
    'torn.txt': ('Käse und Brötchen\nbeim Bäcker'.encode() + b'\xff', 'torn.txt: not UTF-8 at line 2 (byte 0xff): UTF-8 with damaged places', 0),
    'picture.md': (b'\x89PNG\r\n\x1a\n\0\0', 'picture.md: binary data', 0),
    'torn.ipynb': (b'{"cells": [\n{"cell_type"', 'torn.ipynb: not a notebook: ', 0),
    'list.ipynb': (b'[]', 'list.ipynb: not a notebook: ', 0),
    'deep.ipynb': (b'['*100_000, 'deep.ipynb: not a notebook: ', 0),
}

@pytest.mark.parametrize('name', BAD_FILES)
def test_bad_file_among_good_ones(folder, name):
    data, says, good_lines = BAD_FILES[name]
    (folder/name).write_bytes(data)
    corpus = read_corpus(folder)
    assert len(corpus.records) == 5 + good_lines
    assert len(corpus.problems) == 1 and says in corpus.problems[0]
    assert '1 problem, skipped' in corpus.summary() and says in corpus.summary()
    assert name in corpus._repr_html_()

@pytest.mark.parametrize('name', [n for n, (_, _, good) in BAD_FILES.items() if not good])
def test_bad_file_by_name(tmp_path, name):
    (tmp_path/name).write_bytes(BAD_FILES[name][0])
    refuses(lambda: read_corpus(tmp_path/name), BAD_FILES[name][1])

def test_all_are_counted(folder):
    for name, (data, _, _) in BAD_FILES.items(): (folder/name).write_bytes(data)
    corpus = read_corpus(folder)
    assert len(corpus.problems) == len(BAD_FILES)
    assert f'{len(BAD_FILES)} problems' in corpus.summary()

def test_empty_file(folder):
    (folder/'empty.txt').write_bytes(b'')
    (folder/'blank.jsonl').write_bytes(b'\n\n')
    for name in ('empty.txt', 'blank.jsonl'): refuses(lambda: read_corpus(folder/name), name, 'empty')
    assert '2 empty' in read_corpus(folder).summary()

def test_nothing_usable(tmp_path):
    refuses(lambda: read_corpus(tmp_path), 'nothing usable', str(tmp_path))
    (tmp_path/'photo.png').write_bytes(b'\x89PNG')
    (tmp_path/'bad.txt').write_bytes(b'\0\xff')
    refuses(lambda: read_corpus(tmp_path), 'nothing usable', 'bad.txt', '.png 1')

def test_missing_path(tmp_path):
    refuses(lambda: read_corpus(tmp_path/'none'), 'there is no file or folder')
    refuses(lambda: read_corpus('~nobody-of-this-name/x'), 'there is no file or folder')

def test_unknown_kind_by_name(tmp_path):
    for name in ('model.gguf', 'photo.png', 'LICENCE'):
        (tmp_path/name).write_bytes(b'GGUF\0')
        refuses(lambda: read_corpus(tmp_path/name), name, '.txt, .md, .py', '.ipynb', '.jsonl', '.parquet', '.zip')

@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='needs POSIX permissions, which root overrides')
def test_unreadable(folder):
    (folder/'a.txt').chmod(0)
    refuses(lambda: read_corpus(folder/'a.txt'), 'a.txt: cannot be read')
    assert 'a.txt: cannot be read' in read_corpus(folder).problems[0]

@pytest.mark.skipif(os.name != 'posix', reason='links and pipes as POSIX has them')
def test_links_and_pipes(folder):
    (folder/'sub').mkdir()
    os.symlink('..', folder/'sub/loop'); os.symlink('self', folder/'self'); os.symlink('nowhere', folder/'lost.md')
    os.symlink('a.txt', folder/'again.txt'); os.mkfifo(folder/'pipe.txt')
    corpus = read_corpus(folder)
    assert len(corpus.records) == 5                                    # the file that is linked twice is read once
    assert len(corpus.problems) == 4 and all(any(n in p for p in corpus.problems) for n in ('loop', 'self', 'lost.md', 'pipe.txt'))

def test_hidden_and_junk(folder):
    for junk in ('.git', '__pycache__', 'node_modules', '.ipynb_checkpoints'):
        (folder/junk).mkdir(); (folder/junk/'x.txt').write_text('not for training')
    assert not any('not for training' in render(r) for r in read_corpus(folder).records)

def test_same_order_everywhere(folder):
    assert [r.category for r in read_corpus(folder).records] == ['a.txt', 'b.md', 'c.py', 'd.ipynb', 'e.jsonl']

@pytest.mark.parametrize('weight', ['0', '-2', 'nan', 'inf', 'much', ''])
def test_weight(weight): refuses(lambda: parse_data_option(f'notes:{weight}'), 'weight')

def test_drive_letter_is_no_weight():
    assert parse_data_option('C:\\x') == ('C:\\x', 1)
    assert parse_data_option('C:\\x:2') == ('C:\\x', 2)

def test_too_little_to_split():
    refuses(lambda: split_documents([Record(text='word')]), 'give more text')
    refuses(lambda: split_documents([Record(text='a'), Record(text='b')], 1.5), 'between 0 and 1')

# The same at the command: a non-zero exit, exactly one sentence, and nothing lost, changed or half made.

@pytest.fixture
def book(tmp_path, monkeypatch):
    "A text to train on, a shrunken `nano`, and the text's folder to work in."
    tiny.shrink(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    return write_book(tmp_path/'book.txt')

def command_refuses(folder, argv, *says):
    "The command ends in one sentence that holds `says`, and leaves `folder` as it was."
    before = contents(folder)
    code, _, err = codette(*argv)
    assert code == 1, (code, err)
    assert err.startswith('codette: ') and err.count('\n') == 1 and 'Traceback' not in err, err
    for part in says: assert part in err, err
    assert contents(folder) == before and not litter(folder)

def train(*more): return ['train', *BOOK, '--steps', 3, '--out', 'new', '--no-verify', *more]

SETTINGS = {
    'context 0': (['--context', 0], 'context_length is 0'),
    'vocabulary 0': (['--vocab', 0], '0'),
    'vocabulary too small': (['--vocab', 100], 'a vocabulary of 100 is too small', '269'),
    'vocabulary that the text cannot fill': (['--vocab', 9000], 'a vocabulary of 9000 is more than this text can fill', 'at most'),
    'batch 0': (['--batch', 0], 'batch_size is 0'),
    'steps 0': (['--steps', 0], 'max_steps is 0'),
    'too small for one batch': (['--batch', 4000], 'fewer than one batch of 4000', 'give it more text'),
    'unknown size': (['--size', 'giant'], "'giant'", 'nano, micro, mini, small, medium, large'),
    'unknown quantization': (['--quantization', 'q9'], "'q9'", 'fp32, fp16, bf16, q8, q6_k'),
    'unknown device': (['--device', 'tpu'], "'tpu'", 'cpu, cuda, mps'),
    'negative samples': (['--samples', -1], 'samples is -1'),
    'save every 0': (['--save-every', 0], 'save_every is 0'),
}

@pytest.mark.parametrize('name', SETTINGS)
def test_command_settings(book, tmp_path, name):
    more, *says = SETTINGS[name]
    command_refuses(tmp_path, train('--data', book, *more), *says)
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('weight', ['-1', 'nan', '0', 'inf', 'heavy'])
def test_command_weight(book, tmp_path, weight): command_refuses(tmp_path, train('--data', f'{book}:{weight}'), 'weight', weight)

def test_command_data(book, tmp_path):
    (tmp_path/'empty.txt').write_text('')
    (tmp_path/'bad.txt').write_bytes('Käse\n'.encode() + b'\xff')
    (tmp_path/'pictures').mkdir(); (tmp_path/'pictures/a.png').write_bytes(b'\x89PNG')
    (tmp_path/'word.txt').write_text('word')
    for name, *says in (('none.txt', 'no file or folder', 'none.txt'), ('empty.txt', 'empty.txt is empty'), ('bad.txt', 'bad.txt', 'not UTF-8 at line 2'),
                        ('pictures', 'nothing usable', '.png 1'), ('pictures/a.png', '.png files cannot be read'), ('word.txt', 'give more text'), ('', 'PATH'),
                        ('~nobody-of-this-name/x.txt', 'no file or folder')):
        command_refuses(tmp_path, train('--data', name), *says)
        command_refuses(tmp_path, train('--data', book, '--data', name), *says)   # a good one beside it changes nothing
    assert not (tmp_path/'new').exists()

@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='needs POSIX permissions, which root overrides')
def test_command_unreadable(book, tmp_path):
    os.chmod(book, 0)
    code, _, err = codette(*train('--data', book))
    assert code == 1 and 'book.txt: cannot be read' in err and err.count('\n') == 1

@pytest.mark.parametrize('quiet', [False, True])
def test_command_names_what_it_skips(book, tmp_path, quiet):
    "One broken line and one undecodable file among good ones: the run is made, and both are named."
    (tmp_path/'notes').mkdir(); shutil.copy(book, tmp_path/'notes')
    (tmp_path/'notes/broken.jsonl').write_text('{"text": "fine"}\n{"text": "cut o\n')
    (tmp_path/'notes/torn.txt').write_bytes('Käse'.encode() + b'\xff')
    (tmp_path/'notes/latin.txt').write_bytes('café'.encode('latin1'))
    code, out, err = codette(*train('--data', 'notes', *['--json']*quiet))
    assert code == 0
    said = err if quiet else out        # with --json, standard output is JSON only
    if quiet: assert json.loads(out)
    assert '2 problems, skipped' in said and 'broken.jsonl:2: ' in said and 'torn.txt: not UTF-8 at line 1' in said and 'latin.txt: cp1252' in said
    code, out, err = codette('eval', 'new', '--data', 'notes', *['--json']*quiet)
    assert code == 0 and '2 problems, skipped' in (err if quiet else out)

def test_command_costs_no_old_run(book, tmp_path, tiny_run):
    "Bad input with --force must not delete the run that was to be replaced."
    shutil.copytree(tiny_run, tmp_path/'new')
    for more in (['--data', 'none.txt'], ['--data', book, '--batch', 4000], ['--data', book, '--vocab', 9000], ['--data', book, '--size', 'giant'],
                 ['--data', book, '--quantization', 'q9'], ['--data', book, '--context', 0]):
        command_refuses(tmp_path, train('--force', *more))
    command_refuses(tmp_path, ['quick-train', '--force', '--out', 'new', '--minutes', 0], 'minutes is 0')
    command_refuses(tmp_path, ['quick-train', '--force', '--out', 'new', '--size', 'smal'], 'auto, nano, micro, mini')

@pytest.mark.parametrize('minutes', ['0', '-3', 'nan', 'inf', '0.01'])
def test_command_minutes(book, tmp_path, minutes):
    command_refuses(tmp_path, ['quick-train', '--minutes', minutes, '--size', 'nano', '--out', 'new'], 'minutes')
    command_refuses(tmp_path, ['plan', '--minutes', minutes, '--size', 'nano'], 'minutes')

def test_command_out(book, tmp_path):
    (tmp_path/'file').write_text('mine')
    command_refuses(tmp_path, train('--data', book, '--out', 'file'), 'file is a file')
    command_refuses(tmp_path, train('--data', book, '--out', 'file/run'), 'file')
    command_refuses(tmp_path, ['data', '--n', 3, '--out', 'file/records.jsonl'], 'file')
    command_refuses(tmp_path, ['data', '--n', 3, '--out', 'file'], 'file exists already')

def test_width_and_heads():
    from codette_nb.model.transformer import create_codette_model
    refuses(lambda: create_codette_model('nano', hidden_size=100, num_heads=3), 'hidden_size is 100', 'divisible by num_heads, 3')
    refuses(lambda: create_codette_model('tiny'), "'tiny'", 'nano, micro')

# Checkpoints that are none.

def cut(checkpoint): os.truncate(checkpoint/'model.safetensors', 1000)
def flip(checkpoint):
    data = bytearray((checkpoint/'model.safetensors').read_bytes())
    data[len(data)//2] ^= 1
    (checkpoint/'model.safetensors').write_bytes(data)
def half(checkpoint): (checkpoint/'manifest.json').unlink()
def torn(checkpoint): (checkpoint/'manifest.json').write_text('{"version": 1, "fil')
def torch_file(checkpoint): half(checkpoint); (checkpoint/'pytorch_model.bin').write_bytes(pickle.dumps({'weight': 1}))

DAMAGE = {cut: 'damaged', flip: 'is not what was saved', half: 'no manifest.json', torn: 'manifest.json', torch_file: 'pickle'}

@pytest.mark.parametrize('damage', DAMAGE, ids=lambda f: f.__name__)
def test_command_damaged_checkpoint(tiny_run, tmp_path, damage):
    run = shutil.copytree(tiny_run, tmp_path/'run')
    for p in (run/'checkpoints').iterdir(): damage(p)
    for argv in (['eval', run], ['export', run, '--out', tmp_path/'x.gguf'], ['export', run, '--force'], ['export', run/'checkpoints/step-16'],
                 ['train', '--resume', '--out', run]):
        command_refuses(tmp_path, argv, DAMAGE[damage])

class Bomb:
    "A pickle that leaves a trace when it is opened."
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, 'w')

@pytest.mark.parametrize('suffix', ['.pt', '.bin', '.gguf', ''])
def test_command_pickle(tmp_path, suffix):
    file = tmp_path/f'model{suffix}'
    file.write_bytes(pickle.dumps(Bomb(tmp_path/'opened')))
    for command in ('export', 'eval'): command_refuses(tmp_path, [command, file], file.name)
    command_refuses(tmp_path, ['export', file], 'pickle')
    command_refuses(tmp_path, ['chat', file, 'Hello'], 'not a GGUF file')
    command_refuses(tmp_path, ['train', '--resume', '--out', file])
    assert not (tmp_path/'opened').exists()

def test_command_run_that_is_none(tmp_path):
    (tmp_path/'folder').mkdir(); (tmp_path/'text.txt').write_text('text')
    for name in ('none', 'folder', 'text.txt'):
        for argv in (['export', name], ['eval', name], ['chat', name, 'Hello'], ['train', '--resume', '--out', name]):
            command_refuses(tmp_path, [a if a != name else tmp_path/a for a in argv], name)

def test_command_other_device(tiny_run):
    command_refuses(tiny_run, ['eval', tiny_run, '--device', 'tpu'], "'tpu'", 'cpu')

def test_command_cut_gguf(tiny_run, tmp_path):
    data = (tiny_run/'model.gguf').read_bytes()
    (tmp_path/'cut.gguf').write_bytes(data[:1000])
    command_refuses(tmp_path, ['chat', tmp_path/'cut.gguf', 'Hello'], 'cut.gguf')
