"""Attribution methods to compare against: all on the same fill, zero after normalisation.

Each method maps (model, image, label) to a saliency map (1, 1, H, W) float32 on the
model's device, higher = more important. Lengths in pixels are the literature's for 224 pixels and
scale with the shorter side. Whatever does not fit the model raises InputError.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion
from torch import Tensor

from minexp import attention, taps
from minexp.classifier import Classifier
from minexp.errors import InputError
from minexp.masking import apply_mask
from minexp.sufficiency import probability


def gradcam(model: Classifier, image: Tensor, label: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2), by Captum.

    On the logit, at the deepest tap whose output is a map (InputError if there is none), upsampled
    bilinearly. All zero where no weighted sum of channels is positive, as on some digits.
    """
    image = _checked(model, image, label).requires_grad_()  # for Captum the graph begins there
    layer = model.module.get_submodule(_deepest_map(model, image))
    coarse = LayerGradCam(model.module, layer).attribute(image, label, relu_attributions=True)
    return F.interpolate(coarse.detach(), image.shape[-2:], mode="bilinear")


def _deepest_map(model: Classifier, image: Tensor) -> str:
    with torch.no_grad(), taps.read(model.module, model.taps) as found:
        model(image)
    # A single position is no map: upsampled, it ranks nothing.
    maps = [tap for tap in model.taps if found[tap].ndim == 4 and found[tap][0, 0].numel() > 1]
    if not maps:
        raise InputError(f"{model.name}: no tap's output is a map (N, C, h, w); gradcam needs one")
    return maps[-1]


def attention_map(
    model: Classifier, image: Tensor, label: int, *, layer: int = -1, head: int | None = None
) -> Tensor:
    """One layer's attention to the patches (Vaswani et al., NeurIPS 2017, equation 1).

    That of the class token, or of all patches in the mean where the classifier reads none; of
    ``head``, or of all heads in the mean. Each patch is constant. It does not depend on the label.
    """
    image = _checked(model, image, label)
    maps = attention.attention_maps(model, image)
    for name, index, count in (("layer", layer, len(maps)), ("head", head or 0, maps.shape[1])):
        if index not in range(-count, count):
            raise InputError(f"{name}={index}: expected {-count} to {count - 1} in {model.name}")
    return _patches(model, maps[layer].mean(0) if head is None else maps[layer, head])


