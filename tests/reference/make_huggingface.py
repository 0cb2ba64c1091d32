"""Writes tests/data/huggingface: a tiny BERT and a tiny RoBERTa with random weights, and their outputs in PyTorch.

    python tests/reference/make_huggingface.py

It needs torch, transformers and tokenizers. `expected.npz` of each folder has sentences (`tokens` and `length`), the
vectors of their tokens after the last layer (`vectors`) and `versions`.
"""

import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

FOLDER = Path(__file__).parents[1] / 'data' / 'huggingface'
WORDS = ('a', 'cat', 'dog', 'sleeps', 'runs', 'and', 'the', 'two', 'old', 'red', 'sun', 'moon', '##s', '##ing', '.')
SIZES = {
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'intermediate_size': 24,
    'initializer_range': 0.3,  # so that every layer changes the result
}


def bert_tokenizer() -> tokenizers.Tokenizer:
    names = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    vocabulary = {word: index for index, word in enumerate([*names, *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]'))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    return tokenizer


def roberta_tokenizer() -> tokenizers.Tokenizer:
    names = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate([*names, *letters])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.RobertaProcessing(('</s>', 2), ('<s>', 0), add_prefix_space=False)
    return tokenizer


def write(name: str, model: transformers.PreTrainedModel, tokenizer: tokenizers.Tokenizer, pad: int) -> None:
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for vector in (parameter for parameter in model.parameters() if parameter.ndim == 1):
        torch.nn.init.uniform_(vector, 0.5, 1.5)  # biases are 0 and scales 1 by default
    model.eval().save_pretrained(folder)
    tokenizer.save(str(folder / 'tokenizer.json'))
    rng = np.random.default_rng(0)
    length = np.array([7, 2, 12, 1], np.int32)
    tokens = rng.integers(5, model.config.vocab_size, size=(4, 12), dtype=np.int32)
    inside = np.arange(12)[None] < length[:, None]
    tokens[~inside] = pad
    with torch.no_grad():
        output = model.base_model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(inside).long())
    versions = f'torch {torch.__version__}, transformers {transformers.__version__}'
    vectors = output.last_hidden_state.numpy()
    np.savez(folder / 'expected.npz', tokens=tokens, length=length, vectors=vectors, versions=versions)


def main() -> None:
    torch.manual_seed(0)
    bert = bert_tokenizer()
    config = transformers.BertConfig(vocab_size=bert.get_vocab_size(), max_position_embeddings=16, **SIZES)
    write('bert', transformers.BertModel(config), bert, 0)
    # The head makes the names begin with 'roberta.'.
    roberta = roberta_tokenizer()
    config = transformers.RobertaConfig(
        vocab_size=roberta.get_vocab_size(), max_position_embeddings=18, type_vocab_size=1, **SIZES
    )
    write('roberta', transformers.RobertaForMaskedLM(config), roberta, 1)
    # What sentence-transformers adds.
    modules = [('Transformer', ''), ('Pooling', '1_Pooling'), ('Normalize', '2_Normalize')]
    described = [
        {'idx': index, 'name': str(index), 'path': path, 'type': f'sentence_transformers.models.{kind}'}
        for index, (kind, path) in enumerate(modules)
    ]
    (FOLDER / 'bert' / 'modules.json').write_text(json.dumps(described, indent=2))
    pooling = {'word_embedding_dimension': 16, 'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False}
    (FOLDER / 'bert' / '1_Pooling').mkdir(exist_ok=True)
    (FOLDER / 'bert' / '1_Pooling' / 'config.json').write_text(json.dumps(pooling, indent=2))


if __name__ == '__main__':
    main()
