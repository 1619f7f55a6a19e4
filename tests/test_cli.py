"Every command of `codette`: what it does, prints and returns."
import io, json, os, shutil, subprocess, sys
import pytest
import tiny
from tiny import BOOK, codette, contents, litter, write_book
from codette_nb import __version__
from codette_nb.data.sources import families
from codette_nb.quantize.reader import read_gguf

COMMANDS = ('quick-train', 'train', 'shards', 'control', 'compare', 'sweep', 'find-lr', 'export', 'finish', 'eval', 'plan', 'data', 'teach', 'chat', 'inspect',
            'types', 'deploy', 'serve')

@pytest.fixture
def run(tiny_run, tmp_path):
    "A copy of the run, to change."
    return shutil.copytree(tiny_run, tmp_path/'run')

def as_json(result):
    "The figures; nothing else may be on standard output."
    code, out, err = result
    assert code == 0, err
    assert not err, err
    return json.loads(out, parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))

# The command itself.

def test_as_a_program():
    "The installed command, in a process of its own."
    call = lambda *a: subprocess.run([sys.executable, '-c', 'from codette_nb.cli import entry; entry()', *a], capture_output=True, text=True, timeout=60)
    shown = call('--version')
    assert (shown.returncode, shown.stdout.strip()) == (0, f'codette {__version__}')
    bad = call('plan', '--size', 'huge')
    assert (bad.returncode, bad.stdout) == (1, '') and bad.stderr.count('\n') == 1

@pytest.mark.parametrize('command', ['', *COMMANDS])
def test_help_has_an_example(command):
    code, out, err = codette(*command.split(), '--help')
    assert (code, err) == (0, '')
    assert f'example:\n  codette {command}'.strip() in out
    if not command: assert all(c in out for c in COMMANDS)

@pytest.mark.parametrize('argv', [[], ['dance'], ['train', '--steps', 'many'], ['export'], ['plan', '--sise', 'nano']])
def test_wrong_usage(argv):
    code, out, err = codette(*argv)
    assert code == 2 and not out and err.startswith('codette: ') and err.count('\n') == 1 and '--help tells what there is' in err

# train

def test_train(tiny_run):
    assert {p.name for p in tiny_run.iterdir()} == {
        'config.json', 'metrics.jsonl', 'train.log', 'checkpoints', 'report.json', 'README.md', 'model.gguf', 'Modelfile'}
    assert {p.name for p in (tiny_run/'checkpoints').iterdir()} == {'model_best', 'step-16', 'step-24'}
    report = json.loads((tiny_run/'report.json').read_text())
    assert report['training']['steps'] == 24 and report['exports'][0]['parity']['status'] in ('passed', 'not checked')
    assert read_gguf(tiny_run/'model.gguf').metadata['general.architecture'] == 'starcoder2'
    assert './model.gguf' in (tiny_run/'Modelfile').read_text()

def test_train_prints_json(monkeypatch, tmp_path):
    tiny.shrink(monkeypatch.setattr)
    figures = as_json(codette('train', '--data', write_book(tmp_path/'b.txt'), *BOOK, '--steps', 4, '--out', tmp_path/'run', '--no-verify', '--json'))
    assert figures['training']['steps'] == 4 and 'b' in figures['held_out']
    assert figures == json.loads((tmp_path/'run/report.json').read_text())

def test_train_ends_with_the_next_lines(monkeypatch, tmp_path):
    tiny.shrink(monkeypatch.setattr)
    code, out, _ = codette('train', '--data', write_book(tmp_path/'b.txt'), *BOOK, '--steps', 2, '--out', tmp_path/'run', '--name', 'My Model', '--no-verify')
    assert code == 0
    chat, ollama = out.splitlines()[-2:]
    assert chat == f'codette chat {tmp_path/"run"}'
    assert ollama.startswith('ollama create ') and str(tmp_path/'run/Modelfile') in ollama

@pytest.mark.parametrize('command', ['train', 'quick-train'])
def test_a_run_is_never_overwritten(tiny_run, command):
    before = contents(tiny_run)
    code, out, err = codette(command, '--data', tiny_run.parent/'book.txt', '--samples', 0, '--out', tiny_run)
    assert (code, out) == (1, '') and 'already holds a run' in err and err.count('\n') == 1
    assert contents(tiny_run) == before

def test_force(monkeypatch, run):
    tiny.shrink(monkeypatch.setattr)
    (run/'notes.txt').write_text('not of the run')
    argv = ['train', '--data', write_book(run.parent/'book.txt'), *BOOK, '--steps', 3, '--out', run, '--force', '--no-verify', '--json']
    assert as_json(codette(*argv))['training']['steps'] == 3
    assert {p.name for p in (run/'checkpoints').iterdir()} == {'model_best', 'step-0', 'step-3'}
    assert (run/'notes.txt').read_text() == 'not of the run'

