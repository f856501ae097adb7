"""Spectral normalisation of whole nets."""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ppl_dgm.checked import checked

__all__ = ["spectral_normalised"]

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@checked
def spectral_normalised(net: nn.Module) -> nn.Module:
    """Divide each layer's weight by its largest singular value.

    The layers are all linear and convolutional ones.

    A net of such layers with activations of slope at most one maps distances of one to distances of
    at most one, as critics should (Miyato et al. 2018). The singular value is followed by one power
    iteration in each run in training mode. Changes the net in place and returns it.

    Raises:
        ValueError: a net without such layers.

    Example:
        >>> import torch
        >>> net = spectral_normalised(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
        >>> bool(torch.linalg.matrix_norm(net[0].weight, 2) < 1.5)
        True
    """
    layers = [module for module in net.modules() if isinstance(module, _LAYERS)]
    if not layers:
        raise ValueError(
            f"{type(net).__name__} has no linear or convolutional layer to normalise; expected a "
            "net that has"
        )
    for layer in layers:
        spectral_norm(layer)
    return net
