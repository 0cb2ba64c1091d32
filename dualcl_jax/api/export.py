"""`dualcl_jax.export` and `dualcl_jax.load_encoder`: write the encoder of a run to a file, and load one."""

import os
from typing import TYPE_CHECKING, NamedTuple

from dualcl_jax.api.arguments import path_of
from dualcl_jax.api.session import using_jax
from dualcl_jax.system.errors import UserError
from dualcl_jax.system.files import check_output, check_output_folder, reachable, write_output, write_output_folder

if TYPE_CHECKING:
    from dualcl_jax.models.exports import LoadedEncoder, LoadedTextEncoder

FOLDER = 'huggingface'
"""The format that is a folder, not a file."""
FILES = ('safetensors', 'stablehlo', 'torchvision', 'onnx')
"""The other ones: the names of `dualcl_jax.models.exports.FORMATS`, which imports JAX."""
ENCODERS = ('query', 'momentum')


class Request(NamedTuple):
    """Which encoder to write, and how: the arguments of `export`, with `step` as text."""

    workdir: str
    output: str
    format: str
    encoder: str = 'query'
    projection: bool = False
    step: str = 'latest'


def export(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: str = 'safetensors',
    encoder: str = 'query',
    projection: bool = False,
    step: str | int = 'latest',
) -> None:
    """Writes an encoder of a run to a file, as `dualcl export` does.

        dualcl_jax.export('runs/photos', 'encoder.safetensors')
        features = dualcl_jax.load_encoder('encoder.safetensors')(images)

    Args:
      workdir: workdir of a run that has saved a checkpoint.
      output: the file to write; with 'huggingface' a new folder.
      format: 'safetensors', 'stablehlo', 'torchvision', 'onnx' or 'huggingface'.
      encoder: 'query' or 'momentum'.
      projection: export the output of the projection, not the features of the backbone.
      step: step of the checkpoint: 'latest', 'best' or a number.

    Raises:
      UserError: a mistake that the user can fix, with the line that the command would print.
    """
    request = Request(path_of('workdir', workdir), path_of('output', output), format, encoder, projection, str(step))
    for name, value, known in (('format', format, (*FILES, FOLDER)), ('encoder', encoder, ENCODERS)):
        if value not in known:
            raise UserError(f'{name}={value}: choose from {", ".join(known)}')
    check(request)
    with using_jax():
        write(request)


def check(request: Request) -> None:
    """Raises UserError if the output cannot be written."""
    (check_output_folder if request.format == FOLDER else check_output)(request.output)


def write(request: Request) -> None:
    """Writes the file or the folder, and prints what it holds and what loads it.

    Raises:
      UserError: a mistake that the user can fix.
    """
    from dualcl_jax.models.exports import FORMATS, TextDescription, huggingface, huggingface_images
    from dualcl_jax.workdir.export import describe
    from dualcl_jax.workdir.model_card import model_card
    from dualcl_jax.workdir.saved_run import open_saved_run

    output = request.output
    run = open_saved_run(request.workdir, request.step)
    description, variables = describe(run, encoder=request.encoder, projection=request.projection)
    if request.format == FOLDER:
        card = model_card(run, description)
        if isinstance(description, TextDescription):
            files = huggingface.write_folder(description, variables, card)
            load = 'sentence_transformers.SentenceTransformer'
        else:
            files = huggingface_images.write_folder(description, variables, card)
            load = f'transformers.{huggingface_images.network_of(description).name}.from_pretrained'
        write_output_folder(output, files)
        size = sum(map(len, files.values()))
    else:
        content = FORMATS[request.format](description, variables)
        write_output(output, content)
        size, load = len(content), 'dualcl_jax.load_encoder'
        if request.format == 'onnx':
            load = 'onnxruntime.InferenceSession'
    print(
        f'{output}: {description.architecture["name"]} of step {run.step:,}, {description.encoder} encoder, '
        f"{description.output} [N, {description.features}], {size / 1e6:,.1f} MB; load it with {load}('{output}')"
    )


def load_encoder(path: str | os.PathLike[str]) -> 'LoadedEncoder | LoadedTextEncoder':
    """Loads the query encoder of a run at its last checkpoint, or the encoder in a file of `dualcl_jax.export`.

    The result maps images [N, H, W, C] to features [N, F]. Images are uint8, or floats in [0, 1], of the size
    `.description.image_size`; an encoder with a `.description.value_range` takes the values of files, which it scales
    from that range. The encoder of a run on text maps a list of N sentences instead. JAX is imported by this
    function, not with the package.

    Args:
      path: the workdir of a run, finished or not, or a file of the format safetensors, torchvision or stablehlo.

    Raises:
      UserError: there is no such file or run, or it is damaged or of another kind.
    """
    from dualcl_jax.models.exports import load, with_variables
    from dualcl_jax.workdir.export import describe
    from dualcl_jax.workdir.saved_run import open_saved_run

    path = path_of('path', path)
    if not reachable(path, path).is_dir():
        return load(path)
    with using_jax():
        return with_variables(*describe(open_saved_run(path, flag='path'), encoder='query', projection=False))
