"""Bytes as data of binary and real distributions."""

from typing import ClassVar

from torch import Tensor

__all__ = ["Bits", "Shades"]

MIDDLE = 127.5  # of bytes


class Bits:
    """Mixin of what observes zeros and ones."""

    judges_bytes: ClassVar[bool] = True  # by their values

    def of_bytes(
        self, levels: Tensor, are_images: bool, bright: bool | None = None
    ) -> tuple[Tensor, str]:
        """Binarise grey levels: those above 127 are 1.

        Bytes are grey levels where any of the data is above 127. Others are bits, or labels and
        counts that are no data of coins and stay to be refused.

        Raises:
            ValueError: for bytes above 1 beside data that were taken for bits.
        """
        if bright is False and bool((levels > 1).any()):
            raise ValueError(
                f"there are bytes up to {int(levels.max())}, but the data read before them have "
                "none above 127 and were taken for zeros and ones; binarise all of them first, "
                "e.g. (x > 127).float()"
            )
        if bright or (bright is None and bool((levels > MIDDLE).any())):
            return (levels > MIDDLE).to(levels.dtype), "binarised, levels above 127 are 1"
        return levels, ""


class Shades:
    """Mixin of what observes real numbers."""

    def of_bytes(
        self, levels: Tensor, are_images: bool, bright: bool | None = None
    ) -> tuple[Tensor, str]:
        """Divide grey levels of images by 255."""
        return (levels / 255, "divided by 255") if are_images else (levels, "")
