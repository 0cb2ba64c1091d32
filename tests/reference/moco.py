"""MoCo in float64 NumPy: the papers' formulas as plain loops, forwards and backwards by hand.

It imports neither JAX nor the package; tests compare the training step with it. It is 1911.05722 (Algorithm 1, with the
momentum update at the start of the step as in its published code) and SGD as PyTorch defines it. Options are both view
orders, the hardest k negatives, no negatives of the anchor's own image, and a term anchored at the key.

Encoder parameters are {'conv1': [3, 3, 3, W], 'conv2': [3, 3, W, 2W], 'weight': [2W, D], 'bias': [D]}: two 3×3
convolutions of stride 2 with ReLU, the mean over pixels, a linear layer, unit length.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Params = dict[str, Array]


def convolve(x: Array, kernel: Array) -> Array:
    """3×3 cross-correlation of stride 2 with one zero around the image: [N, H, W, I] to [N, H', W', O]."""
    count, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((count, (height + 1) // 2, (width + 1) // 2, kernel.shape[3]))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            out[:, row, column] = np.tensordot(patch, kernel, axes=3)
    return out


def convolve_backward(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    """Gradients of x and kernel from the gradient of `convolve`'s output."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    grad_padded, grad_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for row in range(grad.shape[1]):
        for column in range(grad.shape[2]):
            box = (slice(None), slice(2 * row, 2 * row + 3), slice(2 * column, 2 * column + 3))
            grad_kernel += np.tensordot(padded[box], grad[:, row, column], axes=(0, 0))
            grad_padded[box] += np.tensordot(grad[:, row, column], kernel, axes=(1, 3))
    return grad_padded[:, 1:-1, 1:-1], grad_kernel


def encode(params: Params, images: Array) -> tuple[Array, tuple]:
    """Unit embeddings [N, D] of images [N, H, W, 3], and what `encode_backward` needs."""
    hidden_1 = np.maximum(convolve(images, params['conv1']), 0)
    hidden_2 = np.maximum(convolve(hidden_1, params['conv2']), 0)
    features = hidden_2.mean(axis=(1, 2))
    projection = features @ params['weight'] + params['bias']
    lengths = np.sqrt((projection**2).sum(axis=1, keepdims=True))
    unit = projection / lengths
    return unit, (images, hidden_1, hidden_2, features, lengths, unit)


def encode_backward(params: Params, saved: tuple, grad: Array) -> Params:
    """Gradients of the parameters from the gradient [N, D] of the unit embeddings."""
    images, hidden_1, hidden_2, features, lengths, unit = saved
    grad = (grad - unit * (grad * unit).sum(axis=1, keepdims=True)) / lengths
    grad_features = grad @ params['weight'].T
    pixels = hidden_2.shape[1] * hidden_2.shape[2]
    grad_2 = np.broadcast_to(grad_features[:, None, None] / pixels, hidden_2.shape) * (hidden_2 > 0)
    grad_1, grad_conv2 = convolve_backward(hidden_1, params['conv2'], grad_2)
    _, grad_conv1 = convolve_backward(images, params['conv1'], grad_1 * (hidden_1 > 0))
    return {'conv1': grad_conv1, 'conv2': grad_conv2, 'weight': features.T @ grad, 'bias': grad.sum(axis=0)}


def hardest(anchor: Array, table: Array, candidates: list[int], k: int | None) -> list[int]:
    """The k rows of `table` most similar to the anchor, the lower row first among equals; None for all rows."""
    if k is None:
        return candidates
    return sorted(candidates, key=lambda row: (-float(table[row] @ anchor), row))[:k]


def info_nce(anchor: Array, positive: Array, negatives: Array, temperature: float) -> tuple[float, Array, Array, Array]:
    """Loss of one anchor [D], its positive [D] and negatives [m, D], and the gradients of all three."""
    logits = np.concatenate([[positive @ anchor], negatives @ anchor]) / temperature
    exponentials = np.exp(logits - logits.max())
    loss = float(np.log(exponentials.sum()) + logits.max() - logits[0])
    error = exponentials / exponentials.sum()
    error[0] -= 1.0
    grad_anchor = (error[0] * positive + error[1:] @ negatives) / temperature
    return loss, grad_anchor, error[0] * anchor / temperature, np.outer(error[1:], anchor) / temperature


@dataclass
class Settings:
    """Settings of the recipe. Steps count from 0; the learning rate falls from `peak` by half a cosine."""

    temperature: float
    peak: float
    total_steps: int
    warmup_steps: int = 0
    sgd_momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_bias: bool = True
    ema: float = 0.99
    ema_to_one: bool = False
    symmetric: bool = False
    k: int | None = None
    mask_same_image: bool = False
    key_weight: float = 0.0
    key_term: str = 'batch'


