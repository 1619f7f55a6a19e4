"Folders that `transformers` filled and this package did not: taken if llama.cpp can be made to read the same tokens and compute the same logits, refused by name if not."
import json, shutil
import pytest, torch
from itertools import product
from codette_nb.core import CodetteError, read_json, write_json
from codette_nb.data.bytepair import QWEN2, read_bytepair
from codette_nb.data.tokenizer import SPLIT, Piece, PieceType
from codette_nb.quantize.gguf import GGUFConverter, convert_checkpoint_to_gguf, open_source
from codette_nb.quantize.reader import from_gguf, read_gguf
from codette_nb.quantize.verify import hostile_strings, llama_library, sample_texts, verify_gguf
from codette_nb.train.checkpoint import load_checkpoint, save_checkpoint

transformers = pytest.importorskip('transformers')
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers as cut, processors, trainers

LINES = cut.ByteLevel(add_prefix_space=False)
SPLITS = {'gpt-2': [LINES], 'smollm': [cut.Digits(individual_digits=True), LINES], **{name: [cut.Split(Regex(rule), 'isolated'), cut.ByteLevel(add_prefix_space=False, use_regex=False)]
          for name, rule in {'qwen2': QWEN2, 'dbrx': SPLIT, 'llama-bpe': SPLIT}.items()}}
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

def tokenizer(pre, bos=False):
    "Trained in a moment, as the makers of models do it."
    tok = Tokenizer(models.BPE(ignore_merges=pre == 'llama-bpe'))
    tok.pre_tokenizer, tok.decoder = cut.Sequence(SPLITS[pre]) if len(SPLITS[pre]) > 1 else SPLITS[pre][0], decoders.ByteLevel()
    special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|begin|>']
    tok.train_from_iterator(sample_texts(), trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=cut.ByteLevel.alphabet(), show_progress=False))
    tok.add_tokens([AddedToken('<tool_call>', normalized=False), AddedToken('  \t', normalized=False)])
    if bos: tok.post_processor = processors.TemplateProcessing(single='<|begin|> $A', special_tokens=[('<|begin|>', 3)])
    return tok

def folder(path, pre='gpt-2', layout='llama', kv=2, tied=False, bos=False, shards=False, template=CHATML):
    "A model of random weights, saved by `transformers`."
    tok = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(pre, bos), bos_token='<|begin|>' if bos else None, eos_token='<|im_end|>', pad_token='<|endoftext|>', chat_template=template)
    model = weights(path, layout, kv, tied, shards)
    tok.save_pretrained(path)
    return path, model, tok

def weights(path, layout='llama', kv=2, tied=False, shards=False):
    "The model of such a folder, without a tokenizer."
    torch.manual_seed(0)
    kind, config = dict(llama=(transformers.LlamaForCausalLM, transformers.LlamaConfig), starcoder2=(transformers.Starcoder2ForCausalLM, transformers.Starcoder2Config))[layout]
    model = kind(config(vocab_size=928, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv, max_position_embeddings=128,
                        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=2, pad_token_id=0)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn_like(p)*.1)
    model.save_pretrained(path, **(dict(max_shard_size='200KB') if shards else {}))
    return model

LLAMA2 = dict(model_type='bpe', vocab_size=900, byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True)
INST = ("{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}")

def pieces_folder(path, config={}, model={}, **options):
    "The same with a tokenizer.model that SentencePiece trains with these options; and the library's own reading of it."
    import io, sentencepiece as spm
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(sentence_iterator=iter(sample_texts()), model_writer=out, minloglevel=2, num_threads=1, **LLAMA2 | options)
    theirs = weights(path, **model)
    (path/'tokenizer.model').write_bytes(out.getvalue())
    write_json(path/'tokenizer_config.json', dict(tokenizer_class='LlamaTokenizer') | config)
    return path, theirs, spm.SentencePieceProcessor(model_proto=out.getvalue())

@pytest.mark.parametrize('pre, layout, kv, tied, bos, shards', [('gpt-2', 'llama', 2, False, True, True), ('smollm', 'starcoder2', 1, True, False, False),
                                                               ('qwen2', 'llama', 4, True, False, False), ('dbrx', 'llama', 1, False, True, False), ('llama-bpe', 'starcoder2', 4, False, True, True)])
