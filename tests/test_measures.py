"The quick measurement while training and the exact one of the report mean the same by loss, accuracy and bits per byte."
import pytest
import torch
from codette_nb.data.packing import TextDataset
from codette_nb.data.records import Record
from codette_nb.data.tokenizer import ByteTokenizer
from codette_nb.evaluate.metrics import evaluate
from codette_nb.model.transformer import create_codette_model
from codette_nb.train.trainer import measure

CHAT = Record(messages=({'role': 'user', 'content': 'How long is the lever?'}, {'role': 'assistant', 'content': '<perspective>Newton\nIt is 2 m.'}))

@pytest.mark.parametrize('record', [CHAT, Record(text='A lever, né 雪 and <|im_end|> as text.')], ids=['chat', 'document'])
def test_one_meaning(record):
    torch.manual_seed(0)
    tok = ByteTokenizer()
    model = create_codette_model('nano', vocab_size=tok.vocab_size, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=128, context_length=256)
    quick, exact = measure(model, TextDataset([record], tok, 256)), evaluate(model, tok, [record], quiet=True)
    assert quick['tokens'] == exact.tokens
    for name in ('loss', 'accuracy', 'bits_per_byte'): assert quick[name] == pytest.approx(getattr(exact, name), rel=1e-4), name
