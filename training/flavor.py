"""What MLflow reads to load a version by itself: an `MLmodel` file beside the adapter, for
`mlflow.transformers` and `mlflow.pyfunc`.

It names the base as the adapter does; MLflow fetches it from the Hub, or from the folder of that name, and
puts the adapter on top. It is written here since `mlflow.transformers.log_model` would load the base first.
Names of classes are the automatic ones, so that no code of a model is ever run.
"""

from __future__ import annotations

import json
from importlib.metadata import version

from mlflow.version import VERSION

from agent.items import JsonObject

MODEL_FILE = "MLmodel"


def mlmodel(adapter_config: JsonObject, run_id: str, artifact_path: str) -> str:
    """The text of the `MLmodel` file beside an adapter (JSON, which YAML includes)."""
    name, revision = adapter_config.get("base_model_name_or_path"), adapter_config.get("revision")
    flavor: JsonObject = {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "framework": "pt",
        "pipeline_model_type": "AutoModelForCausalLM",
        "source_model_name": name,
        "source_model_revision": revision or "main",
        "components": ["tokenizer"],
        "tokenizer_type": "AutoTokenizer",
        "tokenizer_name": name,
        "tokenizer_revision": revision or "main",
        "peft_adaptor": ".",
        "code": None,
        "transformers_version": version("transformers"),
    }
    pyfunc = {"loader_module": "mlflow.transformers"}
    value = {
        "artifact_path": artifact_path,
        "flavors": {"python_function": pyfunc, "transformers": flavor},
        "mlflow_version": VERSION,
        "run_id": run_id,
    }
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