def test_a_readme_is_never_overwritten(tmp_path):
    (tmp_path/'README.md').write_text('# Mine')
    code, _, err = codette('train', '--data', write_book(tmp_path/'b.txt'), *BOOK, '--steps', 2, '--out', tmp_path)
    assert code == 1 and 'README.md' in err
    assert {p.name for p in tmp_path.iterdir()} == {'README.md', 'b.txt'}

def test_resume_a_finished_run(monkeypatch, run):
    "Nothing is trained any more; measuring and export are done again."
    tiny.shrink(monkeypatch.setattr)
    report = json.loads((run/'report.json').read_text())
    (run/'model.gguf').unlink(); (run/'report.json').unlink()
    again = as_json(codette('train', '--resume', '--out', run, '--no-verify', '--json'))
    assert again['held_out']['book']['loss'] == report['held_out']['book']['loss'] and again['training']['steps'] == 24
    assert (run/'model.gguf').exists() and not litter(run)

def test_resume_without_a_run(tmp_path):
    code, out, err = codette('train', '--resume', '--out', tmp_path/'none')
    assert (code, out) == (1, '') and 'config.json' in err and err.count('\n') == 1
    assert not (tmp_path/'none').exists()

@pytest.mark.skipif(sys.platform != 'linux', reason='file names are bytes on Linux only')
def test_a_folder_named_in_an_old_encoding(monkeypatch, tmp_path):
    "Its text is trained on, and found again by a run that goes on."
    tiny.shrink(monkeypatch.setattr)
    books = os.fsdecode(os.fsencode(tmp_path) + b'/b\xfccher')
    os.mkdir(books)
    write_book(tmp_path/'b.txt'); shutil.move(tmp_path/'b.txt', books)
    code, _, err = codette('train', '--data', books, *BOOK, '--steps', 2, '--out', tmp_path/'my run', '--no-verify')
    assert code == 0, err
    again = as_json(codette('train', '--resume', '--steps', 3, '--out', tmp_path/'my run', '--no-verify', '--json'))
    assert again['training']['steps'] == 3 and list(again['data']['sources']) == ['b?cher']
    code, _, err = codette('control', tmp_path/'my run', 'stop')
    assert code == 1 and ("'" in err or '"' in err) # the line to go on with is quoted

# quick-train

def test_quick_train(monkeypatch, tmp_path):
    import codette_nb.pipeline as pipeline
    tiny.shrink(monkeypatch.setattr)
    make_plan = pipeline.make_plan
    monkeypatch.setattr(pipeline, 'make_plan', lambda *a, **kw: make_plan(*a, **kw, max_steps=6, eval_windows=4, vocab_size=400))
    figures = as_json(codette('quick-train', '--minutes', 2, '--size', 'nano', '--device', 'cpu', '--samples', 150, '--data',
                              write_book(tmp_path/'b.txt') + ':2', '--out', tmp_path/'run', '--name', 'quick', '--json'))
    assert figures['training']['steps'] == 6 and list(figures['held_out']) == ['seen families', 'unseen families', 'b']
    assert figures['exports'][0]['parity']['status'] in ('passed', 'not checked')
    assert json.loads((tmp_path/'run/config.json').read_text())['plan']['minutes'] == 2

# export

def test_export_to_another_file(run):
    before = contents(run)
    figures = as_json(codette('export', run, '--quantization', 'q8', '--out', run/'small.gguf', '--json'))
    assert figures['quantization'] == 'q8' and figures['parity']['status'] in ('passed', 'not checked')
    assert (run/'small.gguf').stat().st_size == figures['bytes'] < .6*(run/'model.gguf').stat().st_size
    assert './small.gguf' in (run/'small.Modelfile').read_text()
    after = contents(run)
    assert {k: after[k] for k in before} == before             # the first export and its Modelfile are as they were
    assert not litter(run)

def test_export_refuses_and_replaces(run):
    before = contents(run)
    code, out, err = codette('export', run)
    assert (code, out) == (1, '') and 'model.gguf exists already' in err and '--force' in err
    assert contents(run) == before
    code, out, _ = codette('export', run, '--force', '--quantization', 'fp32', '--no-verify')
    assert code == 0 and 'not checked' in out
    assert (run/'model.gguf').stat().st_size > 1.5*len(before['model.gguf'])

