"""NetCDF files of arrays with names of any characters."""

import os
from typing import Any

import xarray as xr

__all__ = ["storable_name", "write_netcdf"]


def write_netcdf(tree: Any, path: str | os.PathLike) -> None:
    """Write a data container to a netCDF file.

    The container is InferenceData, a DataTree or a Dataset. `arviz.from_netcdf` reads the file.
    What the format does not take in texts, zeros and halves of characters, is written by signs.

    Example:
        >>> import tempfile
        >>> data = xr.Dataset({"log_z": ("datum", [-1.0, -2.0])})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_netcdf(data, f"{folder}/evidence.nc")
        ...     xr.load_dataset(f"{folder}/evidence.nc", engine="h5netcdf").log_z.values
        array([-1., -2.])
    """
    _storable(tree).to_netcdf(str(path), engine="h5netcdf")


def _storable(tree: Any) -> Any:
    """The container, or its groups, as files take them."""
    if isinstance(tree, xr.Dataset):
        return _storable_group(tree)
    over_groups = tree.map_over_datasets if isinstance(tree, xr.DataTree) else tree.map
    return over_groups(_storable_group)


def _storable_group(group: xr.Dataset) -> xr.Dataset:
    texts = {
        name: (variable.dims, [_text(str(value)) for value in variable.values])
        for name, variable in group.variables.items()
        if variable.dtype.kind in "OU" and variable.ndim == 1
    }
    attributes = {
        name: _text(value) if isinstance(value, str) else value
        for name, value in group.attrs.items()
    }
    return group.assign_coords(texts).assign_attrs(attributes)


def _text(text: str) -> str:
    return text.replace("\0", "\N{SYMBOL FOR NULL}").encode(errors="backslashreplace").decode()


def storable_name(name: str) -> str:
    """The name of an array, with signs that files take.

    Example:
        >>> storable_name("layer/weight"), storable_name("β 1")
        ('layer∕weight', 'β 1')
    """
    plain = _text(name).replace("/", "\N{DIVISION SLASH}")
    return {"": "unnamed", ".": "\N{ONE DOT LEADER}"}.get(plain, plain)