def test_whole(pre, layout, kv, tied, bos, shards, tmp_path):
    "Tokens in 3,000 hostile strings, logits, and the way back."
    path, theirs, hf = folder(tmp_path/'hf', pre, layout, kv, tied, bos, shards)
    assert (len(list(path.glob('*.safetensors'))) > 1) == shards
    file = convert_checkpoint_to_gguf(path, None, tmp_path/'m.gguf', 'fp32')
    about, ids = read_gguf(file).metadata, torch.arange(100)[None]
    assert about['tokenizer.ggml.pre'] == pre and about['tokenizer.ggml.add_bos_token'] == bos and about['tokenizer.ggml.eos_token_id'] == 2
    assert about['tokenizer.ggml.bos_token_id'] == (3 if bos else 2) and about['tokenizer.chat_template'] == CHATML
    model, tok = open_source(path).load()
    back, read = from_gguf(file)
    with torch.no_grad():
        assert torch.equal(back(ids), model(ids))
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4*model(ids).abs().max()
    strings = hostile_strings(3000, texts=sample_texts())
    assert tok.encode_batch(strings, True) == read.encode_batch(strings, True) == [hf.encode(s, add_special_tokens=False) for s in strings]
    assert (read.pieces(), read.merges, read.pre, read.template) == (tok.pieces(), tok.merges, tok.pre, tok.template)
    save_checkpoint(tmp_path/'again', back, read)                    # to train on
    assert load_checkpoint(tmp_path/'again')[1].encode_batch(strings[:300]) == tok.encode_batch(strings[:300])
    if llama_library() is None: pytest.skip('needs xllamacpp')
    r = verify_gguf(file, path, strings=3000, tokens=512)
    assert r.passed and r.strings == 3000 and r.logits.kl <= 1e-4 and not r.token_differences, r

ADDED = {'900': dict(content='<|im_start|>', special=True), '901': dict(content='<|im_end|>', special=True), '903': dict(content='<tool_call>', special=False)}

@pytest.mark.parametrize('config, model, options', [
    (dict(chat_template=INST), dict(kv=1), {}),                                                                                           # as Llama 2 has it
    (dict(add_bos_token=False, add_eos_token=True), dict(layout='starcoder2', tied=True), dict(add_dummy_prefix=False, split_digits=False, user_defined_symbols=['<tool_call>', '<tool>', '\t\t'], control_symbols=['<|im_end|>', '<pad>'])),
    (dict(added_tokens_decoder=ADDED, eos_token='<|im_end|>', chat_template=CHATML), dict(shards=True), dict(bos_id=3, eos_id=5, unk_id=1, pad_id=0, split_by_whitespace=False, byte_fallback=True))])
def test_sentencepiece(config, model, options, tmp_path):
    "A tokenizer.model: tokens in 3,000 hostile strings as SentencePiece cuts them and as llama.cpp does, logits, and the way back."
    path, theirs, sp = pieces_folder(tmp_path/'hf', config, model, **options)
    file = convert_checkpoint_to_gguf(path, None, tmp_path/'m.gguf', 'fp32')
    about, (_, tok) = read_gguf(file).metadata, open_source(path).load()
    assert about['tokenizer.ggml.model'] == 'llama' and about['tokenizer.ggml.add_space_prefix'] == options.get('add_dummy_prefix', True) and about['tokenizer.ggml.remove_extra_whitespaces'] is False
    assert about['tokenizer.ggml.add_bos_token'] == config.get('add_bos_token', True) and about['tokenizer.ggml.add_eos_token'] == config.get('add_eos_token', False)
    eos = 901 if 'eos_token' in config else sp.eos_id()
    assert (about['tokenizer.ggml.bos_token_id'], about['tokenizer.ggml.eos_token_id'], about['tokenizer.ggml.unknown_token_id']) == (sp.bos_id(), eos, sp.unk_id())
    strings = hostile_strings(3000, texts=sample_texts())
    alone = [s for s in strings if '<tool_call>' not in s] if 'added_tokens_decoder' in config else strings   # what was added later SentencePiece does not know
    assert len(alone) > 2000 and tok.encode_batch(alone) == sp.encode(alone)
    back, read = from_gguf(file)
    assert read.encode_batch(strings, True) == tok.encode_batch(strings, True) and read.encode_batch(strings) == tok.encode_batch(strings)
    assert (read.pieces(), read.space_prefix, read.add_bos, read.template) == (tok.pieces(), tok.space_prefix, tok.add_bos, tok.template)
    save_checkpoint(tmp_path/'again', back, read)                    # to train on
    assert load_checkpoint(tmp_path/'again')[1].encode_batch(strings[:300], True) == tok.encode_batch(strings[:300], True)
    if llama_library() is None: pytest.skip('needs xllamacpp')
    r = verify_gguf(file, path, strings=3000, tokens=512)
    assert r.passed and r.strings == 3000 and r.logits.kl <= 1e-4 and not r.token_differences, r

