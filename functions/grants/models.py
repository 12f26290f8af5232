"""botocore's data, slimmed: its models of the services that are called, and of nothing else.

What botocore reads to make clients is most of what they cost: EC2's model alone has 750 operations, the list
of every endpoint is 1.2 MB, and to find a model botocore looks into the folders of 400 services.
`tools/models.py` writes what is needed of it into functions/models; `tests/adapters/test_models.py` compares
that with botocore's own.

AWS brings the runtime's botocore up to date unasked, so what is not here is taken from botocore's own folder,
whatever it is called; and a client that cannot be made of this is made of botocore's own alone
(`grants/wiring.py`). Services are called by the version of their API that was slimmed, which AWS serves on.

The alternative, botocore's setting `data_path`, finds models in the same way, and so looks through all
folders too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from botocore.loaders import Loader

MODELS = Path(__file__).resolve().parent.parent / "models"
SHARED = "shared"  # the file of what is no service's: endpoints and partitions


class SlimLoader(Loader):
    """A loader that looks into functions/models first."""

    def __init__(self, folder: Path = MODELS) -> None:
        super().__init__()
        self._folder = folder
        self._read: dict[str, dict[str, Any]] = {}

    def load_service_model(
        self, service_name: str, type_name: str, api_version: str | None = None
    ) -> dict[str, Any]:
        """Give a service's model of some type: the slim one, but for another version of the API."""
        slim = self._slim(service_name)
        if type_name in slim and api_version in (None, slim["service-2"]["metadata"]["apiVersion"]):
            model: dict[str, Any] = slim[type_name]
        else:
            model = super().load_service_model(service_name, type_name, api_version)
        return model

    def load_data_with_path(self, name: str) -> tuple[dict[str, Any], str]:
        """Give what is no service's, and where botocore has it: it asks whether that is its own folder."""
        shared = self._slim(SHARED)
        if name in shared:
            return shared[name], str(Path(self.BUILTIN_DATA_PATH) / name)
        data_and_path: tuple[dict[str, Any], str] = super().load_data_with_path(name)
        return data_and_path

    def _slim(self, name: str) -> dict[str, Any]:
        """Read a file of ours, once; an empty one where there is none."""
        if name not in self._read:
            try:
                self._read[name] = json.loads((self._folder / f"{name}.json").read_bytes())
            except FileNotFoundError:
                self._read[name] = {}
        return self._read[name]
