"""Writes `tests/models/torch_features.npz`: features that torchvision's and timm's networks compute in PyTorch.

    python -m tests.reference.make_torch_features

It needs torch, torchvision and timm; the test that reads the file needs none of them. The weights and images are those
of `tests/support/named_weights.py`; the file has the names and shapes of the tensors, and the features.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.named_weights import images, weights

FILE = Path(__file__).parents[1] / 'models' / 'torch_features.npz'


def networks() -> dict[str, tuple[Any, int]]:
    """Each network without its classifier, and the size of its images."""
    import timm
    import torch
    import torchvision

    resnet = torchvision.models.resnet18(weights=None)
    resnet.fc = torch.nn.Identity()
    sizes = {'embed_dim': 64, 'depth': 2, 'num_heads': 4, 'num_classes': 0}
    return {
        'resnet18 of torchvision': (resnet, 32),
        'resnet50 of timm': (timm.create_model('resnet50', num_classes=0), 32),
        'ViT of timm': (timm.models.vision_transformer.VisionTransformer(img_size=16, patch_size=4, **sizes), 16),
        'ConvNeXt of timm': (
            timm.models.convnext.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=0),
            48,
        ),
    }


def on_larger_grid(vit: Any) -> Any:
    """The ViT for images of 24 pixels, with its positions interpolated by timm."""
    import timm

    sizes = {'embed_dim': 64, 'depth': 2, 'num_heads': 4, 'num_classes': 0}
    larger = timm.models.vision_transformer.VisionTransformer(img_size=24, patch_size=4, **sizes)
    tensors = dict(vit.state_dict())
    tensors['pos_embed'] = timm.layers.resample_abs_pos_embed(tensors['pos_embed'], new_size=[6, 6])
    larger.load_state_dict(tensors)
    return larger


def main() -> None:
    import timm
    import torch
    import torchvision

    def features(network: Any, size: int) -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return network(torch.from_numpy(images(size).transpose(0, 3, 1, 2).copy())).numpy()

    found: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for name, (network, size) in networks().items():
        shapes[name] = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        made = {key: torch.from_numpy(value) for key, value in weights(shapes[name]).items()}
        network.load_state_dict(made)
        found[name] = features(network, size)
        if name.startswith('ViT'):
            found['ViT of timm, larger'] = features(on_larger_grid(network), 24)
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, timm)}
    np.savez_compressed(FILE, shapes=json.dumps(shapes), versions=json.dumps(versions), **found)
    print(FILE, versions, {name: array.shape for name, array in found.items()})


if __name__ == '__main__':
    main()