def test_export_of_a_checkpoint(run, tmp_path):
    assert codette('export', run/'checkpoints/step-16', '--out', tmp_path/'sixteen.gguf', '--name', 'sixteen', '--no-verify')[0] == 0
    assert read_gguf(tmp_path/'sixteen.gguf').metadata['general.name'] == 'sixteen'

# eval

def test_eval(tiny_run):
    before = contents(tiny_run)
    own = as_json(codette('eval', tiny_run, '--json'))
    report = json.loads((tiny_run/'report.json').read_text())
    assert own['book']['loss'] == pytest.approx(report['held_out']['book']['loss'], abs=1e-6)
    assert {'accuracy', 'bits_per_byte', 'xz_alone', 'xz_given_train', 'trigram'} <= set(own['book'])
    assert contents(tiny_run) == before

def test_eval_on_other_text(tiny_run, tmp_path):
    for seed in (1, 2): write_book(tmp_path/f'other{seed}.txt', 10, seed)
    sets = as_json(codette('eval', tiny_run, '--data', tmp_path/'other1.txt', '--data', tmp_path/'other2.txt', '--json'))
    assert list(sets) == ['other1', 'other2'] and sets['other1']['loss'] != sets['other2']['loss']
    code, out, _ = codette('eval', tiny_run, '--data', tmp_path/'other1.txt')
    assert code == 0 and 'bits per byte' in out and 'other1' in out

def test_eval_names_are_not_mixed_up(tiny_run, tmp_path):
    for d in ('a', 'b'): (tmp_path/d).mkdir(); write_book(tmp_path/d/'same.txt', 5)
    code, out, err = codette('eval', tiny_run, '--data', tmp_path/'a/same.txt', '--data', tmp_path/'b/same.txt')
    assert code == 1 and "'same'" in err

def test_eval_answers(monkeypatch, tmp_path):
    "Held-out questions of each source, answered and marked."
    tiny.shrink(monkeypatch.setattr)
    code, _, err = codette('train', '--samples', 120, '--size', 'nano', '--context', 64, '--batch', 4, '--device', 'cpu', '--steps', 2, '--no-verify',
                           '--out', tmp_path/'run')
    assert code == 0, err
    rows = as_json(codette('eval', tmp_path/'run', '--answers', 1, '--json'))
    assert {r['set'] for r in rows} == {'seen families', 'unseen families'} and {r['source'] for r in rows} == set(GENERATED)
    assert all(r['questions'] == 1 for r in rows)
    code, out, _ = codette('eval', tmp_path/'run', '--answers', 1)
    assert code == 0 and out.count('\n') == len(rows) + 1
    code, out, err = codette('eval', tmp_path/'run', '--answers', 0)
    assert (code, out) == (1, '') and 'at least 1' in err

def test_canaries(monkeypatch, tmp_path):
    "Secrets planted 64 times in a small text are known afterwards, those planted 0 times are not."
    tiny.shrink(monkeypatch.setattr)
    book = write_book(tmp_path/'book.txt', 60)
    code, _, err = codette('train', '--canaries', '--data', book, *BOOK, '--steps', 150, '--no-verify', '--out', tmp_path/'run')
    assert code == 0, err
    known = json.loads((tmp_path/'run/report.json').read_text())['memorisation']['canaries']
    assert list(known) == ['0', '1', '4', '16', '64'] and known['64'] > 6 and known['64'] > known['0'] + 3 and known['0'] < 5, known
    assert 'planted 64 times' in (tmp_path/'run/README.md').read_text()

# plan

def test_plan():
    rows = as_json(codette('plan', '--json'))
    assert [r['size'] for r in rows] == ['nano', 'micro', 'mini', 'small', 'medium', 'large', 'xlarge']
    assert abs(rows[4]['parameters']/2.7e9 - 1) < .02
    code, out, err = codette('plan', '--size', 'medium')
    assert (code, err) == (0, '') and 'medium' in out and '2.71 B' in out

def test_plan_of_minutes(monkeypatch):
    tiny.shrink(monkeypatch.setattr)
    plan = as_json(codette('plan', '--minutes', 60, '--size', 'nano', '--device', 'cpu', '--json'))
    assert plan['size'] == 'nano' and 0 < plan['seconds'] <= 3600 and plan['training']['max_steps'] > 10

# data

