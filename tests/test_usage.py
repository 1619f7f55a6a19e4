"The usage examples that this package was asked for, as they were written, on a small model and few steps."
import functools
from dataclasses import replace
import pytest
import torch
import tiny
from codette_nb.quantize.reader import read_gguf

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

QUICK = '''
from codette_nb.all import main
main()
'''

CUSTOM = '''
from codette_nb.all import *
dataset = CodetteTrainingDataset()
data = dataset.generate_dataset(10000)
train, eval = data[:9000], data[9000:]
tokenizer = SimpleTokenizer()
model = create_codette_model('medium')          # 'small' | 'medium' | 'large'
metrics = train_codette_model(model, tokenizer, train, eval, device='cuda')
'''

EXPORT = '''
gguf_path = convert_checkpoint_to_gguf('checkpoints/model_best', tokenizer, 'models/codette.gguf', quantization='fp16')
'''

@pytest.fixture(scope='module')
def custom(tmp_path_factory):
    "What the example of custom training leaves: its names, and the folder it ran in."
    import codette_nb.all # every module takes its names before any is replaced
    import codette_nb.model.config as config, codette_nb.train.trainer as trainer
    names, folder = {}, tmp_path_factory.mktemp('custom')
    small = dict(context_length=32, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=128)
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.setattr(config, 'PRESETS', config.PRESETS | {k: replace(config.PRESETS[k], **small) for k in ('small', 'medium', 'large')})
        m.setattr(trainer, 'TrainingConfig', functools.partial(trainer.TrainingConfig, max_steps=6, batch_size=4, eval_windows=4))
        exec(CUSTOM.replace("device='cuda'", f'device={DEVICE!r}') + EXPORT, names)
    return names, folder

def test_custom_training(custom):
    names, folder = custom
    assert len(names['train']) == 9000 and len(names['eval']) == 1000
    assert names['model'].config.vocab_size == names['tokenizer'].vocab_size == 32768
    assert names['metrics']['step'] == 6 and names['metrics']['reason'] == 'finished'
    assert 0 < names['metrics']['loss'] < 11 and 0 <= names['metrics']['accuracy'] <= 1
    assert (folder/'checkpoints/model_best/model.safetensors').is_file() and (folder/'checkpoints/step-6').is_dir()

def test_export(custom):
    names, folder = custom
    assert (folder/names['gguf_path']) == folder/'models/codette.gguf'
    about = read_gguf(folder/'models/codette.gguf').metadata
    assert about['general.architecture'] == 'starcoder2' and about['tokenizer.ggml.model'] == 'gpt2'

def test_load(custom):
    from codette_nb.all import load
    names, folder = custom
    for path in (folder, str(folder/'checkpoints/model_best')):
        model = load(path)
        said = model.generate('The atomic number of', max_tokens=20, seed=1)
        assert isinstance(said, str) and said == model.generate('The atomic number of', max_tokens=20, seed=1)
        assert isinstance(model.chat('How many layers do you have?', max_tokens=4, seed=1), str)

def test_load_of_a_run(tiny_run):
    from codette_nb.all import load
    assert load(tiny_run).generate('The teacher', max_tokens=8, seed=0)

@pytest.fixture
def quick(monkeypatch, tmp_path):
    "`quick_train` and `main` on a shrunken `nano`, 6 steps, 200 records and a tenth of the prose."
    import codette_nb.pipeline as pipeline
    tiny.shrink(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    make_plan, prose = pipeline.make_plan, pipeline.python_docs()[::10]
    # six steps are few for any size, so the size is given too
    monkeypatch.setattr(pipeline, 'make_plan', lambda minutes, size, device, **kw: make_plan(minutes, 'nano', device, **kw, max_steps=6, eval_windows=4, vocab_size=512))
    monkeypatch.setattr(pipeline, 'python_docs', lambda: prose)
    monkeypatch.setattr(pipeline.Recipe, '__post_init__', small_recipe(pipeline.Recipe.__post_init__))
    return tmp_path

def small_recipe(checks):
    def made(self):
        assert self.mixing.samples in (1000, 200)       # the fewest, for six steps; or a copy of one that was made small
        object.__setattr__(self, 'mixing', replace(self.mixing, samples=200))
        checks(self)
    return made

def test_main(quick, capsys):
    exec(QUICK, {})
    run = quick/'runs/quick'
    assert {'model.gguf', 'Modelfile', 'report.json', 'README.md'} <= {p.name for p in run.iterdir()}
    chat, ollama = capsys.readouterr().out.splitlines()[-2:]
    assert chat == 'codette chat runs/quick' and ollama == 'ollama create codette -f runs/quick/Modelfile && ollama run codette'

def test_names():
    "`from codette_nb.all import *` offers all of it."
    import codette_nb.all as all
    asked = ('TransformerConfig RoPEPositionalEmbedding MultiHeadAttention FeedForwardNetwork TransformerLayer CustomTransformer '
             'CodetteTrainingDataset SimpleTokenizer TextDataset TrainingConfig CodetteTrainer GGUFConverter TrainingPanel '
             'create_codette_model train_codette_model convert_checkpoint_to_gguf quick_train main load').split()
    assert [n for n in asked if n not in all.__all__ or not hasattr(all, n)] == []