def attention_rollout(model: Classifier, image: Tensor, label: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema, ACL 2020, equation 1): all layers, from the last down.

    To the patches, from the same tokens as in attention_map. It does not depend on the label.
    """
    maps = attention.attention_maps(model, _checked(model, image, label))
    return _patches(model, attention.rollout(maps))


def _patches(model: Classifier, matrix: Tensor) -> Tensor:
    coarse = attention.to_patches(model, matrix).float()[None, None]
    return F.interpolate(coarse, model.size, mode="nearest-exact")  # "nearest" rounds some edges


def integrated_gradients(
    model: Classifier, image: Tensor, label: int, *, steps: int = 50
) -> Tensor:
    """Integrated gradients (Sundararajan et al., ICML 2017, equation 1), by Captum.

    Of the label's softmax probability (the paper's F lies in [0, 1]) along the line from zero, by
    Gauss-Legendre quadrature with ``steps`` nodes; absolute values summed over channels.
    """
    image = _checked(model, image, label, steps=steps)
    method = IntegratedGradients(_probabilities(model))
    signed = method.attribute(image, 0, label, n_steps=steps, internal_batch_size=4)
    return signed.detach().float().abs().sum(1, keepdim=True)


def occlusion(model: Classifier, image: Tensor, label: int, *, windows: int = 7) -> Tensor:
    """Occlusion (Zeiler & Fergus, ECCV 2014, section 4.2), by Captum.

    A pixel's value is the drop of the label's softmax probability, averaged over the zero windows
    that cover it: 1/``windows`` of the side wide and half a width apart (32 and 16 pixels at 224).
    """
    image = _checked(model, image, label, windows=windows)
    lengths = [max(1, round(min(model.size) / share)) for share in (windows, 2 * windows)]
    sizes = [(image.shape[1], length, length) for length in lengths]
    method = Occlusion(_probabilities(model))
    drops = method.attribute(image, *sizes, 0, label, perturbations_per_eval=8)
    return drops[:, :1].float().contiguous()  # a window takes all channels: they are equal


def rise(
    model: Classifier, image: Tensor, label: int, *, masks: int = 1000, grid: int = 7, seed: int = 0
) -> Tensor:
    """RISE (Petsiuk et al., BMVC 2018, section 3.1): masks averaged, weighted by their scores.

    ``masks`` (the paper: 4,000 and more), each drawn on the CPU from ``seed`` by rise_mask.
    """
    image = _checked(model, image, label, masks=masks, grid=grid)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 1, *model.size, device=model.device)
    for start in range(0, masks, 8):
        drawn = [rise_mask(model.size, grid, generator) for _ in range(min(8, masks - start))]
        batch = torch.cat(drawn).to(model.device)
        with torch.no_grad():
            scores = _probabilities(model)(apply_mask(image, batch))[:, label]
        total += (scores[:, None, None, None] * batch).sum(0)
    return total / (0.5 * masks)


def rise_mask(size: Sequence[int], grid: int, generator: torch.Generator) -> Tensor:
    """One of RISE's masks (section 3.2), (1, 1, H, W) in [0, 1].

    A binary grid (cells on with probability 0.5), upsampled bilinearly to a cell more than the
    image each way and cropped at random; cells are rounded up, so that the crop always fits.
    """
    cells = [math.ceil(side / grid) for side in size]
    coarse = (torch.rand(1, 1, grid, grid, generator=generator) < 0.5).float()
    fine = F.interpolate(coarse, [(grid + 1) * cell for cell in cells], mode="bilinear")
    top, left = (int(torch.randint(cell + 1, (), generator=generator)) for cell in cells)
    return fine[..., top : top + size[0], left : left + size[1]]


def random_map(model: Classifier, image: Tensor, label: int, *, seed: int = 0) -> Tensor:
    """Uniform noise from ``seed`` in cells of 8 x 8 pixels (single ones would be mere dust)."""
    _checked(model, image, label)
    height, width = model.size
    cells = (1, 1, math.ceil(height / 8), math.ceil(width / 8))
    coarse = torch.rand(cells, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, scale_factor=8)[..., :height, :width].to(model.device)


def centre(model: Classifier, image: Tensor, label: int) -> Tensor:
    """Minus the Euclidean distance from the image's centre, in pixels: photographers aim."""
    _checked(model, image, label)
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in model.size)
    return -torch.hypot(rows[:, None], columns)[None, None].to(model.device)


