"""Writes the encoder of a run to a file: python -m dualcl_jax.export --workdir=DIR --format=safetensors --output=FILE.

    safetensors   weights under this project's names
    stablehlo     a program that contains its weights, for any batch size, on CPU, GPU and TPU
    torchvision   weights with the names and layout of torchvision's ResNet, as safetensors; needs no PyTorch
    onnx          a program for onnxruntime that contains its weights, of some networks
    huggingface   a folder that transformers loads or, of text, sentence-transformers

dualcl_jax.load_encoder(FILE) reads the first three. --init_from starts a run from weights, or from the folder of text.
"""

import argparse
import sys
from collections.abc import Sequence

from dualcl_jax.system.command_line import Parser
from dualcl_jax.system.errors import exits_cleanly
from dualcl_jax.system.own import import_own

FOLDER = 'huggingface'
"""The format that is a folder, not a file."""
FILES = ('safetensors', 'stablehlo', 'torchvision', 'onnx')
"""The other ones: the names of `dualcl_jax.models.exports.FORMATS`, which imports JAX."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses the flags. Raises UserError if one is unknown or missing, or has an invalid value."""
    parser = Parser('python -m dualcl_jax.export', __doc__)
    parser.add_import()
    parser.add_argument('--workdir', required=True, help='folder of a run that has saved a checkpoint')
    parser.add_argument('--format', required=True, choices=(*FILES, FOLDER))
    parser.add_argument(
        '--output', required=True, metavar='FILE', help=f'the file to write; with {FOLDER} a new folder'
    )
    parser.add_argument('--encoder', default='query', choices=('query', 'momentum'), help='default: query')
    parser.add_argument('--projection', action='store_true', help="export the projection's output, not the features")
    parser.add_argument('--step', default='latest', help='which checkpoint: a number, latest (default) or best')
    return parser.parse_args(arguments)


@exits_cleanly
def main() -> int:
    flags = parse(sys.argv[1:])
    from dualcl_jax.system.files import check_output, check_output_folder, write_output, write_output_folder
    from dualcl_jax.system.processes.start import start

    (check_output_folder if flags.format == FOLDER else check_output)(flags.output)
    start(several=False)
    import_own(flags.own)
    from dualcl_jax.models.exports import FORMATS, TextDescription, huggingface, huggingface_images
    from dualcl_jax.workdir.export import describe
    from dualcl_jax.workdir.model_card import model_card
    from dualcl_jax.workdir.saved_run import open_saved_run

    run = open_saved_run(flags.workdir, flags.step)
    description, variables = describe(run, encoder=flags.encoder, projection=flags.projection)
    if flags.format == FOLDER:
        card = model_card(run, description)
        if isinstance(description, TextDescription):
            files = huggingface.write_folder(description, variables, card)
            load = 'sentence_transformers.SentenceTransformer'
        else:
            files = huggingface_images.write_folder(description, variables, card)
            load = f'transformers.{huggingface_images.network_of(description).name}.from_pretrained'
        write_output_folder(flags.output, files)
        size = sum(map(len, files.values()))
    else:
        content = FORMATS[flags.format](description, variables)
        write_output(flags.output, content)
        size, load = len(content), 'dualcl_jax.load_encoder'
        if flags.format == 'onnx':
            load = 'onnxruntime.InferenceSession'
    print(
        f'{flags.output}: {description.architecture["name"]} of step {run.step:,}, {description.encoder} encoder, '
        f"{description.output} [N, {description.features}], {size / 1e6:,.1f} MB; load it with {load}('{flags.output}')"
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
