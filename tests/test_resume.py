"A run that is killed at any moment and resumed is the run that nobody disturbed, to the bit: weights, optimizer, random states, metrics."
import json, os, random, shutil
import pytest
import resumable
from resumable import equal, finish, kill_when, lines, make, process, unfinished
from tiny import contents, litter
from codette_nb.core import CodetteError
from codette_nb.train.checkpoint import check_checkpoint, latest_checkpoint
from codette_nb.train.lock import RunLock, holder

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='SIGKILL and fork are POSIX')

def undisturbed(folder, **changes):
    run = folder/'whole'
    assert finish(process(run, changes)) == 0, (folder/'whole.err').read_text()
    return run

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The run that nobody disturbed."
    return undisturbed(tmp_path_factory.mktemp('whole'))

def go_on(run, whole, **changes):
    "Resume a killed run to its end, which must be that of the other."
    for p in run.glob('checkpoints/[!.]*'): check_checkpoint(p)     # what has its name is whole
    assert finish(process(run, changes, resume=True)) == 0, run.with_suffix('.err').read_text()
    equal(run, whole)

def test_what_is_compared(whole):
    "The run crosses epochs, changes its rate and its mixture, measures, scores, samples, ramps."
    seen = [json.loads(line) for line in open(whole/'metrics.jsonl')]
    kinds = [e['event'] for e in seen]
    assert {'eval', 'score', 'sample', 'checkpoint', 'control', 'stop'} <= set(kinds) and kinds.count('step') == 22
    assert [(e['step'], e['command']) for e in seen if e['event'] == 'control'] == [(7, 'lr'), (12, 'weights')]
    state = json.loads((whole/'checkpoints/step-22/trainer.json').read_text())
    assert state['sampler']['epoch'] >= 2 and state['listeners'] and state['lr_scale'] == .5
    assert {p.name for p in (whole/'checkpoints').iterdir()} == {'model_best', 'step-20', 'step-22'}

@pytest.mark.parametrize('seed', range(3))
def test_killed_again_and_again(whole, tmp_path, seed):
    "At random lines of the metrics, as soon as the folder is taken, while checkpoints and best models are written; with 0, 1 and 2 batches made ahead."
    r, run = random.Random(seed), tmp_path/'run'
    at = sorted(r.sample(range(3, lines(whole)), 3))
    moments = [lambda n=n: lines(run) >= n for n in at] + [lambda n=n: unfinished(run, n) for n in ('step-5', f'step-{r.choice((10, 15))}', 'model_best')]
    moments += [(run/'run.lock').exists, (run/'metrics.jsonl').exists]
    r.shuffle(moments)
    for i, seen in enumerate(moments):
        (run/'run.lock').unlink(missing_ok=True)                        # what a killed process leaves
        resume = (run/'config.json').exists()
        if not kill_when(process(run, dict(prefetch=(i + seed) % 3), resume), seen): break   # a moment that had passed: it ran to its end
    (run/'run.lock').unlink(missing_ok=True)
    go_on(run, whole, prefetch=seed)

@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='no C++ compiler, so layers cannot be compiled')
@pytest.mark.parametrize('dtype', ['float32', 'int8'])
def test_compiled(tmp_path, dtype):
    "The compiled run too, though not the same bits as the plain one; with products in int8 as well."
    changes = dict(compile='layers', length_ramp=0., batch_ramp=0., max_steps=12, dtype=dtype)
    whole, run = undisturbed(tmp_path, **changes), tmp_path/'run'
    kill_when(process(run, changes), lambda: unfinished(run, 'step-10'))
    go_on(run, whole, **changes)

@pytest.mark.parametrize('dtype', ['bfloat16', 'int8', 'int8-float32'])
def test_number_formats(tmp_path, dtype):
    "Products are done in int8 while a run goes on that asks for it, the rest in its other format, and no longer afterwards."
    import torch
    from codette_nb.model.transformer import Linear
    trainer, seen = make(tmp_path/'run', dict(dtype=dtype, max_steps=3), controls=False), set()
    maps = [m for m in trainer.model.modules() if isinstance(m, Linear)]
    def look(m, inputs, output):
        if torch.is_grad_enabled(): seen.add((m.int8, type(output.grad_fn.next_functions[0][0]).__name__.startswith('_Int8Product'), output.dtype))
    for layer in trainer.model.layers: layer.mlp.c_proj.register_forward_hook(look)
    trainer.fit(quiet=True)
    int8 = dtype.startswith('int8')
    assert seen == {(int8, int8, torch.float32 if dtype == 'int8-float32' else torch.bfloat16)} and not any(m.int8 for m in maps)

def test_begun_again(whole, tmp_path):
    "Killed before anything was saved, and with half a configuration written."
    run = tmp_path/'run'
    kill_when(process(run), (run/'config.json').exists)
    shutil.rmtree(run/'checkpoints', ignore_errors=True)
    (run/'.metrics.jsonl.1.tmp').write_text('{')
    assert latest_checkpoint(run, begin=True) is None
    go_on(run, whole)

def test_second_process(whole, tmp_path):
    "A folder in which another process trains is not touched."
    run = shutil.copytree(whole, tmp_path/'run')
    before = contents(run)
    with RunLock(run):
        mine = contents(run)
        assert finish(process(run, resume=True)) == 1 and f'is being trained by process {os.getpid()}' in run.with_suffix('.err').read_text()
        assert contents(run) == mine and holder(run)['pid'] == os.getpid()
    assert contents(run) == before

DIFFERENT = {'optimizer': dict(optimizer='adamw'), 'batch_size': dict(batch_size=2), 'seed': dict(seed=4)}

@pytest.mark.parametrize('field', DIFFERENT)
def test_another_run_is_refused(whole, tmp_path, field):
    "What differs is named, and neither the folder nor the trainer has changed."
    run = shutil.copytree(whole, tmp_path/'run')
    before = contents(run)
    with pytest.raises(CodetteError, match=f'{field} is .* there and .* here'): make(run, DIFFERENT[field], resume=True)
    assert contents(run) == before

def test_damage_is_refused(whole, tmp_path):
    "One bit in the trainer's tensors, or a missing file: the checkpoint before is taken, and the end is the same."
    run = shutil.copytree(whole, tmp_path/'run')
    file = run/'checkpoints/step-22/trainer.safetensors'
    data = bytearray(file.read_bytes()); data[-3] ^= 1; file.write_bytes(data)
    trainer = make(run, resume=True)
    assert trainer.step == 20
    with pytest.raises(CodetteError, match='trainer.safetensors is not what was saved'): trainer.load(run/'checkpoints/superseded-step-22')
    assert trainer.step == 20
    trainer.fit(quiet=True)
    equal(run, whole)
