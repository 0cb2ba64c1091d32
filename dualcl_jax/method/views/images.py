"""Random views of images on the device: crop, colour jitter, grayscale, blur, solarize and flip, as pure functions.

Images are float32 [H, W, C] in [0, 1], one example at a time; `make_views` maps over a batch. Every example has its own
PRNG key (`randomness`), so a view depends only on that key, not on the batch or the number of devices.

A view is first drawn, then computed: `draw_view` turns uniform numbers into parameters, the rest is deterministic.

Three channels are red, green and blue. Images with any other number of channels keep it: the operations that are
defined for colours (`OF_COLOURS`) are skipped. Crop, blur, solarize and flip treat all channels alike, brightness
multiplies all of them by one factor, and contrast draws each channel towards its own mean. The draws are the same for
any number of channels.

The draws of the crop and of the colour jitter are in `image_draws`, the conventions for pixels in `image_ops`.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from dualcl_jax.data.images.crops import CropRecipe
from dualcl_jax.method.views.image_draws import (
    CROP_DRAWS,
    JITTER_DRAWS,
    Jitter,
    ViewParameters,
    between,
    draw_crop,
    draw_jitter,
)
from dualcl_jax.method.views.image_ops import (
    Planes,
    blur_and_flip,
    color_jitter,
    crop_and_resize,
    flip,
    luma,
    solarize,
)
from dualcl_jax.models.images import ImageInput, resized, to_float
from dualcl_jax.system.errors import UserError

RAW_SIDE = 32
"""Largest side of raw images in pixels; a bank of larger images would not fit in memory."""
PROBABILITIES = ('jitter_probability', 'grayscale', 'blur_probability', 'solarize_probability', 'flip')
OF_COLOURS = ('saturation', 'hue', 'grayscale')
"""The operations that are skipped for images without red, green and blue."""
NEUTRAL = {'brightness': 1.0, 'contrast': 1.0, 'saturation': 1.0, 'hue': 0.0}
"""The parameters with which an operation of the colour jitter changes nothing."""
VIEW_DRAWS = CROP_DRAWS + JITTER_DRAWS + 1 + len(PROBABILITIES)


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """The recipe of one view; the defaults are MoCo v2's. Hashable, so it can be a static argument of `jax.jit`.

    Ranges are (low, high), drawn uniformly (the ratio: uniformly in its logarithm). A strength b of brightness,
    contrast or saturation draws a factor from [max(0, 1 - b), 1 + b], a hue strength h a shift from [-h, h] turns of
    the colour circle. Flip and grayscale are probabilities. Sigmas are in pixels of the resized view, the threshold is
    in [0, 1]. Operations with probability or strength 0 are omitted when the program is traced.

    Raises:
      UserError: a value is outside its range; the message names the field as `views.FIELD`.
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
_SMALL = ViewSpec(blur_probability=0.0)
_SMALL_GRAY = ViewSpec(
    brightness=0.8,
    contrast=0.8,
    saturation=0.0,
    hue=0.0,
    grayscale=0.0,
    blur_probability=0.0,
)

PRESETS: dict[str, tuple[ViewSpec, ViewSpec]] = {
    'moco_v1': (_MOCO_V1, _MOCO_V1),  # 1911.05722, after 1805.01978: grayscale before the jitter
    'moco_v2': (ViewSpec(), ViewSpec()),  # 2003.04297
    'moco_v3': (_MOCO_V3_FIRST, _MOCO_V3_SECOND),  # 2104.02057, for ResNet-50; ViTs there crop from scale .08
    'moco_cifar': (_MOCO_CIFAR, _MOCO_CIFAR),  # torchvision's default crop, no blur
    'small': (_SMALL, _SMALL),  # ours: moco_v2 without blur, which would leave little of small images
    'small_gray': (_SMALL_GRAY, _SMALL_GRAY),  # ours: for images without colours
}


def draw_view(draws: jax.Array, spec: ViewSpec, height: int, width: int) -> ViewParameters:
    """Draws all parameters of one view of a [height, width] image from `draws`, float32 [VIEW_DRAWS] in [0, 1).

    Example:
      >>> parameters = draw_view(jnp.full((VIEW_DRAWS,), 0.6), ViewSpec(flip=0.5, grayscale=1.0), 32, 32)
      >>> bool(parameters.applied['flip']), bool(parameters.applied['grayscale'])
      (False, True)
    """
    crop_draws, jitter_draws, rest = jnp.split(draws, [CROP_DRAWS, CROP_DRAWS + JITTER_DRAWS])
    return ViewParameters(
        crop=draw_crop(crop_draws, height, width, spec.crop_scale, spec.crop_ratio),
        jitter=draw_jitter(jitter_draws, spec.brightness, spec.contrast, spec.saturation, spec.hue),
        sigma=between(rest[0], *spec.blur_sigma),
        applied={name: rest[1 + i] < getattr(spec, name) for i, name in enumerate(PROBABILITIES)},
    )


