"A plan from the command line, and in the report beside what came of it; on a shrunken `nano`."
import json, math
import pytest
import tiny
from tiny import codette, write_book

def as_json(result):
    code, out, err = result
    assert code == 0, err
    return json.loads(out)

@pytest.fixture
def small(monkeypatch):
    tiny.shrink(monkeypatch.setattr)
    import codette_nb.train.plan as plan
    monkeypatch.setattr(plan, 'BETWEEN', ('2x32',))
    monkeypatch.setattr(plan, 'COMPILE_FROM', math.inf) # compiling is tried in the notebook
    return plan

def test_plan_of_minutes_answers_everything(small):
    from codette_nb.train.config import DTYPES
    p = as_json(codette('plan', '--minutes', 60, '--size', 'nano', '--device', 'cpu', '--json'))
    assert 3000 < p['seconds'] <= 3600 and p['tokens'] > 0 and p['training']['batch_size'] >= 1 and p['memory'] > 0
    assert p['readings'] == pytest.approx(p['tokens']*3.1/p['unique_bytes'], rel=.5)
    bits, error = p['expected']['seen families']
    assert 0 < error < bits and 'T' in p['ends'] and p['choice']['dtype'] in DTYPES

def test_plan_is_a_table_for_people(small):
    code, out, err = codette('plan', '--minutes', 60, '--size', 'nano', '--device', 'cpu', '--samples', 500)
    assert code == 0, err
    for word in ('ends at', 'bits per byte', 'read', 'memory', 'tokens/s'): assert word in out, word

def test_own_text_alone_is_expected_as_prose(small, tmp_path):
    p = as_json(codette('plan', '--minutes', 60, '--size', 'nano', '--device', 'cpu', '--samples', 0, '--data', write_book(tmp_path/'b.txt', 300), '--json'))
    assert list(p['expected']) == ['prose']
    assert p['unique_bytes'] == pytest.approx((tmp_path/'b.txt').stat().st_size, rel=.2)

def test_auto_takes_the_best_that_was_timed(small):
    p = as_json(codette('plan', '--minutes', 60, '--device', 'cpu', '--json'))
    loss = lambda s: math.prod(bits for bits, _ in s['expected'].values())
    timed = [s for s in p['sizes'] if s['timed'] and s['fits'] and s['steps'] >= 10]
    assert p['size'] == min(timed, key=loss)['size']
    assert {s['size'] for s in p['sizes']} >= {'nano', 'micro', 'mini', 'small', 'medium', 'large', '2x32'}
    large = next(s for s in p['sizes'] if s['size'] == 'large')
    assert large['memory'] > 50 << 30 and not math.isnan(loss(large))

@pytest.mark.parametrize('argv, part', [
    (['--minutes', 0], 'minutes is 0'), (['--minutes', 'nan'], 'minutes is nan'), (['--minutes', .02, '--size', 'nano'], 'too short'),
    (['--minutes', 2, '--size', '0x64'], 'layers x width'), (['--minutes', 2, '--size', 'hugh'], 'choose one of auto'),
    (['--minutes', 2, '--samples', 0], 'nothing to train on'), (['--minutes', 2, '--data', 'none.txt'], 'none.txt')])
def test_bad_requests(small, argv, part):
    code, out, err = codette('plan', *argv, '--device', 'cpu')
    assert code == 1 and all(line.startswith('timing ') for line in out.splitlines()) and part in err and err.count('\n') == 1, err

def test_what_does_not_fit_says_what_would(small):
    from dataclasses import replace
    from codette_nb.core import CodetteError, Device
    from codette_nb.train.config import TrainingConfig
    card = Device('cuda', 'a card', 'bfloat16', 2., 1, 10 << 30)
    training = TrainingConfig(batch_size=1, dtype='bfloat16')
    with pytest.raises(CodetteError, match='low_memory'): small.check_memory('medium', small.shape('medium'), training, card)
    with pytest.raises(CodetteError, match='mini would fit'): small.check_memory('small', small.shape('small'), training, card)
    small.check_memory('mini', small.shape('mini'), training, card)

def test_prediction_and_outcome_are_in_the_report(small, monkeypatch, tmp_path):
    import codette_nb.pipeline as pipeline
    make_plan = pipeline.make_plan
    monkeypatch.setattr(pipeline, 'make_plan', lambda *a, **kw: make_plan(*a, **kw, max_steps=6, eval_windows=4, vocab_size=400))
    report = as_json(codette('quick-train', '--minutes', 2, '--size', 'nano', '--device', 'cpu', '--samples', 150, '--data', write_book(tmp_path/'b.txt'),
                             '--out', tmp_path/'run', '--no-verify', '--json'))
    plan = report['plan']
    assert {'minutes', 'tokens', 'memory', 'bits per byte: seen families', 'bits per byte: unseen families'} <= plan.keys()
    assert plan['tokens']['planned'] == plan['tokens']['outcome'] == report['training']['tokens']
    assert plan['bits per byte: seen families']['outcome'] == report['held_out']['seen families']['bits_per_byte']
    card = (tmp_path/'run/README.md').read_text(encoding='utf-8')
    assert '| minutes |' in card and '| memory |' in card and 'planned' in card

def test_a_rehearsal_measures_with_a_whole_batch(small, monkeypatch):
    "Beside a few windows to a step it is measuring that takes most memory, and the rehearsal is to find the peak of the run."
    import codette_nb.train.trainer as trainer
    from codette_nb.model.config import TransformerConfig
    from codette_nb.train.config import TrainingConfig
    real, at_once, context = trainer.measure, [], 64
    def measure(model, dataset, windows, **kw):
        at_once.append(min(windows, len(dataset), 16, 4096//context))        # what `measure` takes of a default number of windows
        return real(model, dataset, windows, **kw)
    monkeypatch.setattr(trainer, 'measure', measure)
    shape = TransformerConfig(vocab_size=2048, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, context_length=context)
    training = TrainingConfig.laptop(batch_size=1, device='cpu', dtype='float32', threads=1, compile='none')
    small.rehearse(shape, training, small.LittleText({}), steps=1)
    assert at_once and set(at_once) == {16}
