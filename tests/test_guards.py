"What watches a run: planted faults of each kind, on runs of a few seconds."
import json, math, shutil
from dataclasses import replace
from pydoc_data.topics import topics
import pytest
import torch
from codette_nb.core import CodetteError
from codette_nb.data.tokenizer import SentencePieceTokenizer
from codette_nb.model.transformer import create_codette_model
from codette_nb.train.checkpoint import check_checkpoint, latest_checkpoint, load
from codette_nb.train.guards import canaries, canary_records, exposure
from codette_nb.train.trainer import CodetteTrainer, TrainingConfig

DOCS = list(topics.values())[:24]
TRAIN, HELD_OUT = DOCS[::2], DOCS[1::2]

@pytest.fixture(scope='module')
def tokenizer(): return SentencePieceTokenizer(400).fit(DOCS)

@pytest.fixture
def new(tokenizer, tmp_path):
    def make(out='run', train=TRAIN, held_out=HELD_OUT, **changes):
        torch.manual_seed(0)
        model = create_codette_model('nano', vocab_size=400, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, context_length=32)
        config = TrainingConfig.laptop(**dict(device='cpu', dtype='float32', threads=1, compile='none', max_steps=60, batch_size=8, eval_every=10, save_every=10,
                                              eval_windows=16, log_every=5, sample_every=0) | changes)
        return CodetteTrainer(model, tokenizer, train, held_out, config, tmp_path/out)
    return make

def events(trainer, *kinds): return [e for e in map(json.loads, open(trainer.out/'metrics.jsonl', encoding='utf-8')) if e['event'] in kinds]
def warned(trainer): return [e['kind'] for e in events(trainer, 'warning')]

def at(trainer, step, do, times=1):
    "Do something at a step, each time that the run comes to it but not more often than so many times."
    left = [times]
    def listener(e):
        if e['event'] == 'step' and e['step'] == step and left[0]: left[0] -= 1; do()
    trainer.listeners.append(listener)

def poison(trainer):
    with torch.no_grad(): trainer.model.layers[0].mlp.c_fc.weight[0, 0] = math.inf

def test_an_ordinary_run_is_left_alone(new):
    trainer = new()
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    assert warned(trainer) == [] and events(trainer, 'rollback') == [] and trainer.rollbacks == 0

def test_a_planted_nan(new):
    trainer = new()
    at(trainer, 25, lambda: poison(trainer))
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    fell, = events(trainer, 'rollback')
    assert (fell['from_step'], fell['step'], fell['factor']) == (25, 20, .5)
    assert warned(trainer) == ['nan'] and len(trainer.guards.skip) == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    rates = {e['step']: e['lr'] for e in events(trainer, 'step')}      # of each step, the last time it was taken
    whole = new('whole'); whole.fit(quiet=True)
    assert all(math.isclose(rates[e['step']], e['lr']*(.5 if e['step'] > 20 else 1)) for e in events(whole, 'step'))

def test_it_is_given_up_after_three(new):
    trainer = new()
    at(trainer, 25, lambda: poison(trainer), times=9)
    with pytest.raises(CodetteError, match='try a lower learning rate'): trainer.fit(quiet=True)
    assert [e['factor'] for e in events(trainer, 'rollback')] == [.5, .25, .125]
    assert events(trainer, 'stop')[-1]['reason'] == 'error'
    for p in (trainer.out/'checkpoints').glob('[!.]*'): check_checkpoint(p)
    assert all(torch.isfinite(p).all() for p in load(trainer.out).model.parameters())

def test_a_batch_that_cannot_be_computed_is_passed_over(new):
    "Its loss is not a number at any rate: met again, it would end the run."
    trainer = new()
    real, bad = trainer.sampler.next, {'epoch': 0, 'position': 8*25}
    def broken(*a):
        here = {k: trainer.sampler.state()[k] for k in bad} == bad
        x, y = real(*a)
        return (x, y*0 - 100) if here else (x, y)
    trainer.sampler.next = broken
    trainer.config = replace(trainer.config, prefetch=0)
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    assert len(events(trainer, 'rollback')) == 1 and warned(trainer) == ['nan']
    assert [0, 8*25] in trainer.guards.skip and [0, 8*24] in trainer.guards.skip

def test_a_spike(new):
    trainer = new(max_steps=80, schedule='constant')
    at(trainer, 45, lambda: trainer.set_lr(1000.))
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    fell, *more = events(trainer, 'rollback')
    assert not more and fell['step'] == 40 and 45 < fell['from_step'] < 50 and 'held-out loss' in fell['reason']
    assert warned(trainer) == ['spike']
    assert trainer.last['loss'] < 5                                    # guessing costs 6

def test_a_spike_before_anything_was_learnt(new):
    "There is a checkpoint to fall back to from the start."
    trainer = new(lr=3., muon_lr=50., warmup_steps=0, schedule='constant', save_every=50)
    try: trainer.fit(quiet=True)
    except CodetteError as e: assert '3 times the run fell back' in str(e)
    assert {e['step'] for e in events(trainer, 'rollback')} == {0}