@pytest.mark.parametrize('says, options', [
    ('is of the type unigram (model_type)', dict(model_type='unigram', vocab_size=500)), ("by the rules 'nmt_nfkc' (normalization_rule_name)", dict(normalization_rule_name='nmt_nfkc')),
    ('drops white space (remove_extra_whitespaces)', dict(remove_extra_whitespaces=True)), ('(byte_fallback)', dict(byte_fallback=False)),
    ('has pieces that are found first (user_defined_symbols)', dict(user_defined_symbols=['<tool>']))])
def test_sentencepiece_refused(says, options, tmp_path):
    path, *_ = pieces_folder(tmp_path/'hf', **options)
    with pytest.raises(CodetteError) as e: GGUFConverter(path)
    assert says in str(e.value) and '\n' not in str(e.value)

def test_one_bos(tmp_path):
    "A template that writes <bos> and a tokenizer that does so too make one, not two."
    path, *_ = folder(tmp_path/'hf', bos=True, template='{{ bos_token }}' + CHATML)
    tok = read_bytepair(path)
    from codette_nb.data.records import render_chat
    ids = [tok.bos_id]*tok.add_bos + tok.encode(render_chat([dict(role='user', content='hi')], template=tok.template, bos_token='<|begin|>'), special=True)
    assert ids.count(tok.bos_id) == 1
    path, *_ = folder(tmp_path/'other', template='<|begin|>' + CHATML)
    assert not read_bytepair(path).add_bos and read_bytepair(path).template == '<|begin|>' + CHATML

@pytest.mark.parametrize('bos, template', [(True, '{{ bos_token }}' + CHATML), (True, CHATML), (False, CHATML), (False, '<|begin|>' + CHATML)])
def test_one_bos_in_the_server(bos, template, tmp_path):
    "What llama-server makes of a chat has exactly the tokens that `transformers` makes of it, and the <bos> of the tokenizer where it writes one."
    if llama_library() is None: pytest.skip('needs xllamacpp')
    import urllib.request
    from codette_nb.quantize.runtime import LlamaCpp
    path, _, hf = folder(tmp_path/'hf', bos=bos, template=template)
    file = convert_checkpoint_to_gguf(path, None, tmp_path/'m.gguf', 'q8')
    chat = [dict(role='system', content='Be brief.'), dict(role='user', content='hi')]
    want = hf.apply_chat_template(chat, add_generation_prompt=True)['input_ids']
    want = want if want[0] == 3 or not bos else [3, *want]
    with LlamaCpp(file, threads=1) as m:
        def ask(where, **request):
            data = json.dumps(request).encode()
            with urllib.request.urlopen(urllib.request.Request(f'{m.url}{where}', data, {'Content-Type': 'application/json'}), timeout=60) as r: return json.load(r)
        used = ask('/v1/chat/completions', messages=chat, max_tokens=1)['usage']['prompt_tokens']
        prompt = ask('/apply-template', messages=chat)['prompt']
        ids = ask('/tokenize', content=prompt, add_special=True)['tokens']
    assert used == len(want) and ids == want and want.count(3) == (bos or template != CHATML)

def test_bos_before_every_question(tmp_path):
    "Llama 2's template writes <s> before each question: llama-server has all of them, and the first one once."
    if llama_library() is None: pytest.skip('needs xllamacpp')
    import urllib.request
    from codette_nb.quantize.runtime import LlamaCpp
    path, _, sp = pieces_folder(tmp_path/'hf', dict(chat_template=INST))
    file, tok = convert_checkpoint_to_gguf(path, None, tmp_path/'m.gguf', 'q8'), open_source(path).tokenizer
    chat = [dict(role=r, content=c) for r, c in (('user', 'hi'), ('assistant', 'ho'), ('user', 'hu'))]
    with LlamaCpp(file, threads=1) as m:
        data = json.dumps(dict(messages=chat, max_tokens=1)).encode()
        with urllib.request.urlopen(urllib.request.Request(f'{m.url}/v1/chat/completions', data, {'Content-Type': 'application/json'}), timeout=60) as r: used = json.load(r)['usage']['prompt_tokens']
    ids = [i for s in ('<s>', '[INST] hi [/INST] ho ', '</s>', '<s>', '[INST] hu [/INST]') for i in ([sp.piece_to_id(s)] if s in ('<s>', '</s>') else sp.encode(s))]
    assert ids == tok.encode('<s>[INST] hi [/INST] ho </s><s>[INST] hu [/INST]', special=True) and used == len(ids) and ids.count(tok.bos_id) == 2

