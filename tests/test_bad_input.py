"Bad input gives one clear sentence, and nothing is skipped without being named."
import json, os
import pytest
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
    'half.jsonl': (b'{"text": "\\ud83d"}\n', 'half.jsonl: record 1: ', 0),
    'source.jsonl': (b'{"text": "a", "source": ["x"]}\n', 'source.jsonl: record 1: ', 0),
    'latin.txt': ('one\ncafé\n'.encode('latin1'), 'latin.txt: not UTF-8 at line 2', 0),
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
    (tmp_path/'bad.txt').write_bytes(b'\xff')
    refuses(lambda: read_corpus(tmp_path), 'nothing usable', 'bad.txt', '.png 1')

def test_missing_path(tmp_path):
    refuses(lambda: read_corpus(tmp_path/'none'), 'there is no file or folder')
    refuses(lambda: read_corpus('~nobody-of-this-name/x'), 'there is no file or folder')

def test_unknown_kind_by_name(tmp_path):
    for name in ('model.gguf', 'photo.png', 'LICENCE'):
        (tmp_path/name).write_bytes(b'GGUF\0')
        refuses(lambda: read_corpus(tmp_path/name), name, '.txt, .md, .py, .ipynb, .jsonl')

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