class Moco:
    """MoCo; the attributes are the whole state: step, theta, xi, velocity, and the queue as keys, ids, cursor, filled.

    `chance` is the loss of the last step with every similarity equal.
    """

    def __init__(self, settings: Settings, theta: Params, keys: Array, filled: int) -> None:
        self.settings = settings
        self.step = 0
        self.theta = {name: np.array(value, np.float64) for name, value in theta.items()}
        self.xi = {name: value.copy() for name, value in self.theta.items()}
        self.velocity = {name: np.zeros_like(value) for name, value in self.theta.items()}
        self.keys = np.array(keys, np.float64)
        self.ids = [-1] * len(self.keys)
        self.cursor, self.filled = 0, filled

    def learning_rate(self) -> float:
        s = self.settings
        if self.step < s.warmup_steps:
            return s.peak * self.step / s.warmup_steps
        progress = (self.step - s.warmup_steps) / (s.total_steps - s.warmup_steps)
        return s.peak * (1 + np.cos(np.pi * progress)) / 2

    def ema_momentum(self) -> float:
        s = self.settings
        if not s.ema_to_one:
            return s.ema
        return 1 - (1 - s.ema) * (1 + np.cos(np.pi * self.step / s.total_steps)) / 2

    def loss_and_gradient(self, theta: Params, views: list[Array], keys: list[Array], ids: list[int]):
        """Loss and gradient of theta. `views[v]` are encoded as queries, and `keys[v]` are their positives."""
        s = self.settings
        loss, gradient = 0.0, {name: np.zeros_like(value) for name, value in theta.items()}
        self.chance = 0.0
        for images, positives in zip(views, keys, strict=True):
            queries, saved = encode(theta, images)
            grad = np.zeros_like(queries)
            each = 1 / (len(views) * len(queries))
            for i, (query, key) in enumerate(zip(queries, positives, strict=True)):
                slots = [j for j in range(self.filled) if not (s.mask_same_image and self.ids[j] == ids[i])]

                chosen = hardest(query, self.keys, slots, s.k)
                value, grad_query, _, _ = info_nce(query, key, self.keys[chosen], s.temperature)
                others = [j for j in range(len(ids)) if j != i and not (s.mask_same_image and ids[j] == ids[i])]
                of_key = others if s.key_term == 'batch' else chosen
                self.chance += each * np.log(1 + len(chosen)) * (1 - s.key_weight)
                self.chance += each * np.log(1 + len(of_key)) * s.key_weight
                loss += each * (1 - s.key_weight) * value
                grad[i] += each * (1 - s.key_weight) * grad_query

                if s.key_weight and s.key_term == 'queue':
                    chosen = hardest(key, self.keys, slots, s.k)
                    value, _, grad_query, _ = info_nce(key, query, self.keys[chosen], s.temperature)
                    loss += each * s.key_weight * value
                    grad[i] += each * s.key_weight * grad_query
                elif s.key_weight:
                    value, _, grad_query, grad_others = info_nce(key, query, queries[others], s.temperature)
                    loss += each * s.key_weight * value
                    grad[i] += each * s.key_weight * grad_query
                    grad[others] += each * s.key_weight * grad_others
            for name, value in encode_backward(theta, saved, grad).items():
                gradient[name] += value
        return loss, gradient

    def train(self, view_1: Array, view_2: Array, ids: list[int]) -> tuple[float, Params, list[Array]]:
        """One step on views [B, H, W, 3] of images `ids`: its loss, gradient, and keys [B, D] by view order."""
        s = self.settings
        momentum = self.ema_momentum()
        for name in self.xi:
            self.xi[name] = momentum * self.xi[name] + (1 - momentum) * self.theta[name]

        query_views = [view_1, view_2] if s.symmetric else [view_1]
        key_views = [view_2, view_1] if s.symmetric else [view_2]
        keys = [encode(self.xi, images)[0] for images in key_views]
        loss, gradient = self.loss_and_gradient(self.theta, query_views, keys, ids)

        for i, image in enumerate(ids):
            for order in keys:
                self.keys[self.cursor] = order[i]
                self.ids[self.cursor] = image
                self.cursor = (self.cursor + 1) % len(self.keys)
                self.filled = min(self.filled + 1, len(self.keys))

        rate = self.learning_rate()
        for name in self.theta:
            decay = s.weight_decay if s.decay_bias or name != 'bias' else 0.0
            self.velocity[name] = s.sgd_momentum * self.velocity[name] + gradient[name] + decay * self.theta[name]
            self.theta[name] = self.theta[name] - rate * self.velocity[name]
        self.step += 1
        return loss, gradient, keys
