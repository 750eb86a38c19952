"""The router of an assistant: fitted on questions that the folder keeps, and fitted again when its tasks change."""

import hashlib
import json
from pathlib import Path

from backends.finetune.inference.embeddings import load_embedding
from backends.finetune.inference.router import CentroidRouter
from backends.finetune.learning.data import read_texts
from backends.finetune.runs.assistant_folder import AssistantFolder


def assistant_router(folder: Path | str, embedding: str = "wordllama") -> CentroidRouter:
    """To the tasks that the folder has now. It is stored beside them, under a name that depends on their texts.

    Raises: RunFolderError; as :meth:`CentroidRouter.fit` and :func:`load_embedding`.
    """
    assistant_folder = AssistantFolder(folder)
    found = assistant_folder.read()
    embed = load_embedding(embedding)
    texts = {name: assistant_folder.texts(task.record.phase) for name, task in found.tasks.items()}
    key = json.dumps([embed.name, [[name, found.files[path.name]] for name, path in texts.items()]])
    file = assistant_folder.path / f"router-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if file.is_file():
        return CentroidRouter.load(file, embed)
    assistant_folder.check_files(found, of=())
    router = CentroidRouter.fit({name: list(read_texts(path).queries) for name, path in texts.items()}, embed)
    for other in assistant_folder.path.glob("router-*.safetensors"):
        other.unlink(missing_ok=True)
    router.save(file)
    return router
