"""Model folders as repositories of the Hugging Face Hub, through the package huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import ConfigError


def download_folder(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of a repository "user/name", downloaded where it is not in the cache.

    Raises ConfigError without huggingface_hub, and the errors of that package.
    """
    return Path(_hub(repo_id).snapshot_download(repo_id, revision=revision, token=token))


def upload_folder(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload a folder as one commit, to a repository that is created where it does not exist. Returns the commit's URL.

    Raises ConfigError without huggingface_hub, and the errors of that package.
    """
    api = _hub(repo_id).HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a VL-BERT model").commit_url
    )


def _hub(repo_id: str) -> Any:
    if repo_id.count("/") != 1 or repo_id.startswith(("/", ".", "~")):
        raise ConfigError(f"{repo_id}: no such folder, and no name of a repository: expected user/name")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError("repositories need huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub
