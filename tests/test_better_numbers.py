"`codette export --budget` and `codette finish`: a file within a size, a model trained for its file; what is wrong is one sentence."
import json
import pytest
from tiny import BOOK, codette, shrink, write_book
from codette_nb.quantize.reader import read_gguf

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A trained run of a tiny model."
    folder = tmp_path_factory.mktemp('better')
    with pytest.MonkeyPatch.context() as m:
        shrink(m.setattr)
        code, _, err = codette('train', *BOOK, '--data', write_book(folder/'book.txt'), '--steps', 16, '--out', folder/'run', '--no-verify', '--json')
        assert code == 0, err
        yield folder/'run'

def test_budget(run, tmp_path):
    "The file keeps within what was asked for, and a larger one is expected to cost less."
    kl = {}
    for size in (110_000, 130_000):
        code, out, err = codette('export', run, '--budget', size, '--out', tmp_path/f'{size}.gguf', '--json')
        assert code == 0, err
        figures = json.loads(out)
        assert (tmp_path/f'{size}.gguf').stat().st_size == figures['bytes'] == figures['mix']['file_bytes'] <= size
        assert figures['parity']['status'] in ('passed', 'not checked')
        if figures['parity']['logits']: assert figures['mix']['instead'] and figures['mix']['gain']['ratio'] > 0 and figures['mix']['gain']['kl'] == figures['parity']['logits']['kl']
        kl[size] = figures['mix']['kl']
    assert kl[130_000] < kl[110_000]
    code, out, err = codette('export', run, '--bits', 5, '--out', tmp_path/'bits.gguf', '--json')
    assert code == 0 and json.loads(out)['bits_per_weight'] <= 5, err
    assert not list(tmp_path.glob('*.unverified.gguf'))

@pytest.mark.parametrize('given, says', [(['--budget', '20KB'], 'is too little for this model: the smallest file has'), (['--budget', 'small'], "'small' is no size"),
                                         (['--bits', '5', '--budget', '1MB'], 'give one of them'), (['--bits', '5', '--quantization', 'q8'], 'give one of them'), (['--bits', '-3'], 'above 0')])
def test_no_such_budget(run, tmp_path, given, says):
    code, _, err = codette('export', run, '--out', tmp_path/'no.gguf', *given)
    assert code == 1 and says in err and 'Traceback' not in err and not list(tmp_path.iterdir())

def test_finish(run, tmp_path):
    "A finish is a run of its own, with its file; the run that it began from stays as it was. Where it is done, resuming measures again."
    out, before = tmp_path/'finished', {p.name: p.stat().st_mtime_ns for p in run.rglob('*')}
    code, said, err = codette('finish', run, '--out', out, '--steps', 6, '--json')
    assert code == 0, err
    worth = json.loads(said)
    assert worth['steps'] == 6 and worth['ratio'] > 0 and read_gguf(out/'model.gguf').metadata['general.file_type'] == 2
    assert {p.name: p.stat().st_mtime_ns for p in run.rglob('*')} == before
    code, said, err = codette('finish', run, '--out', out, '--resume', '--json')
    assert code == 0 and json.loads(said)['after']['kl'] == worth['after']['kl'], err
    for args, says in ((['finish', run, '--out', out], 'already holds a run'), (['train', '--resume', '--out', out], 'go on with it by codette finish'),
                       (['finish', run, '--out', tmp_path/'x', '--quantization', 'q9'], "unknown quantization 'q9'"), (['finish', run, '--resume'], 'name its folder with --out'),
                       (['finish', run, '--out', run, '--force'], 'is the run that is to be finished')):
        code, _, err = codette(*args)
        assert code == 1 and says in err and 'Traceback' not in err, (args, err)