@pytest.fixture(scope='module')
def plain(tmp_path_factory): return folder(tmp_path_factory.mktemp('hf')/'plain')[0]

def changed(plain, to, **files):
    shutil.copytree(plain, to)
    for name, change in files.items():
        p = to/f'{name}.json'
        write_json(p, change(read_json(p)))
    return to

@pytest.mark.parametrize('says, files', [
    ("this is a 'gpt2' model: only the layouts", dict(config=lambda d: d | dict(model_type='gpt2'))),
    ("stretches its positions ('yarn')", dict(config=lambda d: d | dict(rope_parameters=dict(rope_type='yarn', rope_theta=1e4)))),
    ('changes the text (NFC)', dict(tokenizer=lambda d: d | dict(normalizer=dict(type='NFC')))),
    ('puts a space before each text', dict(tokenizer=lambda d: d | dict(pre_tokenizer=dict(type='ByteLevel', add_prefix_space=True)))),
    ('only BPE is read', dict(tokenizer=lambda d: d | dict(model=dict(type='Unigram', vocab=[])))),
    ("has no piece for byte 65, 'A'", dict(tokenizer=lambda d: d | dict(model=d['model'] | dict(merges=[], vocab={('ĀĀ' if k == 'A' else k): i for k, i in d['model']['vocab'].items()})))),
    ('the chat template does not render', dict(tokenizer_config=lambda d: d | dict(chat_template='{{ messages[0].nothing.of_it }}'))),
    ('is not a tokenizer', dict(tokenizer=lambda d: d | dict(model=dict(type='BPE')))),
    ('ids are whole numbers from 0 on', dict(tokenizer=lambda d: d | dict(added_tokens=[*d['added_tokens'], dict(id=-1, content='x')]))),
    ("the piece '7' is no text", dict(tokenizer=lambda d: d | dict(added_tokens=[*d['added_tokens'], dict(id=903, content=7)]))),
    ('where names with values are expected', dict(tokenizer_config=lambda d: [1])), ('must be the text of a piece', dict(tokenizer_config=lambda d: d | dict(eos_token=dict(x=7)))),
    ('config.json claims 1,000,000,000 layers', dict(config=lambda d: d | dict(num_hidden_layers=10**9))), ('claims a context of 1,000,000,000,000 tokens', dict(config=lambda d: d | dict(max_position_embeddings=10**12))),
    ('pieces but the model has 900 rows', dict(config=lambda d: d | dict(vocab_size=900)))])
def test_what_is_refused(says, files, plain, tmp_path):
    path = changed(plain, tmp_path/'changed', **files)
    (path/'chat_template.jinja').unlink(missing_ok=True) if 'tokenizer_config' in files else None
    if says.startswith('pieces'):                             # rows fewer than pieces: the weights say the same
        from safetensors.torch import load_file, save_file
        t = load_file(path/'model.safetensors')
        save_file({k: v[:900].contiguous() if v.shape[0] == 928 else v for k, v in t.items()}, path/'model.safetensors')
    with pytest.raises(CodetteError) as e: GGUFConverter(path)
    assert says in str(e.value) and '\n' not in str(e.value)

def test_text_that_is_none(plain, tmp_path):
    "Half a surrogate pair in a piece and in a template, and a template in another encoding."
    path, piece, template = (changed(plain, tmp_path/name) for name in ('jinja', 'piece', 'template'))
    (path/'chat_template.jinja').write_bytes(b'caf\xe9')
    d = read_json(piece/'tokenizer.json')
    (piece/'tokenizer.json').write_text(json.dumps(d | dict(added_tokens=[*d['added_tokens'], dict(id=903, content='a\ud800')])))
    (template/'chat_template.jinja').unlink(missing_ok=True)
    (template/'tokenizer_config.json').write_text(json.dumps(read_json(template/'tokenizer_config.json') | dict(chat_template=CHATML + '\ud800')))
    for folder, says in ((path, 'is not UTF-8 text'), (piece, 'is no text'), (template, 'does not render')):
        with pytest.raises(CodetteError, match=says): GGUFConverter(folder)

