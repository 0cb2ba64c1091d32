"""Float64 references of views and image operations, pixel by pixel, and a test image."""

import colorsys
import math

import numpy as np


def photo(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """A smooth random image with noise, clipped so that it also contains pure black, white and colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / 8.0
    waves = np.sin(x * rng.uniform(0.3, 2, channels) + y * rng.uniform(0.3, 2, channels) + rng.uniform(0, 6, channels))
    return np.clip(0.5 + 0.5 * waves + 0.2 * rng.standard_normal((height, width, channels)), 0, 1).astype(np.float32)


def ref_gray(image):
    return image if image.shape[-1] == 1 else (image @ np.array([0.2989, 0.587, 0.114]))[..., None]


def ref_blend(image, other, factor):
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def ref_hue(image, shift):
    if image.shape[-1] == 1:
        return image
    out = np.empty_like(image)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*image[place])
        out[place] = colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)
    return out


def ref_saturation(image, factor):
    return image if image.shape[-1] == 1 else ref_blend(image, ref_gray(image), factor)


REF_JITTER = (
    lambda image, factor: ref_blend(image, 0.0, factor),
    lambda image, factor: ref_blend(image, ref_gray(image).mean(), factor),
    ref_saturation,
    ref_hue,
)


def ref_jitter(image, factors, position):
    for index in np.argsort(position):
        if factors[index] is not None:
            image = REF_JITTER[index](image, float(factors[index]))
    return image


def ref_resize_axis(image, size):
    """Resizes the first axis with a triangle about every output centre, renormalised over the box, pixel by pixel."""
    length = len(image)
    step = length / size
    out = np.zeros((size, *image.shape[1:]))
    for o in range(size):
        total = 0.0
        for i in range(length):
            weight = max(0.0, 1.0 - abs(i + 0.5 - (o + 0.5) * step) / max(step, 1.0))
            out[o] += weight * image[i]
            total += weight
        out[o] /= total
    return out


def ref_crop(image, top, left, height, width, size):
    rows = ref_resize_axis(image[top : top + height, left : left + width], size)
    return ref_resize_axis(rows.swapaxes(0, 1), size).swapaxes(0, 1)


def ref_blur_axis(image, sigma):
    radius = len(image) - 1
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(image, [(radius, radius), (0, 0), (0, 0)], mode='reflect')
    return sum(tap * padded[i : i + len(image)] for i, tap in enumerate(taps / taps.sum()))


def ref_blur(image, sigma):
    return ref_blur_axis(ref_blur_axis(image, sigma).swapaxes(0, 1), sigma).swapaxes(0, 1)


def ref_view(image, parameters, spec, size):
    """The whole recipe for given parameters (one example's)."""
    applied = {name: bool(value) or getattr(spec, name) == 1 for name, value in parameters.applied.items()}
    image = ref_crop(image, *(int(value) for value in parameters.crop), size)
    if spec.grayscale_first and applied['grayscale']:
        image = np.broadcast_to(ref_gray(image), image.shape)
    if applied['jitter_probability']:
        image = ref_jitter(image, parameters.jitter[:4], parameters.jitter.position)
    if not spec.grayscale_first and applied['grayscale']:
        image = np.broadcast_to(ref_gray(image), image.shape)
    if applied['blur_probability']:
        image = ref_blur(image, float(parameters.sigma))
    if applied['solarize_probability']:
        image = np.where(image >= spec.solarize_threshold, 1 - image, image)
    return image[:, ::-1] if applied['flip'] else image


def ref_crop_box(draws, height, width, scale, ratio):
    """RandomResizedCrop.get_params as a plain loop over given uniform numbers."""
    for area_draw, ratio_draw in zip(draws[:10], draws[10:20], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * ratio_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w
