"Runs followed from outside: another process trains, is killed, is asked; a long run stays small."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest
from codette_nb.widgets.attach import Attached, Overlay
from codette_nb.train.experiments import RunLog, compare
from codette_nb.widgets.history import History, RunFile, notes_html, pretend_events, read_history

WRITER = '''
import json, sys, time
from codette_nb.train.lock import RunLock
from codette_nb.widgets.history import pretend_events
lock = RunLock(sys.argv[1]).acquire()
with open(sys.argv[1] + '/metrics.jsonl', 'w') as f:
    for e in pretend_events(100_000): f.write(json.dumps(e) + '\\n'); f.flush(); time.sleep(.005)
'''

def until(done, seconds=60):
    end = time.monotonic() + seconds
    while not (value := done()):
        assert time.monotonic() < end, 'waited for nothing'
        time.sleep(.05)
    return value

def test_killed_process(tmp_path):
    folder = tmp_path/'run'
    writer = subprocess.Popen([sys.executable, '-c', WRITER, str(folder)])
    try:
        until(lambda: (folder/'metrics.jsonl').is_file() and (folder/'metrics.jsonl').stat().st_size > 2000)
        run = Attached(folder)
        run.thread.start()
        at = run.step
        until(lambda: run.step > at + 20)
        assert run.status == 'running'
        run.pause(); run.set_lr(.5); run.set_weights({'prose': 2}); run.sample_now('A heron'); run.checkpoint_now(); run.stop()
        asked = [json.loads(l) for l in (folder/'inbox.jsonl').read_text().splitlines()]
        assert [a['command'] for a in asked] == ['pause', 'lr', 'weights', 'sample', 'checkpoint', 'stop']
        assert asked[1]['factor'] == .5 and asked[3]['prompt'] == 'A heron'
    finally:
        writer.kill(); writer.wait()
    until(lambda: run.status == 'gone')
    assert f'at step {run.step:,} (killed?)' in run.history.message
    run.leave(); run.wait(20)
    assert run.done

def test_long_run_stays_small():
    h, high = History(), 0
    for e in pretend_events(100_000, .001):
        if e['event'] == 'step' and e['step'] == 77_777: e['loss'] = 50.
        h.add(e)
        if e['event'] == 'step' and e['step'] % 5000 == 0: high = max(high, sum(len(c.rows) for c in h.curves.values()))
    assert high <= 300*len(h.curves) and max(r[3] for r in h.curves['loss'].rows) == 50
    assert sum(r[4] for r in h.curves['loss'].rows) == 100_000 and len(h._repr_html_()) < 120_000

@pytest.mark.parametrize('size', [1, 7, 64, 1000])
def test_read_in_pieces(tmp_path, size):
    "Whatever pieces the file grows by, the same history comes of it."
    data = ''.join(json.dumps(e) + '\n' for e in pretend_events(12)).encode()
    file = tmp_path/'metrics.jsonl'
    file.write_bytes(b'')
    reader = RunFile(file)
    with open(file, 'ab', buffering=0) as f:
        for i in range(0, len(data), size): f.write(data[i:i+size]); reader.read()
    whole = History()
    for e in pretend_events(12): whole.add(e)
    assert reader.history.curves['loss'].rows == whole.curves['loss'].rows and not reader.history.problems and reader.history.status == 'finished'

def test_hostile_events():
    h = History()
    h.add(dict(event='warning', step=1, kind='x', message='<script>alert(1)</script>'))
    h.add(dict(event='control', step=1, command='weights', weights={'<b>': 2}))
    assert '<script>' not in notes_html(h) and '<b>:' not in notes_html(h)
    assert '<script>' not in Overlay(h, names=['<script>'])._repr_html_()

ODD = None, 'x', -1, 10**400, float('nan'), float('inf'), [], {}, [1], {'a': None}, {'a': 'b'}, '\ud83d', '<script>'

def test_odd_events_in_a_file(tmp_path):
    "Whatever stands in the place of a number or a text, all other events are drawn and compared."
    r, sound = random.Random(0), [*pretend_events(30), dict(event='control', step=7, command='weights', weights={'a': 2}), dict(event='rollback', step=4, from_step=9, factor=.5)]
    (tmp_path/'config.json').write_text('{"training": {}, "model": {}}')
    for _ in range(100):
        events = [dict(e) for e in sound]
        e = r.choice(events)
        field = r.choice([*e])
        e.pop(field)
        if r.random() < .8: e[field] = r.choice(ODD)
        (tmp_path/'metrics.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in events))
        h = read_history(tmp_path)
        assert h.step and len(h.problems) < 2 and '<script>' not in h._repr_html_()
        Overlay(h)._repr_html_(), compare(tmp_path)._repr_html_(), [RunLog(tmp_path).curve(x) for x in ('step', 'tokens', 'seconds')]
