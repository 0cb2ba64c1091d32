"""Writes the encoder of a run to a file: python -m dualcl_jax.export --workdir=DIR --format=safetensors --output=FILE.

    safetensors   weights under this project's names
    stablehlo     a program that contains its weights, for any batch size, on CPU, GPU and TPU
    torchvision   weights with the names and layout of torchvision's ResNet, as safetensors; needs no PyTorch
    onnx          a program for onnxruntime that contains its weights, of some networks
    huggingface   a folder that transformers loads or, for text, sentence-transformers

dualcl_jax.load_encoder(FILE) reads the first three. --init_from starts a run from weights, or from the folder of text.
"""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax.system.callable_module import make_callable
from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.user_modules import import_own


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing, or has an invalid value."""
    from dualcl_jax.api.export import ENCODERS, FILES, FOLDER

    parser = Parser('python -m dualcl_jax.export', __doc__)
    parser.add_import()
    parser.add_argument('--workdir', required=True, help='folder of a run that has saved a checkpoint')
    parser.add_argument('--format', required=True, choices=(*FILES, FOLDER))
    parser.add_argument(
        '--output', required=True, metavar='FILE', help=f'the file to write; with {FOLDER} a new folder'
    )
    parser.add_argument('--encoder', default='query', choices=ENCODERS, help='default: query')
    parser.add_argument('--projection', action='store_true', help="export the projection's output, not the features")
    parser.add_argument('--step', default='latest', help='which checkpoint: a number, latest (default) or best')
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    from dualcl_jax.api.export import Request, check, write
    from dualcl_jax.system.processes.start import start

    request = Request(**{name: getattr(flags, name) for name in Request._fields})
    check(request)
    start(several=False)
    import_own(flags.own)
    write(request)
    return 0


make_callable(__name__, 'dualcl_jax.api.export:export')

if __name__ == '__main__':
    sys.exit(main())
