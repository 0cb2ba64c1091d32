"""Random views of images on the device: crop, colour jitter, grayscale, blur, solarize and flip, as pure functions.

Images are float32 [H, W, C] in [0, 1] with C = 1 or 3, one example at a time; `make_views` maps over a batch. Every
example has its own PRNG key, so a view depends on that key alone, whatever the batch or the number of devices. (This
holds for JAX's default generator, threefry; the `rbg` generators do not keep the keys of a mapped batch apart.)

A view is drawn, then applied: `draw_view` turns uniform numbers into parameters, `apply_view` is deterministic.

One-channel images stay one-channel: the operations that need three channels (hue, saturation, grayscale) are skipped,
and brightness, contrast, blur, solarize, crop and flip act as usual. The draws are the same for 1 and 3 channels.

Conventions: the draws of the crop and of the colour jitter are torchvision's; those of the pixels are in `image_ops`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.method.views.image_ops import (
    adjust_hue,
    blend,
    crop_and_resize,
    flip,
    gaussian_blur,
    gray,
    solarize,
    to_grayscale,
)
from dualcl_jax.models.images import ImageInput, resized, to_float
from dualcl_jax.system.errors import UserError

CROP_TRIES = 10
RAW_SIDE = 32
"""Pixels; a bank of larger images would not fit in memory."""
CROP_DRAWS, JITTER_DRAWS = 2 * CROP_TRIES + 2, 8
PROBABILITIES = ('jitter_probability', 'grayscale', 'blur_probability', 'solarize_probability', 'flip')
VIEW_DRAWS = CROP_DRAWS + JITTER_DRAWS + 1 + len(PROBABILITIES)


@dataclass(frozen=True)
class ViewSpec:
    """The recipe of one view; the defaults are MoCo v2's. Hashable, so it can be a static argument of `jax.jit`.

    Ranges are (low, high), drawn uniformly (the ratio: uniformly in its logarithm). A strength b of brightness,
    contrast or saturation draws a factor from [max(0, 1 - b), 1 + b], a hue strength h a shift from [-h, h] turns of
    the colour circle. Flip and grayscale are probabilities. Sigmas are in pixels of the resized view, the threshold is
    in [0, 1]. What has probability or strength 0 is left out when the program is traced.

    Raises: UserError, naming the field as `views.FIELD`, where a value is outside its range.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    grayscale_first: bool = False
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: float = 0.0
    solarize_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ('crop_scale', 'crop_ratio', 'blur_sigma'):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)  # a list would not be hashable
            if len(value) != 2 or not 0 < value[0] <= value[1] < math.inf:
                raise UserError(f'views.{name}: {value} is not a range (low, high) with 0 < low <= high')
        if self.crop_scale[1] > 1:
            raise UserError(f'views.crop_scale: {self.crop_scale} goes beyond 1, the area of the whole image')
        bounds = {'brightness': math.inf, 'contrast': math.inf, 'saturation': math.inf, 'hue': 0.5}
        bounds |= dict.fromkeys((*PROBABILITIES, 'solarize_threshold'), 1.0)
        for name, bound in bounds.items():
            if not 0 <= getattr(self, name) <= bound:
                raise UserError(f'views.{name}: {getattr(self, name)} is outside [0, {bound:g}]')


_MOCO_V1 = ViewSpec(grayscale_first=True, jitter_probability=1.0, hue=0.4, blur_probability=0.0)
_MOCO_V3_FIRST = ViewSpec(saturation=0.2, blur_probability=1.0)
_MOCO_V3_SECOND = ViewSpec(saturation=0.2, blur_probability=0.1, solarize_probability=0.2)
_MOCO_CIFAR = ViewSpec(crop_scale=(0.08, 1.0), blur_probability=0.0)