def make_views(keys: jax.Array, images: jax.Array, specs: Sequence[ViewSpec], size: int) -> jax.Array:
    """Random views of a batch: keys [B] (typed, or raw [B, 2]), images [B, H, W, C] to float32 [V, B, size, size, C].

    View v of an example depends only on its key, on v and on its recipe. The order of operations is that of the
    recipes: crop, jitter, grayscale (before the jitter if `grayscale_first`), blur, solarize, flip. (The other
    operations commute with the flip, so recipes that flip first give the same view.) Images are uint8 or float in
    [0, 1]; `specs` and `size` are static. All views are one batch, with the parameters of each, so that nothing is cut
    out of the batch or stacked.

    If the host has made the crops, images are [B, V, size, size, C], and the rest of each view is drawn as usual.

    Raises:
      TypeError: the images are neither uint8 nor floating point.
      ValueError: the crops do not have these shapes.

    Example:
      >>> keys, images = jax.random.split(jax.random.key(0), 4), jnp.zeros((4, 32, 32, 3))
      >>> make_views(keys, images, PRESETS['moco_v2'], size=16).shape
      (2, 4, 16, 16, 3)
    """
    cropped = images.ndim == 5
    if cropped and images.shape[1:4] != (len(specs), size, size):
        raise ValueError(f'expected crops [B, {len(specs)}, {size}, {size}, C], got {images.shape}')
    height, width = images.shape[-3:-1]

    def draw(number: int, spec: ViewSpec) -> ViewParameters:
        def one(key: jax.Array) -> ViewParameters:
            draws = jax.random.uniform(jax.random.fold_in(key, number), (VIEW_DRAWS,))
            drawn = draw_view(draws, spec, height, width)
            return drawn._replace(crop=None) if cropped else drawn

        return jax.vmap(one)(keys)

    drawn = _with_all_operations([draw(number, spec) for number, spec in enumerate(specs)])
    parameters = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    parameters = jax.lax.optimization_barrier(parameters)  # otherwise XLA draws them again for every pixel
    used = {name for name in PROBABILITIES if any(getattr(spec, name) > 0 for spec in specs)}
    gray_first = jnp.array([spec.grayscale_first for spec in specs])
    thresholds = jnp.array([spec.solarize_threshold for spec in specs], jnp.float32)
    of_batch = jax.vmap(partial(_apply_view, used=used, size=size), (0, 0, None, None))
    return jax.vmap(of_batch, (1 if cropped else None, 0, 0, 0))(images, parameters, gray_first, thresholds)


def _with_all_operations(parameters: Sequence[ViewParameters]) -> list[ViewParameters]:
    """Fills in neutral values for the operations of the jitter that only other views have."""
    filled = [drawn.jitter._asdict() for drawn in parameters]
    for name, neutral in NEUTRAL.items():
        if any(jitter[name] is not None for jitter in filled):
            for jitter in filled:
                if jitter[name] is None:
                    jitter[name] = jnp.full(jitter['position'].shape[:1], neutral, jnp.float32)
    return [drawn._replace(jitter=Jitter(**jitter)) for drawn, jitter in zip(parameters, filled, strict=True)]


def _apply_view(
    image: jax.Array,
    parameters: ViewParameters,
    gray_first: jax.Array,
    threshold: jax.Array,
    *,
    used: Collection[str],
    size: int,
) -> jax.Array:
    """Computes one view of one image [H, W, C]; `used` names the operations of `PROBABILITIES` that any view has."""
    applied = parameters.applied
    image = to_float(image)
    if parameters.crop is not None:
        image = crop_and_resize(image, *parameters.crop, size)
    planes: Planes = tuple(image[..., channel] for channel in range(image.shape[-1]))
    has_grayscale = 'grayscale' in used and len(planes) == 3
    if has_grayscale:
        planes = _to_grayscale(planes, applied['grayscale'] & gray_first)
    if 'jitter_probability' in used:
        planes = color_jitter(planes, parameters.jitter, applied['jitter_probability'])
    if has_grayscale:
        planes = _to_grayscale(planes, applied['grayscale'] & ~gray_first)
    image = jnp.stack(planes, axis=-1)
    flipped = applied['flip'] if 'flip' in used else False
    if 'blur_probability' in used:
        image = blur_and_flip(image, parameters.sigma, applied['blur_probability'], flipped)
    elif 'flip' in used:
        image = jnp.where(flipped, flip(image), image)
    if 'solarize_probability' in used:
        image = jnp.where(applied['solarize_probability'], solarize(image, threshold), image)
    return jnp.clip(image, 0.0, 1.0)