def test_data(tmp_path):
    file = tmp_path/'r.jsonl'
    report = as_json(codette('data', '--n', 60, '--out', file, '--seed', 3, '--json', '--picture', tmp_path/'mix.svg', '--held-out', tmp_path/'h.jsonl'))
    rows = report['sources']
    assert (tmp_path/'mix.svg').read_text().startswith('<?xml') and len((tmp_path/'h.jsonl').read_text().splitlines()) == sum(s['records'] for s in report['sets'])
    assert sum(r['records'] for r in rows) == 60 and {r['source'] for r in rows} == {'perspectives', 'tool_use', 'consciousness', 'mixed_reasoning'}
    lines = file.read_text(encoding='utf-8').splitlines()
    assert len(lines) == 60 and all(json.loads(line) for line in lines)
    code, _, err = codette('data', '--n', 5, '--out', file)
    assert code == 1 and 'exists already' in err and file.read_text(encoding='utf-8').splitlines() == lines
    assert codette('data', '--n', 60, '--out', file, '--seed', 3, '--force')[0] == 0
    assert file.read_text(encoding='utf-8').splitlines() == lines   # the same seed, the same bytes
    code, out, _ = codette('data', '--n', 5, '--show', 1)
    assert code == 0 and '<|im_start|>' in out

def test_data_mixes(tmp_path):
    "Own text by weight, sources switched off, forms and rules, in the command as in the library."
    (tmp_path/'notes.txt').write_text('\n\n'.join(
        f'The {w} stood at the {p} and the {n} was {h} that day.' for w in ('heron', 'otter', 'hare', 'fox') for p in ('weir', 'mill', 'ford')
        for n in ('water', 'wind', 'grass') for h in ('high', 'cold')))
    out = tmp_path/'r.jsonl'
    report = as_json(codette('data', '--n', 40, '--data', f'{tmp_path}/notes.txt:3', '--weight', 'tool_use=0', '--weight', 'consciousness=2',
                             '--forms', 'chat,qa', '--keep', 'near', '--out', out, '--json'))
    records = {r['source']: r for r in report['sources']}
    assert 'tool_use' not in records and records['consciousness']['records'] == 2*20 and records['notes']['readings'] == 3
    forms = [json.loads(line).get('form', 'chat') for line in out.read_text().splitlines()]
    assert forms.count('qa') == sum(r['records'] for k, r in records.items() if k != 'notes')/2
    for bad, why in ((['--weight', 'tool_use'], 'SOURCE=NUMBER'), (['--weight', 'tool_use=-1'], 'from 0 on'), (['--weight', 'x=1'], "'x'"),
                     (['--temperature', 0], 'temperature'), (['--forms', 'poem'], 'poem'), (['--keep', 'spelling'], 'spelling'),
                     (['--picture', tmp_path/'mix.txt'], '.png'), (['--workers', -1], 'workers is -1'), (['--n', -1], 'samples is -1')):
        code, _, err = codette('data', '--n', 5, *bad)
        assert code == 1 and why in err and len(err.strip().splitlines()) == 1, err

GENERATED = 'perspectives', 'tool_use', 'consciousness', 'mixed_reasoning'

@pytest.mark.parametrize('command', ['data', 'train', 'quick-train'])
@pytest.mark.parametrize('weights, why', [(['tool_use=nan'], 'is nan'), (['tool_use=-1'], 'is -1'), (['tool_use=inf'], 'is inf')])
def test_weights_that_cannot_be(command, weights, why, tmp_path):
    code, out, err = codette(command, *(x for w in weights for x in ('--weight', w)), '--out', tmp_path/'o')
    assert code == 1 and why in err and err.count('\n') == 1 and not (tmp_path/'o').exists()
    if command == 'data': assert not out

def test_all_weights_are_zero(tmp_path):
    "Nothing is left, unless there is text of one's own."
    zero = [x for k in GENERATED for x in ('--weight', f'{k}=0')]
    code, _, err = codette('data', *zero)
    assert code == 1 and 'all weights are 0' in err and err.count('\n') == 1
    report = as_json(codette('data', *zero, '--data', write_book(tmp_path/'b.txt'), '--json'))
    assert [r['source'] for r in report['sources']] == ['b']

def test_written_records_are_read_again(tmp_path):
    "The files of one mix in another: read as often as asked for, and no held-out family becomes training."
    assert codette('data', '--n', 200, '--out', tmp_path/'made.jsonl', '--held-out', tmp_path/'held.jsonl')[0] == 0
    both = '--data', f'{tmp_path}/made.jsonl:2', '--data', tmp_path/'held.jsonl'
    report = as_json(codette('data', '--n', 100, '--seed', 5, *both, '--out', tmp_path/'again.jsonl', '--json'))
    lines = lambda name: [json.loads(line) for line in (tmp_path/name).read_text(encoding='utf-8').splitlines()]
    groups = lambda records: [r['group'] for r in records]
    again, made = groups(lines('again.jsonl')), set(groups(lines('made.jsonl')))
    assert len([g for g in again if g in made]) > 1.5*len(made)
    unseen = {f.name for f in families(held_out=True)}
    assert unseen & {r['family'] for r in lines('held.jsonl')} and not unseen & {r['family'] for r in lines('again.jsonl')}
    assert any(r['reason'] == 'held_out' for r in report['dropped'])

