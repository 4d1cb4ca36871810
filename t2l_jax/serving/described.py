"""Adapters for programs that load PEFT folders by name: the folder of a description is written when it is asked for."""

import hashlib
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from t2l_jax.encoder import prepare
from t2l_jax.errors import UserError
from t2l_jax.io.peft import CONFIG_FILE, save_peft
from t2l_jax.model import Model, load

PREFIX = "t2l:"  # of a model's name that is a description


@dataclass(frozen=True)
class DescribedFolders:
    """A folder with one PEFT folder for each description that was asked for, all by one hypernetwork.

    `base` is the name of the base model in them; None: the hypernetwork's own. Several processes may share the folder.
    """

    folder: Path
    location: str | None = None
    """Of the hypernetwork; None: the packaged one."""
    base: str | None = None
    most: int = 1000
    """Adapters in the folder. None is deleted: a program may read one again at any time."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @cached_property
    def model(self) -> Model:
        return load(self.location)

    def find(self, name: str) -> Path | None:
        """The folder of the adapter of this name; None for a name that is no description.

        Raises UserError for a description that cannot be embedded, and if there are too many adapters already.
        """
        if not name.startswith(PREFIX):
            return None
        description = prepare(name.removeprefix(PREFIX), "the description")
        with self._lock:
            base = self.base or self.model.config.base_name
            key = hashlib.sha256("\n".join((self.model.fingerprint, str(base), description)).encode())
            path = self.folder / key.hexdigest()[:32]
            if path.exists():
                return path
            if sum(1 for _ in self.folder.glob(f"*/{CONFIG_FILE}")) >= self.most:
                raise UserError(f"{self.folder} holds {self.most} adapters, as many as it may: delete some")
            adapter = self.model.generate([description])[0]
            try:
                save_peft(adapter, path, base_model=base, description=description)
            except UserError:
                if not path.exists():  # by another process, meanwhile
                    raise
            return path