PRESETS: dict[str, tuple[ViewSpec, ViewSpec]] = {
    'moco_v1': (_MOCO_V1, _MOCO_V1),  # 1911.05722, after 1805.01978: grayscale comes before the jitter
    'moco_v2': (ViewSpec(), ViewSpec()),  # 2003.04297
    'moco_v3': (_MOCO_V3_FIRST, _MOCO_V3_SECOND),  # 2104.02057, for ResNet-50; its ViTs crop from scale .08
    'moco_cifar': (_MOCO_CIFAR, _MOCO_CIFAR),  # torchvision's default crop, no blur
}


class Crop(NamedTuple):
    """A box in whole pixels; int32 scalars."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class Jitter(NamedTuple):
    """The parameters of one colour jitter; None leaves an operation out.

    brightness, contrast, saturation: factors; hue: a shift in turns of the colour circle; float32 scalars.
    position: int32 [4], a permutation of 0 to 3: when each of (brightness, contrast, saturation, hue) is applied.
    """

    brightness: jax.Array | None
    contrast: jax.Array | None
    saturation: jax.Array | None
    hue: jax.Array | None
    position: jax.Array


class ViewParameters(NamedTuple):
    """All that is random in one view: sigma in pixels; applied: a bool scalar for each of `PROBABILITIES`.

    crop: None where the image is the crop already.
    """

    crop: Crop | None
    jitter: Jitter
    sigma: jax.Array
    applied: dict[str, jax.Array]


def draw_crop(
    draws: jax.Array, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """The crop of a [height, width] image, distributed as torchvision's `RandomResizedCrop.get_params`.

    Ten tries of an area (a share of the image's, uniform in `scale`) and an aspect ratio (log-uniform in `ratio`),
    rounded to whole pixels; the first box that fits is placed uniformly. If none fits: the largest central box of an
    allowed ratio. `draws`: float32 [CROP_DRAWS], uniform in [0, 1).
    """
    areas = height * width * _between(draws[:CROP_TRIES], *scale)
    ratios = jnp.exp(_between(draws[CROP_TRIES : 2 * CROP_TRIES], math.log(ratio[0]), math.log(ratio[1])))
    widths = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first, found = jnp.argmax(fits), jnp.any(fits)

    central_height, central_width = height, width
    if width / height < ratio[0]:
        central_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        central_width = round(height * ratio[1])

    def place(draw: jax.Array, room: jax.Array) -> jax.Array:
        anywhere = jnp.floor(draw * (room + 1).astype(jnp.float32)).astype(jnp.int32)
        return jnp.where(found, anywhere, room // 2)

    crop_height = jnp.where(found, heights[first], central_height)
    crop_width = jnp.where(found, widths[first], central_width)
    top, left = place(draws[-2], height - crop_height), place(draws[-1], width - crop_width)
    return Crop(top, left, crop_height, crop_width)


def draw_jitter(draws: jax.Array, brightness: float, contrast: float, saturation: float, hue: float) -> Jitter:
    """Factors from the strengths (see `ViewSpec`; 0 gives None) and a random order from `draws`: [JITTER_DRAWS]."""

    def factor(draw: jax.Array, strength: float) -> jax.Array | None:
        return _between(draw, max(0.0, 1.0 - strength), 1.0 + strength) if strength else None

    return Jitter(
        factor(draws[0], brightness),
        factor(draws[1], contrast),
        factor(draws[2], saturation),
        _between(draws[3], -hue, hue) if hue else None,
        jnp.argsort(draws[4:]).astype(jnp.int32),
    )


def draw_view(draws: jax.Array, spec: ViewSpec, height: int, width: int) -> ViewParameters:
    """All parameters of one view of a [height, width] image from `draws`: float32 [VIEW_DRAWS], uniform in [0, 1)."""
    crop_draws, jitter_draws, rest = jnp.split(draws, [CROP_DRAWS, CROP_DRAWS + JITTER_DRAWS])
    return ViewParameters(
        crop=draw_crop(crop_draws, height, width, spec.crop_scale, spec.crop_ratio),
        jitter=draw_jitter(jitter_draws, spec.brightness, spec.contrast, spec.saturation, spec.hue),
        sigma=_between(rest[0], *spec.blur_sigma),
        applied={name: rest[1 + i] < getattr(spec, name) for i, name in enumerate(PROBABILITIES)},
    )


def color_jitter(image: jax.Array, jitter: Jitter) -> jax.Array:
    """Applies the operations of `jitter` to an image [H, W, C] in [0, 1] in its order, clipping after each.

    Brightness, contrast and saturation are all blends: those before the hue shift run in the drawn order, then the hue
    shift, then those after it. Every blend has a slot on both sides; on the side that is not its own the factor is 1.
    """
    is_color = image.shape[-1] == 3
    position = dict(zip(Jitter._fields[:4], jitter.position, strict=True))
    blends = {name: getattr(jitter, name) for name in ('brightness', 'contrast', 'saturation')[: 3 if is_color else 2]}
    factors = {name: factor for name, factor in blends.items() if factor is not None}
    ranks = {name: jnp.sum(jnp.stack([position[other] < position[name] for other in factors])) for name in factors}

    def blend_in_order(image: jax.Array, applied: dict[str, ArrayLike]) -> jax.Array:
        for slot in range(len(factors)):
            here = {name: rank == slot for name, rank in ranks.items()}
            luma = gray(image)
            factor, toward = jnp.float32(1.0), jnp.zeros_like(luma)
            for name in factors:
                factor = jnp.where(here[name] & applied[name], factors[name], factor)
            if 'contrast' in factors:
                toward = jnp.where(here['contrast'], jnp.mean(luma), toward)
            if 'saturation' in factors:
                toward = jnp.where(here['saturation'], luma, toward)
            # The barrier keeps XLA from computing a slot again for every use in the next one.
            image = jax.lax.optimization_barrier(blend(image, toward, factor))
        return image

    if jitter.hue is None or not is_color:
        return blend_in_order(image, dict.fromkeys(factors, True))
    image = blend_in_order(image, {name: position[name] < position['hue'] for name in factors})
    image = adjust_hue(image, jitter.hue)
    return blend_in_order(image, {name: position[name] > position['hue'] for name in factors})


def apply_view(image: jax.Array, parameters: ViewParameters, spec: ViewSpec, size: int) -> jax.Array:
    """One view of one image: [H, W, C], uint8 or float in [0, 1] -> float32 [size, size, C] in [0, 1].

    The order is the recipes': crop, jitter, grayscale (before the jitter if `spec.grayscale_first`), blur, solarize,
    flip. (The others commute with the flip, so this is also the order of recipes that flip first.)

    Raises: UserError if the image has not 1 or 3 channels; TypeError if it is neither uint8 nor floating point.
    """
    if image.shape[-1] not in (1, 3):
        raise UserError(f'images have {image.shape[-1]} channels: convert them to 1 or 3')
    parameters = jax.lax.optimization_barrier(parameters)  # or XLA draws them again for every pixel
    steps: list[tuple[str, Callable[[jax.Array], jax.Array]]] = [
        ('jitter_probability', lambda image: color_jitter(image, parameters.jitter)),
        ('grayscale', to_grayscale),
        ('blur_probability', lambda image: gaussian_blur(image, parameters.sigma)),
        ('solarize_probability', lambda image: solarize(image, spec.solarize_threshold)),
        ('flip', flip),
    ]
    if spec.grayscale_first:
        steps[:2] = steps[1::-1]
    image = to_float(image)
    if parameters.crop is not None:
        image = crop_and_resize(image, *parameters.crop, size)
    for name, operation in steps:
        probability = getattr(spec, name)
        if probability > 0:
            changed = operation(image)
            image = changed if probability == 1 else jnp.where(parameters.applied[name], changed, image)
    return jnp.clip(image, 0.0, 1.0)


def augment(key: jax.Array, image: jax.Array, spec: ViewSpec, size: int) -> jax.Array:
    """One random view of one image: draws from `key`, then `apply_view` (whose shapes, order and errors these are)."""
    draws = jax.random.uniform(key, (VIEW_DRAWS,))
    return apply_view(image, draw_view(draws, spec, image.shape[0], image.shape[1]), spec, size)


def make_views(keys: jax.Array, images: jax.Array, specs: Sequence[ViewSpec], size: int) -> jax.Array:
    """Random views of a batch: keys [B] (typed, or raw [B, 2]), images [B, H, W, C] -> float32 [V, B, size, size, C].

    View v of an example is `augment(fold_in(key, v), image, specs[v], size)`: it depends on the example's key, on v and
    on its recipe only. Images are uint8 or float in [0, 1]; `specs` and `size` are static. Raises as `augment` does.

    Where the host has made the crops, images are [B, V, size, size, C], and the rest of each view is drawn as it would
    have been.
    """
    images, cropped = to_float(images), images.ndim == 5
    if cropped and images.shape[1:4] != (len(specs), size, size):
        raise ValueError(f'expected crops [B, {len(specs)}, {size}, {size}, C], got {images.shape}')
    height, width = images.shape[-3:-1]

    def draw(view: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, view), (VIEW_DRAWS,))

    def one_view(images: jax.Array, draws: jax.Array, spec: ViewSpec) -> jax.Array:
        def one(draws: jax.Array, image: jax.Array) -> jax.Array:
            parameters = draw_view(draws, spec, height, width)
            return apply_view(image, parameters._replace(crop=None) if cropped else parameters, spec, size)

        return jax.vmap(one)(draws, images)

    draws = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(jnp.arange(len(specs)), keys)
    return jnp.stack(
        [one_view(images[:, view] if cropped else images, draws[view], spec) for view, spec in enumerate(specs)]
    )


def _between(draw: jax.Array, low: float, high: float) -> jax.Array:
    """Maps uniform draws in [0, 1) to [low, high)."""
    return low + (high - low) * draw


def resolve_views(views: Any) -> tuple[ViewSpec, ViewSpec]:
    """The augmentation of both views: a preset with the fields that a `views` config sets in its place."""
    chosen = {name: value for name, value in views.items() if name != 'preset' and value is not None}
    first, second = PRESETS[views.preset]
    return dataclasses.replace(first, **chosen), dataclasses.replace(second, **chosen)


@dataclass(frozen=True)
class ImageViews(ImageInput):
    """Views of images, `dualcl_jax.method.views.Views` of uint8 [n, H, W, C], or of floating point in [0, 1].

    Attributes:
      specs: the augmentation of each view; for the others see `ImageInput`.
    """

    specs: tuple[ViewSpec, ...]

    @property
    def host_recipe(self) -> CropRecipe:
        """The crops, for a source whose images the host decodes."""
        scales, ratios = zip(*((spec.crop_scale, spec.crop_ratio) for spec in self.specs), strict=True)
        return CropRecipe(scales, ratios, self.size)

    def augment(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Views as pictures: `make_views`, float32 [V, n, size, size, C] in [0, 1]."""
        return make_views(keys, images, self.specs, self.size)

    def make(self, keys: jax.Array, examples: jax.Array) -> jax.Array:
        """The same, standardised as the encoder takes them."""
        return self.standardize(self.augment(keys, examples))

    def raw(self, examples: ArrayLike) -> jax.Array:
        """The pixels, standardised: [n, H * W * C]. A side of more than `RAW_SIDE` pixels is reduced to it."""
        height, width, _ = np.shape(examples)[1:]
        pixels = self.standardize(resized(examples, min(height, RAW_SIDE), min(width, RAW_SIDE)))
        return pixels.reshape(pixels.shape[0], math.prod(pixels.shape[1:]))


def image_views(config: Any, examples: Any) -> ImageViews:
    """The views of images [n, H, W, C] that a resolved config describes."""
    data = config.data
    specs, channels = resolve_views(config.views), examples.shape[-1]
    return ImageViews(data.image_size, channels, tuple(data.mean), tuple(data.std), specs)