def test_resumed_after_a_fall(new, tmp_path):
    "A run that fell back, was killed, and is resumed ends with the same weights and the same record."
    whole = new('whole')
    at(whole, 25, lambda: poison(whole))
    whole.fit(quiet=True)
    killed = new('killed')
    at(killed, 25, lambda: poison(killed))
    at(killed, 35, killed.stop)
    killed.fit(quiet=True)
    shutil.rmtree(killed.out/'checkpoints/step-35')
    torch.manual_seed(1)
    again = CodetteTrainer(create_codette_model(killed.model.config), killed.tokenizer, TRAIN, HELD_OUT, killed.config, killed.out, resume=True)
    again.load(latest_checkpoint(killed.out))
    assert (again.step, again.rollbacks, again.lr_scale) == (30, 1, .5)
    again.fit(quiet=True)
    for a, b in zip(again.model.parameters(), whole.model.parameters()): assert torch.equal(a, b)
    strip = lambda t: [{k: v for k, v in e.items() if k not in ('time', 'elapsed', 'time_left', 'tokens_per_second', 'data', 'choice')}
                       for e in map(json.loads, open(t.out/'metrics.jsonl', encoding='utf-8'))]
    assert strip(again) == strip(whole)
    assert again.guards.state() == whole.guards.state()

def test_another_text_is_no_spike(new):
    "The mixture changes to numbers in the middle of the run."
    from codette_nb.data.records import Record
    import random
    r = random.Random(0)
    numbers = [Record(text=' '.join(str(r.randrange(10**6)) for _ in range(400)), source='numbers') for _ in range(12)]
    trainer = new(train=[*numbers, *TRAIN], max_steps=200, schedule='constant', eval_every=50, save_every=100)
    trainer.set_weights(dict(numbers=0, user=1))
    at(trainer, 150, lambda: trainer.batches.set_weights(dict(user=0, numbers=8)))    # behind the guards' back
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    assert events(trainer, 'rollback') == [] and 'spike' not in warned(trainer)
    assert trainer.guards.verdict.doubts >= 1                          # it was looked into

def test_no_gradient(new):
    trainer = new()
    trainer.model.layers[1].mlp.forward = lambda x: x*0
    trainer.fit(quiet=True)
    message, = (e['message'] for e in events(trainer, 'warning') if e['kind'] == 'zero_gradient')
    assert 'layers.1.mlp.c_fc.bias' in message

def test_text_that_is_repeated_and_learnt_by_heart(new):
    trainer = new(train=TRAIN[:1], max_steps=400, eval_every=40, save_every=400)
    trainer.fit(quiet=True)
    kinds = warned(trainer)
    assert {'repeats', 'gap'} <= set(kinds)
    assert kinds.count('gap') < 3 and kinds.count('repeats') < 10      # told again when it has doubled, not at every evaluation
    repeats = [e['message'] for e in events(trainer, 'warning') if e['kind'] == 'repeats']
    assert 'user' in repeats[0] and len(repeats) > 1

def test_leaked_text(new):
    trainer = new(train=TRAIN[:1], held_out=TRAIN[:1], max_steps=400, eval_every=100, save_every=400)
    trainer.fit(quiet=True)
    assert any('leak' in e['message'] for e in events(trainer, 'warning') if e['kind'] == 'leak')

def test_early_stopping_puts_the_best_model_back(new):
    trainer = new(train=TRAIN[:1], max_steps=2000, eval_every=20, save_every=100, patience=3)
    result = trainer.fit(quiet=True)
    assert result['reason'] == 'early' and result['step'] < 2000
    best = load(trainer.out).model
    for a, b in zip(trainer.model.parameters(), best.parameters()): assert torch.equal(a, b)
    assert math.isclose(trainer.held_out_loss(), result['best_loss'], rel_tol=1e-6) and result['loss'] > result['best_loss']

def full(monkeypatch, free): monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, free[0]))

def test_a_disk_that_fills(new, monkeypatch):
    free = [1 << 40]
    full(monkeypatch, free)
    trainer = new(save_every=20)
    at(trainer, 35, lambda: free.__setitem__(0, 1 << 20))
    result = trainer.fit(quiet=True)
    assert (result['reason'], result['step']) == ('disk', 40)
    assert sorted(p.name for p in (trainer.out/'checkpoints').iterdir()) == ['model_best', 'step-20']      # the older one made room, in vain
    for p in (trainer.out/'checkpoints').iterdir(): check_checkpoint(p)
    assert warned(trainer) == ['disk'] and 'needs' in events(trainer, 'stop')[0]['message']

def test_it_is_told_a_checkpoint_ahead(new, monkeypatch):
    free = [1 << 40]
    full(monkeypatch, free)
    trainer = new(save_every=20, max_rollbacks=0)
    trainer.listeners.insert(0, lambda e: free.__setitem__(0, 1 << 20) if e['event'] == 'checkpoint' and e['step'] == 20 and not e['best'] else None)
    at(trainer, 25, lambda: free.__setitem__(0, 1 << 40))              # somebody listened
    assert trainer.fit(quiet=True)['reason'] == 'finished'
    warning, = events(trainer, 'warning')
    assert (warning['kind'], warning['step']) == ('disk', 20) and 'free some space' in warning['message']

def test_no_room_from_the_start(new, monkeypatch):
    full(monkeypatch, [0])
    with pytest.raises(CodetteError, match='a checkpoint needs'): new().fit(quiet=True)

def test_canaries(new, tokenizer):
    planted = canaries(times=(0, 40), each=2, digits=4)
    trainer = new(train=TRAIN[:3] + canary_records(planted), max_steps=300, eval_every=100, save_every=300)
    trainer.fit(quiet=True)
    bits = {t: [f['exposure'] for f in exposure(trainer.model, tokenizer, planted, 200) if f['times'] == t] for t in (0, 40)}
    assert min(bits[40]) > 4 > sum(bits[0])/2