def extremal_perturbation(
    model: Classifier,
    image: Tensor,
    label: int,
    *,
    areas: Sequence[float] = (0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    steps: int = 800,
) -> Tensor:
    """Extremal perturbations (Fong, Patrick & Vedaldi, ICCV 2019, section 3): a mask an area.

    The preservation game with the settings of the authors' TorchRay: the reward is the logit, every
    other step is flipped. Two things differ: the fill is zero, as everywhere here (TorchRay: blur),
    and an area is a share of the image, as in the paper (TorchRay: of the image and a margin).
    Returns (A, 1, H, W) in [0, 1]; deterministic.
    """
    image = _checked(model, image, label, steps=steps)
    if not areas or not all(0 < area <= 1 for area in areas):
        raise InputError(f"areas={areas}: expected shares of the image, above 0 and at most 1")
    height, width = model.size
    spacing = max(1, round(min(model.size) / 32))  # 7 pixels at 224
    shape = (len(areas), 1, math.ceil(height / spacing), math.ceil(width / spacing))
    nodes = torch.ones(shape, device=model.device, requires_grad=True)
    optimizer = torch.optim.SGD([nodes], lr=0.01, momentum=0.9, dampening=0.9)
    for step in range(steps):
        with torch.enable_grad():
            masks = smooth_max(nodes, spacing)[..., :height, :width]
            # The layout, which changes nothing else, saves a tenth of the time on a CPU.
            masked = apply_mask(image, masks).contiguous(memory_format=torch.channels_last)
            reward = model(masked if step % 2 else masked.flip(3))[:, label]
            loss = (300 * 1.0035**step * area_penalty(masks, areas) - reward).sum()
        (nodes.grad,) = torch.autograd.grad(loss, nodes)  # backward() would reach parameters
        optimizer.step()
        nodes.data.clamp_(0, 1)
    return smooth_max(nodes.detach(), spacing)[..., :height, :width].contiguous()


def extremal_map(masks: Tensor) -> Tensor:
    """One ranking (1, 1, H, W) of the masks of all areas (A, 1, H, W): their mean."""
    return masks.mean(0, keepdim=True)


def smooth_max(nodes: Tensor, spacing: int) -> Tensor:
    """The smooth max convolution ("Smooth masks"), (A, 1, h, w) -> (A, 1, h spacing, w spacing).

    ``nodes`` in [0, 1] lie ``spacing`` pixels apart from pixel 0 on, zeros outside. A pixel sees
    those up to 4 away each way, times exp(-2 max(0, d/sigma - 1/2)^2) at distance d, sigma = 3
    spacings, and takes the mean of what it sees, weighted by softmax at temperature 1/20.
    """
    offsets = torch.arange(-4, 5, device=nodes.device) * spacing
    away = (torch.arange(spacing, device=nodes.device)[:, None] - offsets).float()  # (phase, node)
    distance = torch.hypot(away[:, None, :, None], away[None, :, None, :])  # (y, x, node y, node x)
    kernels = torch.exp(-2 * (distance / (3 * spacing) - 0.5).clamp(min=0) ** 2).reshape(-1, 81)
    patches = F.unfold(nodes, 9, padding=4)  # (A, 81, h w)
    # Pixels at the same place between nodes share a kernel. One place at a time stays in the cache:
    # five times as fast as all at once. Values are at most 1: exp(20 value) cannot overflow.
    pixels = []
    for kernel in kernels:
        seen = patches * kernel[:, None]
        weights = (20 * seen).exp()
        pixels.append((seen * weights).sum(1) / weights.sum(1))
    return F.pixel_shuffle(torch.stack(pixels, 1).unflatten(2, nodes.shape[-2:]), spacing)


def area_penalty(masks: Tensor, areas: Sequence[float]) -> Tensor:
    """Mean squares (A,) of the sorted masks (A, 1, H, W) less zeros, then ``areas`` of ones.

    The ranking loss of "Area constraint" (Fong et al. 2019, section 3).
    """
    ordered = masks.flatten(1).sort(dim=1, stable=True).values  # all start equal
    zeros = [int(ordered.shape[1] * (1 - area)) for area in areas]
    rank = torch.arange(ordered.shape[1], device=masks.device)
    ones = rank >= torch.tensor(zeros, device=masks.device)[:, None]
    return (ordered - ones.float()).square().mean(1)


def rex(model: Classifier, image: Tensor, label: int, *, iters: int = 20, seed: int = 0) -> Tensor:
    """ReX's responsibility map (Chockler et al., ICCV 2021) by rex-xai; InputError without it."""
    image = _checked(model, image, label, iters=iters)
    if importlib.util.find_spec("rex_xai") is None:
        raise InputError("rex: the package rex-xai is missing; get it with: pip install rex-xai")
    from rex_xai.explanation.rex import calculate_responsibility
    from rex_xai.input.config import CausalArgs
    from rex_xai.input.input_data import Data
    from rex_xai.responsibility.prediction import Prediction, default_prediction_function

    settings = CausalArgs()
    settings.iters, settings.seed, settings.progress_bar = iters, seed, False
    settings.batch_size = 14  # the mutants of one partition
    settings.min_box_size = max(1, round(10 * min(model.size) / 224))
    data = Data(None, image.shape, device=str(model.device), mode="RGB")
    data.data, data.mask_value = image, 0
    state = np.random.get_state()  # ReX seeds the global generators
    gpus = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            data.target = Prediction(label, probability(model(image), label))
            maps, _ = calculate_responsibility(data, settings, default_prediction_function(model))
    finally:
        np.random.set_state(state)
    found = maps.get(label)  # None if no part of the image alone ever had the label
    return torch.zeros_like(image[:, :1]) if found is None else image.new_tensor(found)[None, None]


def _probabilities(model: Classifier) -> Callable[[Tensor], Tensor]:
    return lambda images: model(images).softmax(1)


def _checked(model: Classifier, image: Tensor, label: int, **counts: int) -> Tensor:
    """The image, detached, on the model's device. Raises InputError, see the module."""
    expected = (1, len(model.mean), *model.size)
    if tuple(image.shape) != expected:
        raise InputError(f"image of shape {tuple(image.shape)}: {model.name} expects {expected}")
    if not 0 <= label < len(model.class_names):
        raise InputError(f"label {label}: expected an index from 0 to {len(model.class_names) - 1}")
    if model.module.training:  # its statistics would change, and with them what is explained
        raise InputError(f"{model.name} is in training mode: call .eval()")
    if low := [f"{name}={count}" for name, count in counts.items() if count < 1]:
        raise InputError(f"{', '.join(low)}: expected at least 1")
    return image.detach().to(model.device)
