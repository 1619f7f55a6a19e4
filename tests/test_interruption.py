"A run that is killed, interrupted or out of room loses nothing that was saved, and goes on to the same end."
import errno, json, os, shutil, signal, sys, time
import pytest
import torch
from safetensors.torch import load_file
import tiny
from tiny import BOOK, codette, contents, events, finish, litter, start, write_book
from codette_nb.train.checkpoint import check_checkpoint, latest_checkpoint, load

posix = pytest.mark.skipif(os.name != 'posix', reason='signals and limits as POSIX has them')

def arguments(folder, out, steps=24):
    return ['train', '--data', folder/'book.txt', *BOOK, '--steps', steps, '--save-every', 6, '--out', folder/out, '--no-verify']

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A run that nobody disturbed."
    folder = tmp_path_factory.mktemp('whole')
    write_book(folder/'book.txt')
    code, _, err = finish(start(*arguments(folder, 'whole')))
    assert code == 0, err
    return folder/'whole'

def wait_for(process, seen, seconds=60):
    "Until `seen()` is true while the process lives."
    end = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(.002)

def same_end(run, whole):
    "Both runs ended with the same weights, to the bit, and the same metrics."
    for name in ('model_best', 'step-18', 'step-24'):
        a, b = (load_file(r/'checkpoints'/name/'model.safetensors') for r in (run, whole))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    assert events(run) == events(whole)
    names = {p.name for p in (run/'checkpoints').iterdir()}
    assert {n for n in names if not n.startswith('superseded-')} == {'model_best', 'step-18', 'step-24'}   # damaged ones may be put aside
    assert not litter(run)

# SIGKILL

MOMENTS = {'between checkpoints': 'step-6/manifest.json', 'while a checkpoint is written': '.step-12.*.tmp/model.safetensors',
           'while the best model is replaced': '.model_best.*.tmp/model.safetensors'}

@posix
@pytest.mark.parametrize('moment', MOMENTS)
def test_killed(whole, tmp_path, moment):
    shutil.copy(whole.parent/'book.txt', tmp_path)
    run = tmp_path/'run'
    process = start(*arguments(tmp_path, 'run'), SLOW=.3)
    if 'best' in moment: wait_for(process, (run/'checkpoints/step-12/manifest.json').exists)   # there is a best model already, of step 8
    wait_for(process, lambda: any(run.glob(f'checkpoints/{MOMENTS[moment]}')))
    process.kill()
    code, _, _ = finish(process)
    assert code == -signal.SIGKILL and not (run/'report.json').exists()
    if 'while' in moment: assert litter(run)                        # it was in the middle of writing
    for p in run.glob('checkpoints/[!.]*'): check_checkpoint(p)     # what has its name is whole
    code, out, err = finish(start('train', '--resume', '--out', run, '--no-verify'))
    assert code == 0, err
    same_end(run, whole)
    assert (run/'report.json').exists() and (run/'model.gguf').exists()

def test_killed_between_two_names(whole, tmp_path, monkeypatch):
    "A folder is replaced by two renames; between them the older one has a hidden name."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.copy(whole.parent/'book.txt', tmp_path)
    config = json.loads((run/'config.json').read_text())
    config['recipe']['data'] = [[str(tmp_path/'book.txt'), 1]]
    (run/'config.json').write_text(json.dumps(config))
    os.replace(run/'checkpoints/model_best', run/'checkpoints/.model_best.old')
    tiny.shrink(monkeypatch.setattr)
    assert codette('train', '--resume', '--out', run, '--no-verify')[0] == 0
    same_end(run, whole)

def test_killed_before_the_first_checkpoint(whole, tmp_path, monkeypatch):
    "It begins again."
    run = shutil.copytree(whole, tmp_path/'run')
    shutil.rmtree(run/'checkpoints')
    tiny.shrink(monkeypatch.setattr)
    code, _, err = codette('train', '--resume', '--out', run, '--no-verify')
    assert code == 0, err
    same_end(run, whole)

def test_a_damaged_last_checkpoint_is_passed_over(whole, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path/'run')
    with open(run/'checkpoints/step-24/trainer.safetensors', 'r+b') as f: f.truncate(1000)
    tiny.shrink(monkeypatch.setattr)
    code, out, err = codette('train', '--resume', '--out', run, '--no-verify', '--json')
    assert code == 0 and 'step-24 is damaged' in err and 'step-18 is taken instead' in err
    assert json.loads(out)['training']['steps'] == 24
    same_end(run, whole)

def test_changed_text_is_not_resumed(whole, tmp_path, monkeypatch):
    run = shutil.copytree(whole, tmp_path/'run')
    config = json.loads((run/'config.json').read_text())
    config['recipe']['data'] = [[write_book(tmp_path/'book.txt', seed=5), 1]]
    (run/'config.json').write_text(json.dumps(config))
    before = contents(run)
    code, _, err = codette('train', '--resume', '--out', run)
    assert code == 1 and 'has changed' in err and contents(run) == before