def test_a_reader_who_stops(tmp_path):
    "As with `| head -1`."
    call = [sys.executable, '-c', 'from codette_nb.cli import entry; entry()', 'data', '--n', '200', '--show', '200']
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.readline(); p.stdout.close()
        assert not p.stderr.read() and p.wait(60) == 0

# shards

def test_shards(tmp_path, monkeypatch):
    "A folder becomes shards, in one go or in two parts that are joined; a model is trained on them, its run resumed and measured."
    tiny.shrink(monkeypatch.setattr)
    library = tmp_path/'library'
    library.mkdir()
    for i in range(30): write_book(library/f'{i}.txt', 10, seed=i)
    options = '--data', library, '--vocab', 400, '--held-out', .1
    code, out, err = codette('shards', *options, '--out', tmp_path/'whole')
    assert code == 0 and 'records kept' in out and 'held-out' in out, err
    for i in (0, 1): as_made = codette('shards', *options, '--part', f'{i}/2', '--tokenizer', tmp_path/'whole', '--out', tmp_path/f'p{i}', '--json')
    assert as_made[0] == 0 and set(json.loads(as_made[1])) == {'train', 'held-out'}
    assert codette('shards', '--join', tmp_path/'p0', tmp_path/'p1', '--out', tmp_path/'joined')[0] == 0
    files = lambda f: {p.name: p.read_bytes() for p in sorted((f/'train').glob('shard-*'))}
    assert files(tmp_path/'joined') == files(tmp_path/'whole')
    run = '--size', 'nano', '--context', 64, '--batch', 4, '--device', 'cpu', '--no-verify', '--save-every', 8
    code, _, err = codette('train', '--shards', tmp_path/'joined', *run, '--steps', 16, '--out', tmp_path/'run')
    assert code == 0, err
    unruly = '--tokenizer', tmp_path/'whole', '--keep', 'all', '--json'
    both = json.loads(codette('shards', *options, *unruly, '--out', tmp_path/'unruly')[1])
    assert both['train']['library']['documents'] + both['held-out']['library']['documents'] == 30  # held out, whatever rules are off
    report = json.loads((tmp_path/'run/report.json').read_text())
    held = json.loads(as_made[1])['held-out']['library']['documents']
    assert report['data']['sources'] == {'library': 30 - held}
    assert list(report['held_out']) == ['held-out'] and report['model']['vocabulary'] == 400
    code, _, err = codette('train', '--resume', '--out', tmp_path/'run', '--steps', 20, '--no-verify')
    assert code == 0 and json.loads((tmp_path/'run/report.json').read_text())['training']['steps'] == 20, err

def test_shards_refuse(tmp_path):
    write_book(tmp_path/'b.txt')
    for argv, why in ((['--data', tmp_path/'none'], 'no file or folder'), ([], '--data PATH'), (['--data', tmp_path/'b.txt', '--part', '2'], 'I/N'),
                      (['--data', tmp_path/'b.txt', '--part', '2/2'], 'from 0 to 1'), (['--data', tmp_path/'b.txt'], 'larger share'), (['--join', tmp_path/'none'], 'none'),
                      (['--data', tmp_path/'b.txt', '--tokenizer', tmp_path/'none'], 'none')):
        code, out, err = codette('shards', *argv, '--out', tmp_path/'out')
        assert code == 1 and why in err and len(err.strip().splitlines()) == 1, (argv, err)
    code, _, err = codette('train', '--shards', tmp_path/'none', '--out', tmp_path/'run')
    assert code == 1 and 'none' in err and not (tmp_path/'run').exists()

# chat

@pytest.fixture
def one_thread(monkeypatch):
    "llama.cpp's threads wait for each other in a loop: on a busy machine one is quicker than several."
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)

def test_chat(tiny_run, one_thread):
    ask = lambda *more: codette('chat', tiny_run, 'Where is the wind?', '--max-tokens', 12, '--temperature', 0, *more)
    code, out, err = ask()
    assert code == 0 and out and not err             # so little trained, it may say nothing but line ends
    assert ask() == (code, out, err)

def test_conversation(tiny_run, monkeypatch, one_thread):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('Where is the wind?\n\nAnd the river?\n'))
    code, out, _ = codette('chat', tiny_run, '--max-tokens', 5, '--seed', 1)
    assert code == 0 and out.count('> ') == 4       # two questions, an empty line, the end