def test_damaged_folders(plain, tmp_path):
    def says(path):
        with pytest.raises(CodetteError) as e: GGUFConverter(path)
        return str(e.value)
    path = changed(plain, tmp_path/'none'); (path/'model.safetensors').rename(path/'pytorch_model.bin')
    assert 'has no model.safetensors' in says(path)
    path = changed(plain, tmp_path/'index'); (path/'model.safetensors').unlink()
    write_json(path/'model.safetensors.index.json', dict(weight_map={'a': '../plain/model.safetensors'}))
    assert 'is not an index of weights' in says(path)
    write_json(path/'model.safetensors.index.json', dict(weight_map={'a': 'missing.safetensors'}))
    assert 'missing.safetensors is damaged' in says(path)
    path = changed(plain, tmp_path/'no-tokenizer'); (path/'tokenizer.json').unlink()
    assert 'has no tokenizer.json and no tokenizer.model' in says(path)
    path = changed(plain, tmp_path/'half'); write_json(path/'tokenizer_config.json', dict(codette_kind='bytes'))
    assert 'was not written to the end' in says(path)         # one of ours that broke off

def test_the_command(tmp_path, capsys):
    "With a Modelfile where the template is a known one; with a sentence where it is not."
    from tiny import codette
    folder(tmp_path/'known', bos=True)
    code, out, err = codette('export', tmp_path/'known', '--quantization', 'q4_0', '--out', tmp_path/'known.gguf')
    assert code == 0 and 'llama.cpp: passed' in out and '<|im_start|>{{ .Role }}' in (tmp_path/'known.Modelfile').read_text()
    folder(tmp_path/'other', template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    code, out, err = codette('export', tmp_path/'other', '--quantization', 'q8', '--out', tmp_path/'other.gguf')
    assert code == 0 and (tmp_path/'other.gguf').is_file() and not (tmp_path/'other.Modelfile').exists()
    assert 'no Modelfile for' in err and 'write the TEMPLATE of a Modelfile by hand, or run the file with codette serve' in err

def test_better_files(tmp_path):
    "A mix within a size and error feedback take text that is given; without it they say so."
    from tiny import codette
    path, *_ = pieces_folder(tmp_path/'hf', dict(chat_template=CHATML, added_tokens_decoder=ADDED, eos_token='<|im_end|>'))
    (tmp_path/'text.txt').write_text('\n\n'.join(sample_texts()), 'utf-8')
    for how in (('--bits', 6), ('--feedback', '--quantization', 'q4_0'), ('--importance', 'auto', '--quantization', 'q4_0')):
        code, _, err = codette('export', path, *how, '--out', tmp_path/'no.gguf')
        assert code == 1 and 'is not known: give text to calibrate with (--calibrate FILE)' in err and not (tmp_path/'no.gguf').exists()
        code, out, err = codette('export', path, *how, '--calibrate', tmp_path/'text.txt', '--out', tmp_path/f'{how[0]}.gguf', '--json')
        assert code == 0 and json.loads(out)['parity']['status'] in ('passed', 'not checked'), err
        if how[0] == '--bits': assert 5 < json.loads(out)['bits_per_weight'] <= 6 and json.loads(out)['mix']['file_bytes'] == json.loads(out)['bytes']

def test_finish(tmp_path):
    "With text, a model of others is trained for its file, and the run is one of this package; the command, which has none, says what to do."
    from tiny import codette
    from codette_nb.quantize.finish import finishing
    path, *_ = pieces_folder(tmp_path/'hf', dict(chat_template=INST))
    code, _, err = codette('finish', path, '--out', tmp_path/'no')
    assert code == 1 and 'was trained on is not known, and a finish trains on it: bring text like it' in err and not (tmp_path/'no').exists()
    texts = sample_texts()
    options = dict(steps=4, device='cpu', dtype='float32', threads=1, compile='none', batch_size=2, eval_windows=2)
    trainer = finishing(path, texts[:-1]*4, texts[-1:]*2, tmp_path/'run', **options)
    trainer.fit(quiet=True)
    before, after = (open_source(p) for p in (path, tmp_path/'run'))
    assert after.own and after.tokenizer.pieces() == before.tokenizer.pieces() and read_json(tmp_path/'run/config.json')['finish']['source']['sha256'] == before.sha256
    again = finishing(path, texts[:-1]*4, texts[-1:]*2, tmp_path/'run', resume=True, **options)
    assert again.step == 4
    file = convert_checkpoint_to_gguf(tmp_path/'run', None, tmp_path/'m.gguf', 'q4_0')
    if llama_library() is None: pytest.skip('needs xllamacpp')
    assert verify_gguf(file, tmp_path/'run', strings=300, tokens=256).passed