# Ctrl-C

@posix
def test_ctrl_c(whole, tmp_path):
    shutil.copy(whole.parent/'book.txt', tmp_path)
    run = tmp_path/'run'
    process = start(*arguments(tmp_path, 'run', steps=100_000))
    wait_for(process, (run/'checkpoints/step-6/manifest.json').exists)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    said = [line for line in err.splitlines() if line.startswith('codette: ')]
    assert code == 130 and len(said) == 1 and 'Traceback' not in err
    assert 'the model so far is saved' in said[0] and f'codette train --resume --out {run}' in said[0]
    last = events(run)[-1]
    assert (last['event'], last['reason']) == ('stop', 'interrupted') and latest_checkpoint(run).name == f'step-{last["step"]}'
    assert load(run).generate('the wind', max_tokens=4, seed=0) and not litter(run)
    assert codette('export', run)[0] == 0                                # usable as it is
    assert codette('chat', run, 'Who?', '--max-tokens', 3)[0] == 0

def test_ctrl_c_before_training(monkeypatch, tmp_path):
    import codette_nb.pipeline as pipeline
    tiny.shrink(monkeypatch.setattr)
    def interrupted(*a): raise KeyboardInterrupt
    monkeypatch.setattr(pipeline, 'build_tokenizer', interrupted)
    write_book(tmp_path/'book.txt')
    code, _, err = codette(*arguments(tmp_path, 'run'))
    assert code == 130 and err.strip() == 'codette: stopped; what was saved before is whole, and the same command may be given again' and not (tmp_path/'run').exists()

# A full disk

def one_sentence(code, err):
    assert code == 1 and err.startswith('codette: ') and err.count('\n') == 1, err

@posix
def test_no_room_while_saving(whole, tmp_path):
    "The limit on the size of a file strikes in the middle of the weights, as a full disk would."
    shutil.copy(whole.parent/'book.txt', tmp_path)
    run = tmp_path/'run'
    code, _, err = finish(start(*arguments(tmp_path, 'run'), FULL=4))     # in the middle of step 12, the fourth that is saved
    one_sentence(code, err)
    assert 'could not be saved' in err and 'what was saved before is whole' in err
    assert {p.name for p in (run/'checkpoints').iterdir()} == {'model_best', 'step-0', 'step-6'} and not litter(run)
    for p in (run/'checkpoints').iterdir(): check_checkpoint(p)
    assert load(run).generate('the', max_tokens=3, seed=0)
    assert events(run)[-1]['reason'] == 'error'
    code, _, err = finish(start('train', '--resume', '--out', run, '--no-verify'))
    assert code == 0, err
    same_end(run, whole)

@pytest.mark.parametrize('name', ['save_tokenizer', 'write_tensors', 'write_json'])
def test_full_disk(monkeypatch, tmp_path, name):
    "Whatever part of a checkpoint finds the disk full, the checkpoint before stays."
    import codette_nb.train.checkpoint as checkpoint
    tiny.shrink(monkeypatch.setattr)
    real, run = getattr(checkpoint, name), tmp_path/'run'
    def full(*a, **kw):
        if (run/'checkpoints/step-6').exists(): raise OSError(errno.ENOSPC, 'No space left on device')
        return real(*a, **kw)
    monkeypatch.setattr(checkpoint, name, full)
    write_book(tmp_path/'book.txt')
    code, _, err = codette(*arguments(tmp_path, 'run'))
    one_sentence(code, err)
    assert 'No space left on device' in err and 'model_best' in err
    assert {p.name for p in (run/'checkpoints').iterdir()} == {'step-0', 'step-6'} and latest_checkpoint(run).name == 'step-6' and not litter(run)

def test_too_little_room_is_known_before(monkeypatch, tmp_path):
    tiny.shrink(monkeypatch.setattr)
    write_book(tmp_path/'book.txt')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1000, 1000, 0))
    code, _, err = codette(*arguments(tmp_path, 'run'))
    one_sentence(code, err)
    assert 'a checkpoint needs' in err and not litter(tmp_path/'run')

def test_full_disk_while_logging(monkeypatch, tmp_path):
    "Not only checkpoints need room."
    from codette_nb.train.trainer import MetricsFile
    tiny.shrink(monkeypatch.setattr)
    def full(self, e):
        if e['event'] != 'start': raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(MetricsFile, '__call__', full)
    write_book(tmp_path/'book.txt')
    code, _, err = codette(*arguments(tmp_path, 'run'))
    one_sentence(code, err)
    assert 'the disk is full' in err