def _to_grayscale(planes: Planes, applied: jax.Array) -> Planes:
    brightness = luma(*planes)
    return tuple(jnp.where(applied, brightness, plane) for plane in planes)


def resolve_views(views: Any) -> tuple[ViewSpec, ViewSpec]:
    """The augmentation of both views: a preset, with the fields that a `views` config overrides.

    Raises:
      UserError: the preset or a field is not for images, or a value is outside its range.

    Example:
      >>> from ml_collections import ConfigDict
      >>> first, second = resolve_views(ConfigDict({'preset': 'moco_v3', 'flip': 0.0, 'hue': None}))
      >>> first.flip, first.solarize_probability, second.solarize_probability
      (0.0, 0.0, 0.2)
    """
    if views.preset not in PRESETS:
        raise UserError(f'config.views.preset={views.preset}: is not for images; choose one of {", ".join(PRESETS)}')
    chosen = {name: value for name, value in views.items() if name != 'preset' and value is not None}
    for name in sorted(chosen.keys() - {field.name for field in dataclasses.fields(ViewSpec)}):
        raise UserError(f'config.views.{name}: is not for images; leave it out')
    first, second = PRESETS[views.preset]
    return dataclasses.replace(first, **chosen), dataclasses.replace(second, **chosen)


@dataclasses.dataclass(frozen=True)
class ImageViews(ImageInput):
    """Views of images, `dualcl_jax.method.views.Views` of [n, H, W, C] as `ImageInput.scaled` takes them.

    Attributes:
      specs: the augmentation of each view; for the other attributes see `ImageInput`.
    """

    specs: tuple[ViewSpec, ...]

    @property
    def skipped(self) -> tuple[str, ...]:
        """The operations of `OF_COLOURS` in the recipe, if they are skipped for these images."""
        if self.channels == 3:
            return ()

        def has(spec: ViewSpec, name: str) -> bool:
            return getattr(spec, name) > 0 and (name == 'grayscale' or spec.jitter_probability > 0)

        return tuple(name for name in OF_COLOURS if any(has(spec, name) for spec in self.specs))

    @property
    def host_recipe(self) -> CropRecipe:
        """The recipe of the crops, for a source whose images the host decodes."""
        scales, ratios = zip(*((spec.crop_scale, spec.crop_ratio) for spec in self.specs), strict=True)
        return CropRecipe(scales, ratios, self.size)

    def augment(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Makes random views as images, with `make_views`: float32 [V, n, size, size, C] in [0, 1]."""
        return make_views(keys, self.scaled(images), self.specs, self.size)

    def make(self, keys: jax.Array, examples: jax.Array) -> jax.Array:
        """Makes random views as `augment` does, standardised for the encoder."""
        return self.standardize(self.augment(keys, examples))

    def raw(self, examples: ArrayLike) -> jax.Array:
        """Flattens the standardised pixels: [n, H * W * C]. Sides of more than `RAW_SIDE` pixels are reduced to it."""
        height, width, _ = np.shape(examples)[1:]
        pixels = self.standardize(resized(self.scaled(examples), min(height, RAW_SIDE), min(width, RAW_SIDE)))
        return pixels.reshape(pixels.shape[0], math.prod(pixels.shape[1:]))


def image_views(config: Any, examples: Any) -> ImageViews:
    """Builds the views of images [n, H, W, C] that a resolved config describes.

    Example:
      >>> from ml_collections import ConfigDict
      >>> data = {'image_size': 24, 'mean': (0.5,), 'std': (0.5,), 'value_range': ()}
      >>> views = image_views(ConfigDict({'data': data, 'views': {'preset': 'moco_v2'}}), jnp.zeros((2, 32, 32, 3)))
      >>> views.plain(jnp.zeros((2, 32, 32, 3))).shape
      (2, 24, 24, 3)
    """
    data = config.data
    specs, channels = resolve_views(config.views), examples.shape[-1]
    size, mean, std = data.image_size, tuple(data.mean), tuple(data.std)
    return ImageViews(size, channels, mean, std, specs, value_range=tuple(data.value_range))
