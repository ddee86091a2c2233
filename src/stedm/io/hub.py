"""Model folders from and to the Hugging Face hub, on request alone: without `local_files_only=False` or `push` nothing
here asks the network."""

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from stedm.errors import StedmError
from stedm.version import __version__

FILES = ["*.json", "*.safetensors", "README.md"]
"""What a model folder is made of; nothing else is read from the hub or written to it."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
ASK = "of the Hugging Face hub, give local_files_only=False, which downloads it"


def model_folder(
    source: str | Path,
    sign: str,
    *,
    local_files_only: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """The folder `source`, or that of a hub id (`owner/name`) in the local cache.

    Args:
        sign: a file that every such folder has.
        local_files_only: false = download what the cache doesn't have; as in diffusers, where it is the default.
        revision: branch, tag or commit on the hub; None = the newest.
        token: of a user who may read it; None = the one that `hf auth login` has kept.

    Returns:
        `source` itself where it is no hub id, or one that isn't in the cache and that wasn't to be downloaded.

    Raises:
        StedmError: it can't be downloaded.
    """
    if Path(source).exists() or not is_hub_id(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    how = {"revision": revision, "token": token, "allow_patterns": FILES, "library_name": "stedm"}
    try:
        found = Path(
            snapshot_download(str(source), **how, library_version=__version__, local_files_only=local_files_only)
        )
    except Exception as error:  # errors of the hub, of HTTP, of the network; there is no class for all
        if local_files_only:
            return Path(source)
        raise StedmError(f"{source}: can't be downloaded ({_short(error)}); {_LOOK}") from error
    return found if (found / sign).is_file() or not local_files_only else Path(source)


def is_hub_id(source: str | Path) -> bool:
    """Whether something reads like `owner/name`, as paths may too."""
    return isinstance(source, str) and _ID.fullmatch(source) is not None


_LOOK = "look at its name and at the network; what is private needs `hf auth login` or token=..."


def push_model(
    write: Callable[[Path], None],
    repo_id: str,
    *,
    private: bool = True,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload what `write` puts into a folder; returns the address of the commit.

    Args:
        private: whether others must not read it; a repository that is there stays as it is.

    Raises:
        StedmError: the hub refuses it; it would be public and wasn't meant to, or is under no stated licence.
    """
    from huggingface_hub import HfApi, ModelCard

    with TemporaryDirectory(prefix="stedm-hub-") as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        if not private and ModelCard.load(folder / "README.md").data.license in (None, "unknown"):
            raise StedmError(
                f"{repo_id}: the card states no licence; write it into `license:` of the model's README.md (and into "
                "dataset.yaml of its data) before it becomes public"
            )
        api = HfApi(token=token, library_name="stedm", library_version=__version__)
        try:
            whole_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(whole_id).private:
                raise StedmError(f"{whole_id}: is public on the hub; give private=False if that is meant")
            message = commit_message or f"Upload a model of stedm {__version__}"
            done = api.upload_folder(
                repo_id=whole_id,
                folder_path=folder,
                commit_message=message,
                create_pr=create_pr,
                allow_patterns=FILES,
            )
        except StedmError:
            raise
        except Exception as error:  # as above
            raise StedmError(f"{repo_id}: can't be uploaded ({_short(error)}); {_LOOK}") from error
    return str(done.commit_url)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
