"""The plain model that the benchmarks of training compare with: GPT-2's layout, as a peer would write it; nothing of this package in it."""
import torch
import torch.nn.functional as F
from torch import nn

class Block(nn.Module):
    "Attention and feed-forward, each behind a LayerNorm."
    def __init__(self, width, heads, bias):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3*width, bias=bias), nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4*width, bias=bias), nn.Linear(4*width, width, bias=bias)

    def forward(self, x_btc):
        B, T, C = x_btc.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x_btc)).split(C, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btc = x_btc + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x_btc + self.down(F.gelu(self.up(self.norm2(x_btc))))

class Reference(nn.Module):
    "A causal language model with learnt positions and a tied head."
    def __init__(self,
        vocab,      # rows of the embedding
        context,    # tokens it looks at
        width,      # of the stream
        layers,     # blocks
        heads,      # of attention
        bias=False, # in the projections and norms
    ):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks, self.norm = nn.Sequential(*(Block(width, heads, bias) for _ in range(layers))), nn.LayerNorm(width, bias=bias)
        for name, p in self.named_parameters():
            out = name.endswith(('out.weight', 'down.weight'))
            if p.dim() == 2: nn.init.normal_(p, std=.02/((2*layers)**.5 if out else 1))

    def forward(self, ids_bt): # logits (B, T, V)
        x_btc = self.blocks(self.tokens(ids_bt) + self.positions.weight[:ids_bt.shape[1]])
        return F.linear(self.norm(x_btc), self.tokens.weight)

    def loss(self, ids_bt, targets_bt):
        "Mean cross-entropy over all logits at once, nats a token."
        return F.cross_entropy(self(ids_bt).flatten(0, 1), targets_bt.flatten())

    def adamw(self,
        lr,              # learning rate
        weight_decay=.1, # on matrices
        betas=(.9, .99), # of the averages
    ):
        "AdamW as torch gives it on a CPU: one parameter after the other, not fused."
        matrices, rest = ([p for p in self.parameters() if (p.dim() == 2) == m] for m in (True, False))
        return torch.optim.AdamW([dict(params=matrices, weight_decay=weight_decay), dict(params=rest, weight_decay=0.)], lr=lr, betas=betas)
