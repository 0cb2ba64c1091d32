"""The peer of `text_peer.py`: MoCo on sentences with BertModel of transformers and AdamW of PyTorch, one step per line.

It needs torch and transformers, and nothing of this project. For each line on stdin it takes one step and prints the
CPU seconds of this process that it took.
"""

import argparse
import copy
import time

import torch
import transformers
from torch.nn import functional


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--length', type=int, default=32)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.BertConfig(  # MiniLM-L6's sizes
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    encoder = transformers.BertModel(config, add_pooling_layer=False).train()
    momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
    online, momentum = list(encoder.parameters()), list(momentum_encoder.parameters())
    optimizer = torch.optim.AdamW(online, lr=3e-5, weight_decay=0.01)
    queue = functional.normalize(torch.randn(2048, 384), dim=1)
    tokens = torch.randint(1000, 30_000, (flags.batch, flags.length))
    length = torch.randint(8, flags.length + 1, (flags.batch,))
    mask = (torch.arange(flags.length)[None] < length[:, None]).long()

    def embed(model: transformers.BertModel) -> torch.Tensor:
        vectors = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].float()
        return functional.normalize((vectors * weights).sum(1) / weights.sum(1), dim=1)

    def step() -> None:
        nonlocal queue
        with torch.no_grad():
            torch._foreach_lerp_(momentum, online, 0.01)
            keys = embed(momentum_encoder)
        queries = embed(encoder)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / 0.05
        loss = functional.cross_entropy(logits, torch.zeros(flags.batch, dtype=torch.long))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue[flags.batch :], keys])

    while input():
        began = time.process_time()
        step()
        print(time.process_time() - began, flush=True)


if __name__ == '__main__':
    main()
